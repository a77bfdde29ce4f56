"""The estimator `"mt_grpo"`."""

import torch
from loops import NAN, credited, group
from torch.testing import assert_close

from a2tgpo_trl.credit import MTGRPO


def test_a_turn_is_compared_with_the_same_turn_of_the_others_by_hand():
    # Turn 0: 1, 3, 2 -> σ = √(2 / 3). Turn 1: 5 and a turn without a reward. Outcomes 0.5, -0.5, 0
    turns = group([1.0, 0.0, 0.5], [1, 1, 0], turn_rewards=[[1.0, 5.0], [3.0, NAN], [2.0, NAN]])
    z = (3 / 2) ** 0.5
    expected = torch.tensor([[0.5 - z, 0.5], [-0.5 + z, -0.5], [0.0, 0.0]], dtype=torch.float64)
    assert_close(credited(MTGRPO, turns).advantages, expected, rtol=1e-5, atol=1e-5)
    halved = credited(MTGRPO, turns, turn_advantage_coef=0.5).advantages
    assert_close(
        halved[:, 0], torch.tensor([0.5 - z / 2, -0.5 + z / 2, 0.0], dtype=torch.float64), rtol=1e-5, atol=1e-5
    )


def test_later_rewards_are_later_turns():
    turns = group([1.0, 0.0], [1, 1], turn_rewards=[[1.0, 0.0], [1.0, 9.0]])
    assert_close(credited(MTGRPO, turns).advantages[:, 0], turns.outcome)
    assert not torch.allclose(credited(MTGRPO, turns, turn_gamma=1.0).advantages[:, 0], turns.outcome)


def test_constant_turn_rewards_are_grpo():
    turns = group([1.0, 0.0, 0.0], [2, 0, 1], turn_rewards=[[0.1, 0.1, 0.1], [0.1, NAN, NAN], [0.1, 0.1, NAN]])
    assert torch.equal(credited(MTGRPO, turns).advantages, turns.outcome.unsqueeze(1).expand(-1, 3))
