"""The estimator `"gigpo"`."""

import torch
from loops import NAN, credited, group
from torch.testing import assert_close

from a2tgpo_trl.credit import GiGPO


def three(**signals):
    """Right after two turns, wrong after three, right at once; outcomes 1/3, -2/3, 1/3."""
    states = [[0, 5, -1], [0, 9, 5], [0, -1, -1]]
    return group([1.0, 0.0, 1.0], [1, 2, 0], **{"states": states, **signals})


def step(turns, **options):
    return credited(GiGPO, turns, **options).advantages - turns.outcome.unsqueeze(1)


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_who_stood_before_the_same_observation_by_hand():
    # D = 0.5, 1; 0, 0, 0; 1. The prompt: 0.5, 0, 1 -> mean 0.5. State 5: 1 and, a turn later, 0. State 9: nobody else
    turns = three()
    close(step(turns, turn_gamma=0.5), [[0.0, 0.5, 0.0], [-0.5, 0.0, -0.5], [0.5, 0.0, 0.0]])
    close(step(turns, turn_gamma=0.5, turn_advantage_coef=2.0)[:, 0], [0.0, -1.0, 1.0])
    close(step(turns, turn_gamma=0.5, turn_scale=True)[:, 1], [1.0, 0.0, 0.0])
    lone = credited(GiGPO, turns).columns["lone_state"]
    assert lone.nan_to_num(9).tolist() == [[0, 0, 9], [0, 1, 0], [0, 9, 9]]
    close(lone.nanmean(), 1 / 6)


def test_turn_rewards_join_the_return():
    # D = 0.5 - 2, 1; 0, 0, 0; 1 -> the prompt: -1.5, 0, 1, mean -1/6
    turns = three(turn_rewards=[[-2.0, NAN, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN]])
    close(step(turns, turn_gamma=0.5)[:, 0], [-4 / 3, 1 / 6, 7 / 6])


def test_a_state_may_be_met_twice_by_one_completion():
    # State 0 twice by the first: D = 1, 1, and 0 -> the mean over turns is 2/3
    turns = group([1.0, 0.0], [1, 0], states=[[0, 0], [0, -1]])
    close(step(turns, turn_gamma=1.0), [[1 / 3, 1 / 3], [-2 / 3, 0.0]])


def test_distinct_states_leave_grpo_and_the_first_turn():
    turns = three(states=[[0, 1, -1], [0, 2, 3], [0, -1, -1]])
    assert (step(turns)[:, 1:] == 0).all() and (step(turns)[:, 0] != 0).all()


def test_equal_states_of_other_prompts_are_other_states():
    alone = group([1.0, 0.0], [1, 1], states=[[0, 5], [0, 7]])
    both = group([1.0, 0.0, 0.0, 0.0], [1, 1, 1, 1], num_generations=2, states=[[0, 5], [0, 7], [0, 5], [0, 5]])
    assert (credited(GiGPO, both).columns["lone_state"][:2, 1] == 1).all()
    assert torch.equal(step(both)[:2], step(alone))
