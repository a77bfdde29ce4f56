"""NaN and infinity from wherever numbers come: they are counted, said, and never reach a weight."""

import logging
import math
from itertools import product

import pytest
import torch

import tiny
from a2tgpo_trl.credit import ESTIMATORS
from a2tgpo_trl.functional import turn_level_old_logps
from a2tgpo_trl.signals.beliefs.scoring import BeliefScorer
from a2tgpo_trl.signals.values.critic import Critic
from conftest import GROUP, needed_by, same, weights
from thorough import sampled

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def warnings_are_seen(monkeypatch):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)


def is_finite(module):
    return all(value.isfinite().all() for value in module.state_dict().values())


def first_log(trainer):
    return trainer.state.log_history[0]


# ---- turn rewards


@pytest.mark.parametrize(
    ("estimator", "value"),
    sampled(product(["mt_grpo", "gtpo", "gigpo", "turn_ppo"], [NAN, -INF, 1e39]), ("mt_grpo", NAN), ("gigpo", 1e39)),
)
def test_a_turn_reward_that_is_no_finite_number_counts_as_none(build, caplog, estimator, value):
    def trained(broken):
        def odd(turns, **columns):
            rewards = [[0.25 * k for k, _ in enumerate(own)] for own in turns]
            rewards[1][0] = broken
            return rewards

        caplog.clear()
        trainer = build(advantage_estimator=estimator, turn_reward_funcs=[odd])
        trainer.train()
        told = [r.getMessage() for r in caplog.records if "Turn reward function 'odd' returned NaN" in r.getMessage()]
        return trainer, told

    expected, told = trained(None)
    assert told == [] and first_log(expected)["turn_rewards/odd/non_finite"] == 0
    trainer, told = trained(value)
    assert first_log(trainer)["turn_rewards/odd/non_finite"] == 1
    assert len(told) == 1 and "for 1 turns" in told[0] and "The first is turn 0 of rollout 1" in told[0]
    assert is_finite(trainer.model) and same(weights(trainer), weights(expected))


def test_a_sum_of_turn_rewards_that_overflows_is_none(build):
    def large(turns, **columns):
        return [[3e38 if k == 0 else 1.0 for k, _ in enumerate(own)] for own in turns]

    trainer = build(advantage_estimator="gigpo", turn_reward_funcs=[large, large], per_device_eval_batch_size=4)
    trainer.train()
    assert first_log(trainer)["updates/non_finite"] == 0 and is_finite(trainer.model)
    played = trainer.play([{"prompt": "x", "answer": ["Paris"]}], num_generations=4)
    assert [turn.credit["turn_reward"] for turn in played[2].turns] == [None, 2.0, 2.0, 2.0]


# ---- a critic


def with_broken_values(monkeypatch, value):
    """A critic that gives the rollouts of the second row of each forward this value before their first turn."""
    original = Critic.forward

    def broken(critic, *args):
        values = original(critic, *args)
        if not torch.is_grad_enabled():
            values[1, 0] = value
        return values

    monkeypatch.setattr(Critic, "forward", broken)


@pytest.mark.parametrize("value", sampled([NAN, INF, -INF], NAN, INF))
def test_a_rollout_whose_value_is_broken_has_no_credit_and_teaches_nothing(build, rows, monkeypatch, caplog, value):
    def credited():
        trainer = build(advantage_estimator="turn_ppo", whiten_advantages=False, steps_per_generation=1,
                        per_device_train_batch_size=4)  # fmt: skip
        trainer.model.train()
        return trainer, trainer._roll_out([dict(row) for row in rows[:4]]).tensors

    _, expected = credited()
    with_broken_values(monkeypatch, value)
    trainer, batch = credited()
    assert trainer._metrics["train"]["critic/non_finite_values"] == [1.0]
    assert "The critic gave NaN or infinity for 1 rollouts" in caplog.text
    others = [0, 2, 3]
    assert (batch["advantages"][1] == 0).all() and batch["value_targets"][1].isnan().all()
    for name in ("advantages", "value_targets"):
        torch.testing.assert_close(batch[name][others], expected[name][others], equal_nan=True)


@pytest.mark.parametrize("value", sampled([NAN, INF], INF))
def test_broken_values_never_reach_weights(build, monkeypatch, value):
    with_broken_values(monkeypatch, value)
    trainer = build(advantage_estimator="turn_ppo", max_steps=4)
    start = weights(trainer)
    trainer.train()
    critic = trainer.signals["values"].critic
    assert is_finite(trainer.model) and is_finite(critic)
    assert not same(start, weights(trainer)) and critic.head.weight.abs().sum() > 0  # of the other rollouts both learn
    assert [first_log(trainer)[f"critic/{name}"] for name in ("non_finite_values", "non_finite")] == [2, 0]


def test_steps_that_leave_the_critic_out_are_counted(build):
    trainer = build(advantage_estimator="turn_ppo", reward=lambda completions, **_: [3e38] + [0.0] * 3, max_steps=1)
    trainer.train()
    assert first_log(trainer)["critic/non_finite"] == 1 and is_finite(trainer.signals["values"].critic)


