"""The family `"returns"`: each switch by hand, and who belongs to it."""

import math
from types import SimpleNamespace

import pytest
import torch
from loops import NAN, credited, group, random_turns
from torch.testing import assert_close

from a2tgpo_trl.credit import A2TGPO, IGPO, Returns, Turns
from a2tgpo_trl.functional import information_gain


def advantages(turns, **options):
    return credited(Returns, turns, **{"turn_scale": False, **options}).advantages


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def two():
    """Two completions of two turns; outcomes 0.5 and -0.5; all but one turn share a state."""
    return group([1.0, 0.0], [1, 1], turn_rewards=[[2.0, 4.0], [0.0, NAN]], states=[[0, 0], [0, 8]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # r = 2, 4 + 1; 0, 0. D = 7, 5; 0, 0 -> minus their mean, 3
        ({}, [[4.0, 2.0], [-3.0, -3.0]]),
        # D_0 = 2 + 0.5 · 5
        (dict(turn_gamma=0.5), [[4.5 - 9.5 / 4, 5.0 - 9.5 / 4], [-9.5 / 4, -9.5 / 4]]),
        # D = 2 · 7 - 1, 2 · 4 + 1: turn rewards count twice, the outcome once -> minus 22 / 4
        (dict(turn_advantage_coef=2.0), [[7.5, 3.5], [-5.5, -5.5]]),
        # (7 + 0) / 2, (5 + 0) / 2
        (dict(turn_comparison="turn"), [[3.5, 2.5], [-3.5, -2.5]]),
        # 7, 5 and 0 share a state: minus 4. Nobody shares the other
        (dict(turn_comparison="state"), [[3.0, 1.0], [-4.0, 0.0]]),
        # Only the first turns share it at the same index
        (dict(turn_comparison="origin"), [[3.5, 0.0], [-3.5, 0.0]]),
        # minus (5 + 0 + 0) / 3 and so on
        (dict(turn_baseline="leave_one_out"), [[7 - 5 / 3, 5 - 7 / 3], [-4.0, -4.0]]),
        # σ = √((16 + 4 + 9 + 9) / 4)
        (dict(turn_scale=True, turn_baseline="none"), [[7 / math.sqrt(9.5), 5 / math.sqrt(9.5)], [0.0, 0.0]]),
        # r - 7 / 4 = 0.25, 3.25; -1.75, -1.75, then their sums to come
        (dict(turn_aggregation="standardize_then_sum"), [[3.5, 3.25], [-3.5, -1.75]]),
        # D = 6, 4; 0, none -> minus 10 / 3, and the outcome
        (dict(turn_outcome="added"), [[0.5 + 8 / 3, 0.5 + 2 / 3], [-0.5 - 10 / 3, -0.5]]),
        (dict(turn_outcome="added", turn_advantage_coef=0.3), [[1.3, 0.7], [-1.5, -0.5]]),
    ],
    ids=str,
)
def test_each_switch_by_hand(options, expected):
    close(advantages(two(), **options), expected)


def test_a_batch_is_compared_as_a_whole():
    turns = group([1.0, 0.0, 6.0, 1.0], [0, 0, 0, 0], num_generations=2)
    close(advantages(turns), [[0.5], [-0.5], [2.5], [-2.5]])
    close(advantages(turns, turn_comparison="batch"), [[-1.0], [-2.0], [4.0], [-1.0]])


