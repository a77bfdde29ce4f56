"""The weight α over a run."""

from types import SimpleNamespace

import pytest
import torch

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import Turns, scheduled


@pytest.fixture
def turns():
    """Two groups of two: rewards differ in the first alone."""
    return Turns(
        outcome=torch.tensor([1.0, -1.0, 0.0, 0.0]),
        rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]),
        num_turns=torch.full((4,), 2),
        num_tool_turns=torch.ones(4, dtype=torch.long),
        num_generations=2,
    )


@pytest.mark.parametrize(
    ("schedule", "progress", "coef"),
    [
        ("constant", 0.7, 0.4),
        ("linear", 0.0, 0.4),
        ("linear", 0.75, 0.1),
        ("linear", 1.0, 0.0),
        ("mixed_share", 0.7, 0.2),
    ],
)
def test_weight(turns, schedule, progress, coef):
    options = SimpleNamespace(turn_advantage_coef=0.4, turn_gamma=1.0)
    after = scheduled(options, schedule, progress, turns)
    assert after.turn_advantage_coef == pytest.approx(coef) and after.turn_gamma == 1.0
    assert options.turn_advantage_coef == 0.4  # the configuration's own is not touched


def test_a_method_without_a_weight_has_no_schedule(turns):
    options = SimpleNamespace(turn_gamma=1.0)
    assert scheduled(options, "linear", 0.5, turns) is options


@pytest.mark.parametrize(("schedule", "factors"), [("linear", [1, 0.5]), ("mixed_share", [0.5, 0.5])])
def test_turn_credit_follows_it(build, schedule, factors):
    """Four steps with two batches of the same rollouts, in which one group of two is mixed."""

    def turn_parts(schedule):
        options = dict(
            turn_advantage_schedule=schedule, learning_rate=0.0, num_generations=2, max_steps=4, logging_steps=1
        )
        trainer = build(**options)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "frac_reward_zero_std" in log]
        assert [log["frac_reward_zero_std"] for log in logs] == [0.5, 0.5]
        return [log["advantages/turn_part_abs_mean"] for log in logs]

    constant = turn_parts("constant")
    assert min(constant) > 0
    assert turn_parts(schedule) == pytest.approx(
        [value * factor for value, factor in zip(constant, factors, strict=True)]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(turn_advantage_schedule="x"),
            "turn_advantage_schedule must be one of 'constant', 'linear', 'mixed_share'",
        ),
        (
            dict(turn_advantage_schedule="linear", advantage_estimator="grpo"),
            "turn_advantage_schedule='linear' has no effect",
        ),
        (
            dict(turn_advantage_schedule="linear", advantage_estimator="igpo"),
            "turn_advantage_schedule='linear' has no effect",
        ),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        A2TGPOConfig(str(tmp_path), **options)
