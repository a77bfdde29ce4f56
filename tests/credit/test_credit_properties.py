"""What holds of every method for any group: hypothesis draws rewards, turns, cut-off rollouts, and signals with gaps."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import NAN, credited, options_of
from test_methods import CHOICES, METHODS, in_words, rows_of, shown
from torch.testing import assert_close

import strategies as drawn
from a2tgpo_trl.credit import A2TGPO, GRPO, GTPO, IGPO, MTGRPO, TRACE, A2TGPOStop, Returns, TurnPPO, Turns, scheduled
from a2tgpo_trl.credit.outcome import without_rounding
from a2tgpo_trl.credit.schedule import SCHEDULES
from a2tgpo_trl.functional import information_gain, with_outcome

FILL = {"beliefs": NAN, "turn_rewards": NAN, "values": NAN, "states": -1}


def cells(width, lengths):
    return torch.arange(width) < lengths.unsqueeze(1)


@st.composite
def turns(draw, gaps=True):
    """Whole groups: of one completion too, with none that was scored, without any turn."""
    size, num_groups = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    n = size * num_groups
    tool_turns = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    kinds = draw(st.lists(st.sampled_from(["none", "answered", "cut"]), min_size=n, max_size=n))
    last = torch.tensor([kind != "none" for kind in kinds])
    answered = torch.tensor([kind == "answered" for kind in kinds])
    num_turns = tool_turns + last
    width = max(int(num_turns.max()), 1)
    rewards = draw(drawn.tables(n, 1, values=st.sampled_from([0.0, 0.5, 1.0, -2.0]), gaps=gaps)).squeeze(1)
    of_group = rewards.unflatten(0, (-1, size))
    outcome = (of_group - of_group.nanmean(1, keepdim=True)).flatten().nan_to_num()
    beliefs = -draw(drawn.tables(n, width + 1, gaps=gaps)).abs()
    values = draw(drawn.tables(n, width + 1, gaps=False)).where(cells(width + 1, num_turns + 1), NAN)
    states = draw(drawn.tables(n, width, values=st.sampled_from([0.0, 7.0, 2.0**40]), gaps=False)).long()
    return Turns(
        outcome=outcome,
        rewards=rewards,
        num_turns=num_turns,
        num_tool_turns=tool_turns,
        num_generations=size,
        signals={
            "beliefs": beliefs.where(cells(width + 1, tool_turns + 1), NAN),
            "turn_rewards": draw(drawn.tables(n, width, gaps=gaps)).where(cells(width, num_turns), NAN),
            "states": states.where(cells(width, num_turns), -1),
            "values": values.masked_fill(
                (torch.arange(width + 1) == num_turns.unsqueeze(1)) & answered.unsqueeze(1), 0.0
            ),
        },
        answered=answered,
    )


def close(actual, expected):
    assert_close(actual, expected, rtol=1e-8, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize(("method", "loop", "options"), METHODS, ids=in_words)
@given(turns())
def test_it_is_that_of_the_loop(method, loop, options, drawn_turns):
    expected = torch.tensor(loop(drawn_turns, options_of(method, **options)), dtype=torch.float64)
    credit = credited(method, drawn_turns, **options)
    close(credit.advantages, expected.view_as(credit.advantages))
    assert credit.advantages.isfinite().all()


@pytest.mark.parametrize(("method", "options"), CHOICES, ids=in_words)
@given(turns(), st.randoms(use_true_random=False))
def test_order_and_padding_do_not_matter(method, options, drawn_turns, rng):
    size = drawn_turns.num_generations
    starts = range(0, len(drawn_turns.rewards), size)
    order = [start + i for start in rng.sample(starts, len(starts)) for i in rng.sample(range(size), size)]
    wide = {
        name: torch.nn.functional.pad(values, (0, 1), value=FILL[name]) for name, values in drawn_turns.signals.items()
    }
    given_credit = shown(credited(method, drawn_turns, **options))
    for ours, theirs in zip(
        shown(credited(method, rows_of(drawn_turns, order), **options)), given_credit, strict=True
    ):
        close(ours, theirs[order])
    for ours, theirs in zip(
        shown(credited(method, replace(drawn_turns, signals=wide), **options)), given_credit, strict=True
    ):
        close(ours[:, :-1], theirs)


def with_signal(drawn_turns, **signals):
    return replace(drawn_turns, signals={**drawn_turns.signals, **signals})


@pytest.mark.parametrize("method", [A2TGPO, IGPO, A2TGPOStop])
@given(turns(), drawn.eighths)
def test_a_shift_of_all_beliefs_changes_nothing(method, drawn_turns, shift):
    shifted = with_signal(drawn_turns, beliefs=drawn_turns.signals["beliefs"] + shift)
    close(credited(method, shifted).advantages, credited(method, drawn_turns).advantages)


@pytest.mark.parametrize("method", [GTPO, Returns])
@given(turns(), drawn.eighths)
def test_a_constant_added_to_every_reward_of_a_rollout_changes_nothing(method, drawn_turns, shift):
    """Without a discount; the outcome is inside the returns, and those of a prompt are compared."""
    shifted = replace(drawn_turns, rewards=drawn_turns.rewards + shift)
    ours, theirs = (credited(method, t, turn_gamma=1.0).advantages for t in (shifted, drawn_turns))
    close(ours, theirs)


@given(turns(), drawn.eighths)
def test_constant_turn_rewards_are_grpo(drawn_turns, value):
    there = cells(drawn_turns.max_turns, drawn_turns.num_turns)
    constant = torch.full(there.shape, value, dtype=torch.float64).where(there, NAN)
    advantages = credited(MTGRPO, with_signal(drawn_turns, turn_rewards=constant)).advantages
    outcome = credited(GRPO, drawn_turns).advantages
    assert torch.equal(advantages, outcome.unsqueeze(1).expand_as(advantages))


@given(turns())
def test_a2tgpo_by_turn_rewards_that_are_its_gains(drawn_turns):
    gains = information_gain(drawn_turns.signals["beliefs"])
    options = dict(turn_gamma=0.0, turn_comparison="turn", turn_outcome="added", turn_advantage_coef=0.3)
    ours = credited(Returns, with_signal(drawn_turns, turn_rewards=gains), **options).advantages
    close(ours, credited(A2TGPO, drawn_turns, turn_gamma=0.0, turn_rescale=False, turn_advantage_coef=0.3).advantages)


@given(turns())
def test_progress_of_a_window_of_one_telescopes(drawn_turns):
    credit = credited(TRACE(window=1, fill=0.0), drawn_turns, turn_gamma=1.0, turn_advantage_coef=1.0)
    part = credit.advantages - drawn_turns.outcome.unsqueeze(1)
    close(part, credit.columns["belief_progress"].nan_to_num())


@given(turns(), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_critic_that_expects_nothing_leaves_returns(drawn_turns, gamma):
    nothing = torch.zeros_like(drawn_turns.signals["values"])
    credit = credited(
        TurnPPO, with_signal(drawn_turns, values=nothing), turn_gamma=gamma, gae_lambda=1.0, whiten_advantages=False
    )
    rewards = with_outcome(drawn_turns.turn_rewards, drawn_turns.rewards, drawn_turns.num_turns)
    for i, row in enumerate(rewards):
        for k in range(len(row)):
            ahead = sum(gamma**j * reward for j, reward in enumerate(row[k:].tolist()) if reward == reward)
            close(credit.advantages[i, k], torch.tensor(0.0 if row[k].isnan() else ahead, dtype=torch.float64))


# ---- what estimators start from


def in_groups(values, size):
    return [values[start : start + size] for start in range(0, len(values), size)]


@given(turns(), st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 4))
def test_the_weight_of_turn_credit_is_that_of_the_schedule(drawn_turns, schedule, progress, weight):
    options = SimpleNamespace(turn_advantage_coef=weight, other=1)
    groups = in_groups(drawn_turns.rewards.tolist(), drawn_turns.num_generations)
    mixed = [len({reward for reward in group if not math.isnan(reward)}) > 1 for group in groups]
    factor = {"constant": 1.0, "linear": 1 - progress, "mixed_share": sum(mixed) / len(mixed)}[schedule]
    after = scheduled(options, schedule, progress, drawn_turns)
    assert after.turn_advantage_coef == pytest.approx(factor * weight, rel=1e-6) and after.other == 1
    assert options.turn_advantage_coef == weight
    assert vars(scheduled(SimpleNamespace(other=1), schedule, progress, drawn_turns)) == {"other": 1}


@given(
    st.integers(1, 5),
    st.lists(st.lists(st.sampled_from([0.3, 0.3 + 1e-9, 1.0, NAN]), min_size=5, max_size=5), min_size=1),
)
def test_outcomes_of_equal_rewards_are_zero_and_others_stay(size, rewards):
    outcomes = [reward - 0.1 for group in rewards for reward in group[:size]]
    unscored = [math.isnan(outcome) for outcome in outcomes]
    outcome = torch.tensor(outcomes, dtype=torch.float64).nan_to_num()
    expected = []
    for group in in_groups(outcomes, size):
        is_equal = len({value for value in group if not math.isnan(value)}) == 1
        expected += [0.0 if is_equal or math.isnan(value) else value for value in group]
    assert without_rounding(outcome, torch.tensor(unscored), size).tolist() == expected