# ---- beliefs


READ_BELIEFS = [name for name, method in ESTIMATORS.items() if "beliefs" in method.signals]


@pytest.mark.parametrize(
    ("estimator", "value"), sampled(product(READ_BELIEFS, [NAN, INF, -INF]), ("a2tgpo", NAN), ("trace", INF))
)
def test_a_belief_that_is_no_finite_number_is_no_belief(build, rows, monkeypatch, estimator, value):
    original = BeliefScorer._score

    def broken(scorer, *args, **inputs):
        logps = original(scorer, *args, **inputs).clone()
        logps[..., 0] = value
        return logps

    monkeypatch.setattr(BeliefScorer, "_score", broken)
    trainer = build(advantage_estimator=estimator)
    trainer.train()
    logged = first_log(trainer)
    assert logged["information_gain/unscorable_turns"] > 0
    assert all(log["updates/non_finite"] == 0 for log in trainer.state.log_history[:2])
    assert is_finite(trainer.model)
    trainer.model.train()
    batch = trainer._roll_out([dict(row) for row in rows[:4]])
    assert batch.tensors["advantages"].isfinite().all() and not batch.turns.signals["beliefs"].isinf().any()


# ---- log-probabilities


def test_an_infinite_ratio_of_a_turn_is_broken_and_a_large_one_is_not():
    ids = torch.tensor([[0, 0, -1, 1]])
    logps, old = torch.full((1, 4), -1.0), torch.tensor([[-1.0, -INF, -INF, -60.0]])
    given = turn_level_old_logps(logps, old, ids, "sum")
    assert given[0, :2].tolist() == [-INF, -INF] and given[0, 2:].tolist() == [-1.0, -21.0]


@pytest.mark.parametrize(
    ("level", "value"),
    sampled(product(["turn", "turn_product", "token"], [NAN, -INF]), ("turn", NAN), ("turn_product", -INF)),
)
def test_an_old_log_probability_that_is_broken_costs_its_update(build, level, value):
    trainer = build(importance_sampling_level=level, epsilon=5.0, max_steps=2)
    generate = trainer._generate_and_score_completions

    def poisoned(inputs):
        batch = generate(inputs)
        batch["old_per_token_logps"][batch["advantages"][:, 0].argmin(), 0] = (
            value  # that is not clipped: its advantage is negative
        )
        return batch

    trainer._generate_and_score_completions = poisoned
    trainer.train()
    assert sum(log.get("updates/non_finite", 0) for log in trainer.state.log_history) == 1
    assert trainer.skipped_updates.num_non_finite == 1 and is_finite(trainer.model)


@pytest.mark.parametrize("value", sampled([NAN, INF], NAN))
def test_a_policy_that_computes_nan_is_not_trained_on_it(build, value):
    trainer = build(max_steps=2)
    start = weights(trainer)

    def poison(module, args, output):
        if module.training and torch.is_grad_enabled():
            output = output.clone()
            output[0, -2] = output[0, -2] * value
        return output

    trainer.model.model.norm.register_forward_hook(poison)
    trainer.train()
    assert trainer.skipped_updates.num_non_finite == 2 and same(start, weights(trainer))


# ---- nothing to learn


@pytest.mark.parametrize("estimator", sampled(ESTIMATORS, "a2tgpo", "returns", "turn_ppo", "at2po"))
def test_a_batch_that_nothing_scored_moves_nothing(build, estimator):
    """Neither momentum nor weight decay: policy and critic stay as the first batch left them."""
    calls = []

    def once(completions, **columns):
        calls.append(1)
        return [0.0, 1.0, 1.0, 0.5] if len(calls) == 1 else [None] * 4

    trainer = build(
        GROUP, advantage_estimator=estimator, reward=once, skip_empty_updates=True, weight_decay=0.1, max_steps=4,
        turn_reward_funcs=[lambda turns, **_: [[0.5 * k for k, _ in enumerate(own)] for own in turns]]
        if {"turn_rewards"} & {*ESTIMATORS[estimator].signals, *ESTIMATORS[estimator].optional_signals} else None,
        **needed_by(estimator),
    )  # fmt: skip
    critic = trainer.signals["values"].critic if "values" in trainer.signals else tiny.torch.nn.Module()
    states = []
    step = trainer.training_step

    def watched(*args, **kwargs):
        states.append({**weights(trainer), **{f"critic.{k}": v.clone() for k, v in critic.state_dict().items()}})
        return step(*args, **kwargs)

    trainer.training_step = watched
    trainer.train()
    end = {**weights(trainer), **{f"critic.{k}": v for k, v in critic.state_dict().items()}}
    assert not same(states[0], states[1])  # the first batch is learned from
    assert same(states[2], states[3]) and same(states[2], end)
    assert [log["updates/empty"] for log in trainer.state.log_history[2:4]] == [1, 1]
