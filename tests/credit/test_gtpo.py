"""The estimator `"gtpo"`."""

import math

import pytest
import torch
from loops import NAN, credited, group
from torch.testing import assert_close

from a2tgpo_trl.credit import GTPO
from a2tgpo_trl.functional import spread_turns


def close(actual, expected):
    assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def standard(rewards):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    return (rewards - rewards.mean()) / rewards.std(correction=0)


def test_a_turn_that_breaks_the_format_by_hand():
    # r = -0.1, 1 -> D = -0.1 + 0.9 · 1 = 0.8, 1; and the other answers wrongly at once: 0. Mean 0.6, σ = √((0.2² + 0.4² + 0.6²) / 3)
    turns = group([1.0, 0.0], [1, 0], turn_rewards=[[-0.1, NAN], [NAN, NAN]])
    deviation = math.sqrt(0.56 / 3)
    credit = credited(GTPO, turns)
    close(
        credit.advantages, [[0.2 / deviation, 0.4 / deviation], [-0.6 / deviation, -0.5]]
    )  # no turn there: the outcome
    close(credit.columns["turn_return"].nan_to_num(9), [[0.8, 1.0], [0.0, 9.0]])


def test_one_turn_each_is_grpo():
    rewards = [1.0, 0.0, 0.0, 0.5]
    close(credited(GTPO, group(rewards, [0] * 4)).advantages, standard(rewards).unsqueeze(1))
    unscaled = group(rewards, [0] * 4)
    assert torch.equal(credited(GTPO, unscaled, turn_scale=False).advantages, unscaled.outcome.unsqueeze(1))


def test_the_outcome_alone_over_equal_numbers_of_turns_is_grpo():
    rewards = [1.0, 0.0, 0.0, 0.5]
    expected = standard(rewards).unsqueeze(1).expand(-1, 3)
    close(credited(GTPO, group(rewards, [2] * 4), turn_gamma=1.0).advantages, expected)


def test_the_outcome_alone_over_unequal_numbers_of_turns_weighs_by_turns():
    # μ = Σ N R / Σ N = (3 · 1 + 1 · 0) / 4, σ² = (3 · 0.25² + 0.75²) / 4
    deviation = math.sqrt((3 * 0.25**2 + 0.75**2) / 4)
    advantages = credited(GTPO, group([1.0, 0.0], [2, 0]), turn_gamma=1.0).advantages
    close(advantages[0], [0.25 / deviation] * 3)
    close(advantages[1, 0], -0.75 / deviation)


def test_without_a_look_ahead_only_last_turns_carry_the_outcome():
    credit = credited(GTPO, group([1.0, -1.0], [2, 1]), turn_gamma=0.0)
    assert credit.columns["turn_return"].nan_to_num(9).tolist() == [[0.0, 0.0, 1.0], [0.0, -1.0, 9.0]]


@pytest.mark.parametrize("name", ["gtpo", "returns"])
def test_rollouts_with_tools(score, build, name):
    """Without turn rewards: the outcome, discounted over the turns. 1, 2, 4 and 3 turns; only the first answer is wrong."""
    batch, trainer = score(advantage_estimator=name, turn_gamma=0.5)
    lengths, right = [1, 2, 4, 3], [0.0, 1.0, 1.0, 1.0]
    returns = torch.full((4, 4), NAN)
    for i, (length, reward) in enumerate(zip(lengths, right, strict=True)):
        returns[i, :length] = torch.tensor([reward * 0.5 ** (length - 1 - k) for k in range(length)])
    there = returns[~returns.isnan()]
    expected = (returns - there.mean()) / (there.std(correction=0) + 1e-6)
    assert_close(batch["advantages"], spread_turns(expected, batch["turn_ids"], 0.0))
    assert not batch["advantages"].requires_grad and "clip_scale" not in batch and "information_gain" not in batch
    assert (trainer.args.importance_sampling_level, trainer.args.epsilon, trainer.args.loss_type) == (
        "token",
        0.2,
        "dapo",
    )
    trainer = build(advantage_estimator=name)
    trainer.train()
    assert trainer.state.log_history[0]["turn_return/mean"] > 0
