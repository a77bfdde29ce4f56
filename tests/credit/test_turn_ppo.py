"""The estimator `"turn_ppo"`."""

import logging
import math

import loops
import pytest
import torch
from datasets import Dataset
from loops import NAN, credited, group, options_of
from torch.testing import assert_close

import tiny
from a2tgpo_trl.credit import Estimator, TurnCredit, TurnPPO, Turns, check_credit
from a2tgpo_trl.functional import spread_turns
from a2tgpo_trl.records import read_turns
from conftest import CHAT_ROWS, chat_correct, chat_rollouts

PLAIN = dict(whiten_advantages=False, turn_gamma=1.0, gae_lambda=1.0)


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9, equal_nan=True)


def two(values, rewards=(1.0, 0.0), **signals):
    """A rollout of three turns and one of a single one."""
    return group(list(rewards), [2, 0], values=values, **signals)


VALUES = [[0.25, 0.5, 0.75, 0.0], [0.5, 0.0, NAN, NAN]]


def test_outcome_alone_without_discounts_is_the_reward_beyond_the_value():
    credit = credited(TurnPPO, two(VALUES), **PLAIN)
    close(credit.advantages, [[0.75, 0.5, 0.25], [-0.5, 0.0, 0.0]])
    close(credit.value_targets, [[1.0, 1.0, 1.0], [0.0, NAN, NAN]])
    close(credit.columns["value"], [[0.25, 0.5, 0.75], [0.5, NAN, NAN]])
    assert credit.columns["return"] is credit.value_targets


def test_without_values_it_is_the_return_to_go():
    own = [[0.5, NAN, -0.25], [NAN, NAN, NAN]]
    turns = two([[0.0] * 4, [0.0, 0.0, NAN, NAN]], turn_rewards=own)
    credit = credited(TurnPPO, turns, **PLAIN | dict(turn_gamma=0.5))
    close(credit.advantages, [[0.5 + 0.25 * 0.75, 0.5 * 0.75, 0.75], [0.0, 0.0, 0.0]])


def test_without_lambda_it_is_one_step_ahead():
    credit = credited(TurnPPO, two(VALUES), **PLAIN | dict(gae_lambda=0.0, turn_gamma=0.5))
    close(credit.advantages, [[0.0, -0.125, 0.25], [-0.5, 0.0, 0.0]])
    close(credit.value_targets, [[0.25, 0.375, 1.0], [0.0, NAN, NAN]])


