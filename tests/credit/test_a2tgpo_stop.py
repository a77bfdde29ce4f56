"""The estimator `"a2tgpo_stop"`: who stops is compared with who goes on. The expectation over a small stopping problem is exact."""

import itertools
import math

import loops
import pytest
import torch
from loops import NAN, credited, group, options_of
from torch.testing import assert_close

from a2tgpo_trl.credit import A2TGPO, A2TGPOStop
from a2tgpo_trl.functional import accumulate, comparison_sets, information_gain, spread_turns, standardize

# The stopping problem: at turn t the policy goes on with probability P[t] and gains 1, or answers. After three turns it must answer
P = [0.7, 0.5, 0.4]
LENGTHS = range(len(P) + 1)
PROBABILITY = [math.prod(P[:n]) * (1 - P[n] if n < len(P) else 1) for n in LENGTHS]


def score_function(n, t):
    """Derivative of a rollout's log-probability by the logit of going on at turn t."""
    return (1 - P[t] if n > t else -P[t]) if n >= t else 0.0


def ratios(credit, num_generations, cut=False):
    """Expected gradient of an estimator over the true one, at each turn: all groups there can be, each with its probability."""
    groups = list(itertools.product(LENGTHS, repeat=num_generations))
    lengths = [n for members in groups for n in members]
    beliefs = [[float(k) if k <= n else NAN for k in range(len(P) + 2)] for n in lengths]
    turns = group(
        [0.0] * len(lengths),
        lengths,
        answered=[not cut or n < len(P) for n in lengths],
        num_turns=[min(n + 1, len(P)) if cut else n + 1 for n in lengths],
        num_generations=num_generations,
        beliefs=beliefs,
    )
    credit = credit(turns).tolist()
    found = []
    for t in range(len(P)):
        true = sum(PROBABILITY[n] * score_function(n, t) * n for n in LENGTHS)
        expected = sum(
            math.prod(PROBABILITY[n] for n in members)
            * sum(credit[g * num_generations + i][t] * score_function(n, t) for i, n in enumerate(members))
            for g, members in enumerate(groups)
        )
        found.append(expected / num_generations / true)
    return found


def compared(values, turns):
    sets = comparison_sets("turn", turns.num_generations, values)
    return standardize(values, sets, scale=False)


def per_turn_index(turns):
    gains = information_gain(turns.signals["beliefs"])
    return accumulate(compared(gains, turns), rescale=False).nan_to_num()


def sums_per_turn_index(turns):
    gains = information_gain(turns.signals["beliefs"])
    return compared(accumulate(gains, rescale=False), turns).nan_to_num()


def stopped_gains_0(turns, answers):
    """Every rollout is compared at every turn; one that stopped before has nothing to come."""
    returns = accumulate(information_gain(turns.signals["beliefs"]), rescale=False).nan_to_num()
    credit = compared(returns, turns)
    turn = torch.arange(credit.size(1))
    return credit.where(turn < turns.num_tool_turns.unsqueeze(1) + answers, 0.0)


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        (per_turn_index, [0, 0, 0]),
        (sums_per_turn_index, [0, 0, 0]),
        (lambda turns: credited(A2TGPO, turns).advantages, [0, 0, 0]),
        (lambda turns: stopped_gains_0(turns, answers=True), [0.5, 0.5, 0.5]),
        (lambda turns: stopped_gains_0(turns, answers=False), [0.15, 0.325, 0.43]),  # (1 - P(goes on at t)) / 2
        (lambda turns: credited(A2TGPOStop, turns, turn_advantage_coef=1.0).advantages, [1, 1, 1]),
    ],
    ids=["per index", "sums per index", "a2tgpo", "stopped is 0", "without answer turns", "a2tgpo_stop"],
)
def test_expected_gradient_over_the_true_one(credit, expected):
    assert ratios(credit, num_generations=2) == pytest.approx(expected, abs=1e-9)


def test_expected_gradient_in_larger_groups():
    assert ratios(lambda turns: stopped_gains_0(turns, True), 3) == pytest.approx([2 / 3] * 3)
    assert ratios(lambda turns: credited(A2TGPOStop, turns, turn_advantage_coef=1.0).advantages, 3) == pytest.approx(
        [1] * 3
    )


def test_expected_gradient_where_a_limit_cuts_the_last_answer_off():
    credit = ratios(lambda turns: credited(A2TGPOStop, turns, turn_advantage_coef=1.0).advantages, 2, cut=True)
    assert credit == pytest.approx([1, 1, 1])


def test_with_a_scale_stopping_still_earns_its_share():
    credit = ratios(lambda turns: credited(A2TGPOStop, turns, turn_advantage_coef=1.0, turn_scale=True).advantages, 3)
    assert all(0.5 < ratio < 1.5 for ratio in credit)


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def one_each():
    """Gains 2, 1; 4; and an answer at once. Equal rewards: the outcome adds nothing."""
    beliefs = [[-4.0, -2.0, -1.0, NAN], [-4.0, 0.0, NAN, NAN], [-4.0, NAN, NAN, NAN]]
    return group([1.0] * 3, [2, 1, 0], beliefs=beliefs)