def test_the_column_is_what_was_compared():
    assert credited(Returns, two()).columns["turn_return"].tolist() == [[7.0, 5.0], [0.0, 0.0]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_information_gain_as_turn_reward_is_a2tgpo_and_igpo(seed, gamma):
    turns = random_turns(seed)
    turns.signals["turn_rewards"] = information_gain(turns.signals["beliefs"])
    shared = dict(turn_aggregation="standardize_then_sum", turn_outcome="added", turn_gamma=gamma)
    ours = credited(Returns, turns, turn_comparison="turn", turn_advantage_coef=0.3, **shared)
    theirs = credited(A2TGPO, turns, turn_rescale=False, turn_gamma=gamma)
    assert_close(ours.advantages, theirs.advantages)
    ours = credited(Returns, turns, turn_comparison="prompt", **shared)
    theirs = credited(IGPO, turns, turn_gamma=gamma)
    turn_part = theirs.advantages - theirs.outcome_part
    assert_close(ours.advantages, turns.outcome.unsqueeze(1) + turn_part)


def test_a_constant_added_to_every_return_changes_nothing():
    turns = random_turns(0)
    returns = credited(Returns, turns, turn_outcome="added", turn_gamma=0.0).advantages
    turns.signals["turn_rewards"] += 5.0
    assert_close(credited(Returns, turns, turn_outcome="added", turn_gamma=0.0).advantages, returns)


def test_defaults_are_the_methods(config):
    def read(name, **options):
        args = config(advantage_estimator=name, **options)
        return args.turn_advantage_coef, args.turn_gamma, args.turn_scale, args.turn_comparison, args.turn_outcome

    assert read("a2tgpo") == (0.3, 1.0, None, None, None)
    assert read("grpo") == (None, None, None, None, None)
    assert read("returns") == (1.0, 1.0, True, "prompt", "inside")
    assert read("gtpo") == (1.0, 0.9, True, "prompt", "inside")
    assert read("trace")[:2] == (0.2, 0.8)
    assert read("a2tgpo_stop")[:3] == (0.3, 1.0, False)
    assert read("gtpo", turn_gamma=1.0, turn_comparison="batch", turn_scale=False) == (
        1.0,
        1.0,
        False,
        "batch",
        "inside",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(advantage_estimator="returns", turn_comparison="x"), "turn_comparison must be one of 'prompt', 'turn', 'state'"),
        (dict(advantage_estimator="returns", turn_aggregation="x"), "turn_aggregation must be one of 'sum_then_standardize'"),
        (dict(advantage_estimator="returns", turn_baseline="x"), "turn_baseline must be one of 'mean', 'leave_one_out', 'none'"),
        (dict(advantage_estimator="returns", turn_outcome="x"), "turn_outcome must be one of 'inside', 'added'"),
        (dict(turn_credit_groups="x"), "turn_credit_groups must be one of 'all', 'mixed', got 'x'"),
        (dict(gain_noise_floor=-1.0), "gain_noise_floor (σ) must be at least 0, got -1.0"),
        (
            dict(advantage_estimator="returns", turn_baseline="none", turn_scale=False),
            "turn_baseline='none' and turn_scale=False leave nothing to compare",
        ),
        (dict(turn_comparison="turn"), "turn_comparison='turn' has no effect with advantage_estimator='a2tgpo'"),
        (dict(advantage_estimator="grpo", turn_credit_groups="mixed"), "turn_credit_groups='mixed' has no effect"),
        (dict(advantage_estimator="trace", gain_noise_floor=0.1), "gain_noise_floor=0.1 has no effect"),
        (
            dict(turn_normalization="none", gain_noise_floor=0.1),
            "gain_noise_floor=0.1 has no effect with turn_normalization='none'",
        ),
        (dict(advantage_estimator="trace", belief_measure="prob"), "belief_measure='prob' is a probability"),
    ],
)  # fmt: skip
def test_bad_options(config, options, message):
    with pytest.raises(ValueError) as error:
        config(**options)
    assert message in str(error.value)


def test_a_reward_reaches_the_turns_before_it():
    """Turns without a reward of their own; the last one of the second rollout has nothing to come."""
    nan = float("nan")
    turns = Turns(
        torch.zeros(2), torch.zeros(2), torch.tensor([3, 3]), torch.tensor([2, 2]), 2,
        {"turn_rewards": torch.tensor([[nan, 1.0, nan], [nan, 0.0, nan]])},
    )  # fmt: skip
    options = SimpleNamespace(
        turn_advantage_coef=1.0, turn_gamma=1.0, turn_comparison="turn", turn_aggregation="sum_then_standardize",
        turn_baseline="mean", turn_scale=False, turn_outcome="added", turn_credit_groups="all",
    )  # fmt: skip
    advantages = Returns().credit(turns, options).advantages
    assert advantages.tolist() == [[0.5, 0.5, 0.0], [-0.5, -0.5, 0.0]]
    options.turn_gamma = 0.0
    assert Returns().credit(turns, options).advantages.tolist() == [[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]]