@pytest.mark.parametrize("gamma_and_lambda", [(1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_one_turn_is_a_bandit(gamma_and_lambda):
    turns = group([1.0, 0.5, 0.0], [0, 0, 0], values=[[0.25, 0.0]] * 3)
    gamma, lam = gamma_and_lambda
    credit = credited(TurnPPO, turns, whiten_advantages=False, turn_gamma=gamma, gae_lambda=lam)
    close(credit.advantages, [[0.75], [0.25], [-0.25]])
    whitened = credited(TurnPPO, turns, turn_gamma=gamma, gae_lambda=lam).advantages
    deviation = math.sqrt(1 / 6) + 1e-6
    close(whitened, [[0.5 / deviation], [0.0], [-0.5 / deviation]])


def test_a_perfect_critic_of_a_chain_leaves_nothing_to_learn():
    turns = group([1.0], [2], values=[[0.81, 0.9, 1.0, 0.0]])
    credit = credited(TurnPPO, turns, whiten_advantages=False, turn_gamma=0.9, gae_lambda=0.7)
    close(credit.advantages, [[0.0, 0.0, 0.0]])
    close(credit.value_targets, [[0.81, 0.9, 1.0]])


def test_a_rollout_that_was_cut_off_goes_on_with_its_value():
    turns = group([0.0], [2], num_turns=[2], values=[[0.5, 0.25, 0.5]])
    credit = credited(TurnPPO, turns, **PLAIN | dict(turn_gamma=0.5))
    close(credit.value_targets, [[0.125, 0.25]])
    close(credit.advantages, [[-0.375, 0.0]])


def test_what_nobody_scored_teaches_neither():
    credit = credited(TurnPPO, two(VALUES, rewards=(1.0, NAN)), **PLAIN)
    close(credit.advantages, [[0.75, 0.5, 0.25], [0.0, 0.0, 0.0]])
    assert credit.value_targets[1].isnan().all() and credit.columns["value"][1].isnan().all()


# In the trainer


class Watched(TurnPPO):
    """Keeps what it was given."""

    def credit(self, turns, options):
        self.turns = turns
        return super().credit(turns, options)


def lengths(turns, **columns):
    return [[len(turn.ids) / 10 if k != 1 else None for k, turn in enumerate(own)] for own in turns]


def test_rollouts_with_tools(score):
    batch, trainer = score(advantage_estimator=Watched(), turn_reward_funcs=lengths, **PLAIN)
    turns = trainer.estimator.turns
    assert {"values", "turn_rewards"} == turns.signals.keys()
    expected = torch.tensor(loops.turn_ppo(turns, options_of(TurnPPO, **PLAIN)))
    assert_close(batch["advantages"], spread_turns(expected, batch["turn_ids"], 0.0), rtol=1e-5, atol=1e-5)
    assert batch["num_value_targets"] == 1 + 2 + 4 + 3 and batch["value_targets"].shape == (4, 4)
    assert (batch["old_values"].nan_to_num() == 0).all()  # the critic is new
    assert not batch["advantages"].requires_grad and not batch["value_targets"].requires_grad


@pytest.mark.parametrize("layers", [2, 0])
def test_it_trains_with_tags(build, layers):
    trainer = build(advantage_estimator="turn_ppo", critic_layers=layers, turn_reward_funcs=lengths, max_steps=3)
    before = {name: value.clone() for name, value in trainer.signals["values"].critic.state_dict().items()}
    policy = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    after = trainer.signals["values"].critic.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == before.keys() - {"blocks.embed_tokens.weight"}
    assert all(not torch.equal(policy[name], value) for name, value in trainer.model.named_parameters())
    first = trainer.state.log_history[0]
    names = {"critic/value_loss", "critic/clip_ratio", "critic/grad_norm", "critic/explained_variance"}
    assert names | {"value/mean", "return/mean"} <= first.keys()
    rows = read_turns(trainer.args.output_dir).to_pylist(maps_as_pydicts="strict")
    assert all(row["estimator_columns"].keys() == {"value", "return"} for row in rows)
    assert rows[0]["clip_low"] == pytest.approx(0.8) and rows[0]["clip_high"] == pytest.approx(1.2)


def test_it_trains_with_the_calls_of_a_chat_template(build):
    trainer = build(
        chat_rollouts(),
        advantage_estimator="turn_ppo",
        processing_class=tiny.chat_tokenizer(),
        dataset=Dataset.from_list(CHAT_ROWS),
        reward=chat_correct,
        eval_dataset=Dataset.from_list(CHAT_ROWS[:1]),
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    logged = {name: value for row in trainer.state.log_history for name, value in row.items()}
    assert logged["critic/value_loss"] > 0 and logged["eval_critic/value_loss"] > 0


def test_play_tells_the_values(build, rows):
    trainer = build(advantage_estimator="turn_ppo", per_device_eval_batch_size=4, max_steps=1)
    trainer.train()
    played = trainer.play(rows[:1], num_generations=4)
    values = [turn.credit["value"] for rollout in played for turn in rollout.turns]
    assert len(set(values)) > 3 and all(math.isfinite(value) for value in values)


def loss_of(trainer, batch):
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._metrics["train"].clear()
    return trainer._compute_loss(trainer.model, batch)


def off_policy(batch):
    """The same batch, old log-probabilities a little off."""
    noise = torch.randn(batch["completion_ids"].shape, generator=torch.Generator().manual_seed(1))
    return batch | {"old_per_token_logps": batch["old_per_token_logps"] + 0.1 * noise}


def test_the_loss_is_clipped_by_the_product_of_a_turn(score):
    """TRL's loss with the product's ratios, token by token, is a mean over tokens of one term per turn."""
    batch, trainer = score(advantage_estimator="turn_ppo")
    batch = off_policy(batch)
    loss = loss_of(trainer, batch) - trainer.signals["values"].loss(batch)
    with torch.no_grad():
        args = (
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        )
        logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, *args, batch["completion_ids"].size(1))
    terms, clipped, tokens = 0.0, 0, 0
    for row in range(4):
        for turn in range(int(batch["turn_ids"][row].max()) + 1):
            of_turn = batch["turn_ids"][row] == turn
            ratio = (logps - batch["old_per_token_logps"])[row][of_turn].sum().exp().item()
            advantage, size = batch["advantages"][row][of_turn][0].item(), int(of_turn.sum())
            bounded = min(max(ratio, 0.8), 1.2)
            terms += min(ratio * advantage, bounded * advantage) * size
            clipped += size * (ratio * advantage > bounded * advantage)
            tokens += size
    window = tokens * trainer.args.gradient_accumulation_steps / trainer.args.steps_per_generation
    assert loss.item() == pytest.approx(-terms / window, rel=1e-4)
    assert trainer._metrics["train"]["clip_ratio/region_mean"][0] == pytest.approx(clipped / tokens)
    assert 0 < clipped < tokens


def test_off_policy_masks_see_the_tokens_own_ratios(score):
    """`off_policy_mask_threshold` sums log ratios over the completion, which the product would count once for each token."""

    def dropped(level, threshold):
        batch, trainer = score(
            advantage_estimator="turn_ppo", importance_sampling_level=level, off_policy_mask_threshold=threshold
        )
        batch = off_policy(batch)
        keeps, original = [], trainer.get_off_policy_mask
        trainer.get_off_policy_mask = lambda **given: keeps.append(original(**given)) or keeps[-1]
        loss_of(trainer, batch)
        return keeps[0].flatten().tolist()

    for threshold in (1e-4, 1e-2, 3e-2, 0.1):
        assert dropped("turn_product", threshold) == dropped("token", threshold) == dropped("turn", threshold)
    assert dropped("turn_product", 1e-4) != dropped("turn_product", 1e9)


def test_options_change_what_they_say(score):
    plain, _ = score(advantage_estimator="turn_ppo")
    for options in (dict(turn_gamma=0.5), dict(gae_lambda=0.2), dict(whiten_advantages=False)):
        changed, _ = score(advantage_estimator="turn_ppo", **options)
        assert not torch.allclose(changed["advantages"], plain["advantages"]), options


def test_defaults(config):
    args = config(advantage_estimator="turn_ppo")
    assert (args.importance_sampling_level, args.epsilon, args.epsilon_high) == ("turn_product", 0.2, 0.2)
    assert (args.loss_type, args.turn_gamma, args.gae_lambda, args.skip_empty_updates) == ("dapo", 0.99, 0.9, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(gae_lambda=1.5), r"gae_lambda \(λ\) must be in \[0, 1\], got 1.5"),
        (dict(critic_layers=-1), r"critic_layers \(blocks\) must be at least 0 \(0: a head on the policy\), got -1"),
        (dict(critic_learning_rate=0.0), r"critic_learning_rate \(per step\) must be above 0, got 0.0"),
        (dict(vf_coef=0.0), r"vf_coef \(weight\) must be above 0, got 0.0"),
        (dict(cliprange_value=0.0), r"cliprange_value \(reward\) must be above 0, or None for no limit, got 0.0"),
        (
            dict(turn_credit_groups="mixed"),
            r"turn_credit_groups='mixed' has no effect with advantage_estimator='turn_ppo'",
        ),
        (
            dict(loss_type="vespo"),
            r"loss_type='vespo' sums the log ratios of tokens.*'turn_product'.*another loss type",
        ),
    ],
)
def test_bad_options(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(advantage_estimator="turn_ppo", **options)


@pytest.mark.parametrize("option", ["gae_lambda", "whiten_advantages", "critic_layers", "vf_coef", "cliprange_value"])
def test_options_of_a_critic_need_one(config, option):
    with pytest.raises(ValueError, match=rf"{option}=\S+ has no effect with advantage_estimator='gtpo'.*'turn_ppo'"):
        config(
            advantage_estimator="gtpo", **{option: {"critic_layers": 1, "whiten_advantages": False}.get(option, 0.3)}
        )


def test_a_wide_range_suits_the_product(build, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    build(advantage_estimator="turn_ppo")
    assert "suit the ratio of a token" not in caplog.text
    build(advantage_estimator="turn_ppo", importance_sampling_level="turn", epsilon=0.2)
    assert "suit the ratio of a token" in caplog.text


class NeverTaught(Estimator):
    signals = ("values",)


def test_a_critic_that_is_asked_must_be_taught():
    turns = two(VALUES)
    with pytest.raises(ValueError, match=r"NeverTaught asks a critic and teaches it nothing: give .*value_targets"):
        check_credit(NeverTaught(), turns, TurnCredit(turns.outcome))
    without = Turns(turns.outcome, turns.rewards, turns.num_turns, turns.num_tool_turns, 2)
    targets = torch.zeros(2, 3)
    with pytest.raises(ValueError, match='NeverTaught gave value_targets, and no critic was asked: state "values"'):
        check_credit(NeverTaught(), without, TurnCredit(turns.outcome, value_targets=targets))
    with pytest.raises(ValueError, match=r"gave value_targets of shape \(2,\): expected \(2, 3\)"):
        check_credit(NeverTaught(), turns, TurnCredit(turns.outcome, value_targets=targets[:, 0]))