def test_by_hand():
    # Turn 0: returns 3, 4, 0 against the mean of the other two. Turn 1: 1 against the answer's 0. Turn 2: an answer, nobody else
    credit = credited(A2TGPOStop, one_each(), turn_advantage_coef=1.0)
    close(credit.advantages, [[1.0, 1.0, 0.0], [2.5, -1.0, 0.0], [-3.5, 0.0, 0.0]])
    assert credit.columns["turn_return"].nan_to_num(9).tolist() == [[3, 1, 0], [4, 0, 9], [0, 9, 9]]
    # σ of 3, 4, 0 is √(26 / 9), of 1, 0 a half
    scaled = credited(A2TGPOStop, one_each(), turn_advantage_coef=1.0, turn_scale=True).advantages
    root = math.sqrt(26) / 3
    close(scaled, [[1 / root, 2.0, 0.0], [2.5 / root, -2.0, 0.0], [-3.5 / root, 0.0, 0.0]])


def test_a_turn_that_nobody_else_reached_has_no_mean_to_subtract():
    turns = group([1.0, 1.0], [2, 0], beliefs=[[-4.0, -2.0, -1.0, NAN], [-4.0, NAN, NAN, NAN]])
    credit = credited(A2TGPOStop, turns, turn_advantage_coef=1.0)
    close(credit.advantages, [[3.0, 1.0, 0.0], [-3.0, 0.0, 0.0]])
    scaled = credited(A2TGPOStop, turns, turn_advantage_coef=1.0, turn_scale=True)
    assert scaled.advantages[0, 1] == 0  # nor a deviation to divide by


def test_a_completion_that_was_cut_off_did_not_answer():
    """Its last turn, whose result nobody saw, is compared with nobody: it was no decision to stop."""
    beliefs = [[-4.0, -2.0, NAN], [-4.0, NAN, NAN]]
    turns = group([1.0, 1.0], [1, 0], answered=[True, False], num_turns=[2, 1], beliefs=beliefs)
    close(credited(A2TGPOStop, turns, turn_advantage_coef=1.0).advantages, [[2.0, 0.0], [0.0, 0.0]])
    answered = group([1.0, 1.0], [1, 0], beliefs=beliefs)
    close(credited(A2TGPOStop, answered, turn_advantage_coef=1.0).advantages, [[2.0, 0.0], [-2.0, 0.0]])


def test_where_queries_lower_the_belief_answering_is_rewarded():
    turns = group([1.0, 1.0], [1, 0], beliefs=[[-2.0, -3.0, NAN], [-2.0, NAN, NAN]])
    close(credited(A2TGPOStop, turns, turn_advantage_coef=1.0).advantages[:, 0], [-1.0, 1.0])


def test_clip_ranges_are_a2tgpos():
    turns = loops.random_turns(1)
    ours, theirs = credited(A2TGPOStop, turns, turn_clip_strength=0.5), credited(A2TGPO, turns, turn_clip_strength=0.5)
    assert torch.equal(ours.clip_scale, theirs.clip_scale) and (ours.clip_scale != 1).any()


class Watched(A2TGPOStop):
    """Keeps what it was given."""

    def credit(self, turns, options):
        self.turns = turns
        return super().credit(turns, options)


def test_rollouts_with_tools(score, build):
    batch, trainer = score(advantage_estimator=Watched())
    turns = trainer.estimator.turns
    assert turns.answered.all()
    expected = torch.tensor(loops.a2tgpo_stop(turns, options_of(A2TGPOStop)))
    assert_close(batch["advantages"], spread_turns(expected, batch["turn_ids"], 0.0), rtol=1e-4, atol=1e-4)
    assert not batch["advantages"].requires_grad
    trainer = build(advantage_estimator="a2tgpo_stop")
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["turn_return/mean"])
    assert trainer.args.importance_sampling_level == "turn"


@pytest.mark.parametrize(
    ("limit", "answered", "num_turns"),
    [
        (dict(max_tool_calling_iterations=1), [True, True, False, False], [1, 2, 2, 2]),  # second calls were not run
        (dict(max_completion_length=25), [True, False, False, False], [1, 2, 2, 2]),  # the second's answer was cut
        (dict(max_completion_length=45), [True, True, False, False], [1, 2, 3, 2]),  # results that did not fit
    ],
    ids=str,
)
def test_rollouts_that_a_limit_cuts_off_did_not_answer(score, limit, answered, num_turns):
    _, trainer = score(advantage_estimator=Watched(), **limit)
    turns = trainer.estimator.turns
    assert turns.answered.tolist() == answered and turns.num_turns.tolist() == num_turns
    assert (turns.num_turns > turns.num_tool_turns).all()  # the masks alone do not tell
