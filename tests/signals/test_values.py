"""The signal `"values"`: where a critic is asked, what it is made of, and how it is trained beside the policy."""

import itertools
import logging

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, get_constant_schedule

import tiny
from a2tgpo_trl import A2TGPOTrainer
from a2tgpo_trl.batch import is_cut_off
from a2tgpo_trl.rollout import Rollout, StopReason, ToolCall, Turn
from a2tgpo_trl.signals.values import Critic, Values, value_places
from a2tgpo_trl.signals.values.critic import first_blocks
from conftest import ANSWER_ONLY, GROUP, correct, search, weights

NAN = torch.nan
METHOD = dict(advantage_estimator="turn_ppo")
EXACT = METHOD | dict(turn_gamma=1.0, gae_lambda=1.0, whiten_advantages=False)


def critic_of(trainer):
    return trainer.signals["values"].critic


def learned(trainer, seed=0):
    """The same trainer, whose critic tells states apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = critic_of(trainer).head.weight
        head.copy_(torch.randn(head.shape, generator=generator) / 4)
    return trainer


def roll_out(trainer, rows):
    trainer.model.train()
    return trainer._roll_out([dict(row) for row in rows[:4]])


def policy_of(architecture):
    return tiny.model(architecture, attn_implementation="eager" if architecture == "gemma2" else "sdpa")


def loss_of(trainer, batch):
    """TRL's loss of a whole generation batch, critic included."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._compute_loss(trainer.model, batch.tensors)


# Where it is asked


def test_places_by_hand():
    ids = torch.tensor([[0, 0, -1, 1, 1, -1], [0, 0, 0, -1, -1, -1], [-1] * 6])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0] * 6])
    # Before turns, and after all tokens: the second row ends with an observation
    assert value_places(ids, mask).tolist() == [[0, 3, 5], [0, 6, -1], [0, -1, -1]]


@pytest.mark.parametrize("layers", [2, 1, 0])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gemma2"])
def test_values_of_contexts_by_themselves(build, rows, architecture, layers):
    """One unpadded forward per context, up to the token before the turn."""
    trainer = learned(build(model=policy_of(architecture), critic_layers=layers, **METHOD))
    batch = roll_out(trainer, rows)
    critic, values = critic_of(trainer), batch.turns.signals["values"]
    model = trainer.model.get_decoder() if layers == 0 else critic.blocks
    seen = set()
    for row, rollout in zip(values, batch.rollouts, strict=True):
        context = list(rollout.prompt_ids)
        for k, turn in enumerate(rollout.turns):
            with torch.no_grad():
                hidden = model(input_ids=torch.tensor([context])).last_hidden_state[0, -1]
                expected = critic.head(hidden.float()).item()
            assert row[k].item() == pytest.approx(expected, abs=1e-4)
            seen.add(round(expected, 4))
            context += [*turn.ids, *turn.observation_ids]
        assert row[len(rollout.turns)] == 0 and row[len(rollout.turns) + 1 :].isnan().all()
    assert len(seen) > 3


@pytest.mark.parametrize("layers", [2, 0])
def test_a_value_does_not_depend_on_the_turn_that_follows(build, rows, layers):
    other = [list(turns) for turns in GROUP]
    other[3][1] = "<search>currency of Japan</search>"
    values = []
    for group in (GROUP, other):
        trainer = learned(build(group, critic_layers=layers, **METHOD))
        values.append(roll_out(trainer, rows).turns.signals["values"][3])
    assert_close(values[0][:2], values[1][:2])
    assert not torch.isclose(values[0][2], values[1][2])


def test_a_rollout_that_ends_with_a_call_was_cut_off():
    """TRL's loop says no reason, and a call ends with the end-of-sequence token as an answer does."""
    turn = Turn([5, 2], {}, calls=[ToolCall("search", {"query": "Lyon"})])
    assert is_cut_off(Rollout([1], [turn]), {2})


@pytest.mark.parametrize("reason", [None, *StopReason])
def test_which_rollouts_a_limit_cut_off(reason):
    for last, cut in ((2, False), (7, True)):
        rollout = Rollout([1], [Turn([5, last], {})], stop_reason=reason)
        by_itself = reason in (StopReason.ANSWERED, StopReason.TOOL_STOP)
        assert is_cut_off(rollout, {2}) == (cut if reason is None else not by_itself)


def test_a_rollout_that_was_cut_off_has_a_value_after_its_end(build, rows):
    trainer = learned(build(max_tool_calling_iterations=1, **EXACT))
    batch = roll_out(trainer, rows)
    reasons = [rollout.stop_reason for rollout in batch.rollouts]
    assert reasons == ["answered", "answered", "max_turns", "max_turns"]
    values, targets = batch.turns.signals["values"], batch.tensors["value_targets"]
    for row, target, rollout, reward in zip(values, targets, batch.rollouts, batch.turns.rewards, strict=True):
        n = len(rollout.turns)
        if rollout.stop_reason == "max_turns":
            context = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
            with torch.no_grad():
                hidden = critic_of(trainer).blocks(input_ids=context).last_hidden_state[0, -1]
            assert_close(row[n], critic_of(trainer).head(hidden)[0].detach(), rtol=1e-4, atol=1e-4)
        assert (row[n] == 0) == (rollout.stop_reason == "answered")
        assert_close(target[:n], (reward + row[n]).expand(n), rtol=1e-4, atol=1e-4)


# What it is made of


@pytest.mark.parametrize("architecture", tiny.CONFIGS)
def test_all_blocks_are_the_policys_decoder(architecture):
    policy = policy_of(architecture)
    ids = torch.arange(5, 25).view(2, 10)
    mask = torch.ones_like(ids)
    expected = policy.get_decoder().eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    assert_close(Critic(policy, 2).hidden_states(ids, mask), expected)
    fewer = Critic(policy, 1)
    assert fewer.blocks.config.num_hidden_layers == 1
    assert not torch.allclose(fewer.hidden_states(ids, mask), expected)
    assert policy.config.num_hidden_layers == 2


def test_adapters_are_left_out():
    plain, ids = tiny.model(), torch.arange(5, 15).view(1, 10)
    adapted = get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    hidden = [first_blocks(model, 2)(input_ids=ids).last_hidden_state for model in (plain, adapted)]
    assert torch.equal(*hidden)
    trained = get_peft_model(tiny.model(), LoraConfig(target_modules=["embed_tokens"], modules_to_save=["norm"]))
    assert torch.equal(first_blocks(trained, 2)(input_ids=ids).last_hidden_state, hidden[0])


def test_it_is_in_float32_whatever_the_policy_is_in():
    critic = Critic(tiny.model(dtype=torch.bfloat16), 1)
    assert {parameter.dtype for parameter in critic.parameters()} == {torch.float32}
    frozen = {name for name, parameter in critic.named_parameters() if not parameter.requires_grad}
    assert frozen == {"blocks.embed_tokens.weight"}
    assert (critic.head.weight == 0).all() and not critic.training


def test_making_it_takes_no_random_numbers():
    policy = tiny.model()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Critic(policy, 2)
    assert torch.equal(torch.rand(4), expected)


def test_more_blocks_than_there_are(build):
    with pytest.raises(
        ValueError, match="critic_layers=3, and the policy has 2 blocks to copy: choose at most as many"
    ):
        build(critic_layers=3, **METHOD)


def test_quantised_weights_are_not_copied():
    policy = tiny.model()
    projection = policy.model.layers[0].mlp.up_proj
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"weights are quantised: load the model without quantization, or .*critic_layers=0"
    ):
        Critic(policy, 1)
    Critic(policy, 0)


def test_a_policy_in_four_bits_has_a_head_alone(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny.model().save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    for model in (policy, get_peft_model(policy, LoraConfig(target_modules="all-linear"))):
        with pytest.raises(
            ValueError, match="critic_layers=2 copies the first blocks of the policy, whose weights are quan"
        ):
            Critic(model, 2)
        assert Critic(model, 0).blocks is None


# How it is trained


@pytest.mark.parametrize("layers", [2, 0])
def test_whom_its_loss_trains(build, rows, layers):
    trainer = learned(build(critic_layers=layers, learning_rate=1e-3, **EXACT))
    batch = roll_out(trainer, rows)
    batch.tensors["advantages"] = torch.zeros_like(batch.tensors["advantages"])  # nothing else to learn
    loss_of(trainer, batch).backward()
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    moved = {name for name, gradient in gradients.items() if gradient is not None and gradient.abs().max() > 0}
    assert moved == (set() if layers else gradients.keys() - {"lm_head.weight"})
    trained = [parameter for parameter in critic_of(trainer).parameters() if parameter.requires_grad]
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


def test_its_loss_by_hand(build, rows):
    trainer = learned(build(per_device_train_batch_size=4, steps_per_generation=1, vf_coef=0.3, **EXACT))
    batch = roll_out(trainer, rows)
    policy_alone = loss_of(trainer, batch)
    with torch.no_grad():
        critic_of(trainer).head.weight.mul_(1.5)
    loss = loss_of(trainer, batch)
    errors = []
    for row, rollout, reward in zip(batch.tensors["old_values"], batch.rollouts, batch.turns.rewards, strict=True):
        for old in row[: len(rollout.turns)]:
            new = 1.5 * old
            bounded = min(max(new, old - 0.2), old + 0.2)
            errors.append((max((new - reward) ** 2, (bounded - reward) ** 2), (old - reward) ** 2))
    assert len(errors) == 10  # each turn once
    after, before = (sum(part).item() / 10 for part in zip(*errors, strict=True))
    assert (loss - policy_alone).item() == pytest.approx(0.3 * (after - before), rel=1e-4)
    logged = trainer._metrics["train"]["critic/value_loss"]
    assert logged == pytest.approx([before, after], rel=1e-4)


def test_micro_batches_share_the_turns_of_the_whole_batch(build, rows):
    """1 × 4 rows or 2 × 2 of ragged turns, one optimizer step of plain gradient descent: the same critic."""
    critics, losses = [], []
    for size, splits in ((4, 1), (2, 2), (1, 4)):
        trainer = build(
            per_device_train_batch_size=size,
            steps_per_generation=splits,
            gradient_accumulation_steps=splits,
            max_steps=2,
            optim="sgd",
            critic_learning_rate=0.1,
            **EXACT,
        )
        trainer.train()
        critics.append(critic_of(trainer).state_dict())
        losses.append([row["critic/value_loss"] for row in trainer.state.log_history if "loss" in row])
    start = Critic(tiny.model(), 2).state_dict()
    assert (critics[0]["head.weight"] != start["head.weight"]).any()
    for other, logged in zip(critics[1:], losses[1:], strict=True):
        assert_close(other, critics[0], rtol=1e-4, atol=1e-6)
        assert logged == pytest.approx(losses[0], rel=1e-4)


def test_it_learns(build):
    trainer = build(max_steps=30, critic_learning_rate=3e-3, learning_rate=1e-6, cliprange_value=None, **EXACT)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "critic/explained_variance" in row]
    # Of ten turns four set out from the prompt, and three of them are right: 0.4 · 3/4 · 1/4 of the variance 0.9 · 0.1 remains
    assert logs[0]["critic/explained_variance"] < 0.01
    assert logs[-1]["critic/explained_variance"] == pytest.approx(1 - 0.075 / 0.09, abs=0.03)
    assert logs[0]["critic/value_loss"] > 0.8 and logs[-1]["critic/value_loss"] < 0.1


def test_it_learns_where_the_policy_has_nothing_to_learn(build):
    def alike(completions, **_):
        return [1.0] * len(completions)

    trainer = build(ANSWER_ONLY, reward=alike, skip_empty_updates=True, max_steps=2, **METHOD)
    policy, before = weights(trainer), critic_of(trainer).head.bias.clone()
    trainer.train()
    assert trainer.skipped_updates.num_empty == 2
    assert all(torch.equal(policy[name], value) for name, value in trainer.model.named_parameters())
    assert (critic_of(trainer).head.bias != before).all()


def test_its_gradient_is_clipped_by_itself_and_cleared(build):
    changes = []
    for steps in (1, 2):
        trainer = build(optim="sgd", max_grad_norm=1e-2, critic_learning_rate=0.5, max_steps=steps, **METHOD)
        trainer.train()
        start = Critic(tiny.model(), 2).state_dict()
        now = critic_of(trainer).state_dict()
        changes.append(torch.cat([(now[name] - start[name]).flatten() for name in start]).norm().item())
        assert all(parameter.grad is None for parameter in critic_of(trainer).parameters())
    assert changes[0] == pytest.approx(0.5 * 1e-2, rel=1e-2)
    assert changes[1] <= 2 * 0.5 * 1e-2 * 1.01
    assert trainer.state.log_history[0]["critic/grad_norm"] > 0.1  # before clipping


def test_gradients_that_are_not_finite_leave_it_alone(build, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    trainer = build(reward=lambda completions, **_: [3e38] + [0.0] * (len(completions) - 1), max_steps=1, **METHOD)
    before = {name: value.clone() for name, value in critic_of(trainer).state_dict().items()}
    trainer.train()
    assert_close(critic_of(trainer).state_dict(), before, rtol=0, atol=0)
    assert "The critic was left out of optimizer step 1: its gradient holds NaN or infinity" in caplog.text


def test_its_options_change_what_is_learned(build):
    def critic(**options):
        trainer = build(
            optim="sgd", max_grad_norm=1e6, max_steps=4, **METHOD | dict(critic_learning_rate=0.05) | options
        )
        trainer.train()
        return critic_of(trainer).head.weight.detach().clone()

    plain = critic()
    assert torch.equal(critic(), plain)
    choices = (dict(critic_learning_rate=0.02), dict(vf_coef=1.0), dict(cliprange_value=None), dict(critic_layers=1))
    results = [plain, *(critic(**options) for options in choices)]
    assert not any(torch.allclose(*pair) for pair in itertools.combinations(results, 2))


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules="all-linear")], ids=["full", "lora"])
@pytest.mark.parametrize("layers", [2, 0])
def test_a_run_that_is_resumed_is_the_run_that_went_on(build, layers, adapter, tmp_path):
    options = METHOD | dict(critic_layers=layers, critic_learning_rate=1e-3, peft_config=adapter, max_steps=4)
    options |= dict(lr_scheduler_type="linear", gradient_accumulation_steps=2, save_strategy="steps", save_steps=2)
    whole = build(**options)
    whole.train()
    saved = torch.load(tmp_path / "run" / "checkpoint-2" / "critic.pt", weights_only=True)
    resumed = build(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_close(critic_of(resumed).state_dict(), critic_of(whole).state_dict(), rtol=0, atol=0)
    assert_close(weights(resumed), weights(whole), rtol=0, atol=0)
    assert (saved["head.weight"] != critic_of(whole).head.weight).any()
    assert resumed.optimizer.param_groups[-1]["initial_lr"] == 1e-3


def test_checkpoints_without_its_weights_or_with_others(build, tmp_path):
    saving = dict(save_strategy="steps", save_steps=2, max_steps=2)
    build(**saving, **METHOD).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    with pytest.raises(ValueError, match="holds another critic than critic_layers=1 of this model has"):
        build(**saving | dict(max_steps=4), critic_layers=1, **METHOD).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / "critic.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 has no critic\.pt.*advantage_estimator='turn_ppo'"):
        build(**saving | dict(max_steps=4), **METHOD).train(resume_from_checkpoint=str(checkpoint))


def test_the_best_checkpoint_has_its_critic(build, tmp_path):
    trainer = build(save_strategy="steps", save_steps=1, max_steps=2, critic_learning_rate=0.1, **METHOD)
    trainer.train()
    saved = torch.load(tmp_path / "run" / "checkpoint-1" / "critic.pt", weights_only=True)
    assert (saved["head.weight"] != critic_of(trainer).head.weight).any()
    trainer.state.best_model_checkpoint = str(tmp_path / "run" / "checkpoint-1")
    trainer._load_best_model()
    assert_close(critic_of(trainer).state_dict(), saved, rtol=0, atol=0)


def test_a_trainer_trains_again(build):
    trainer = build(max_steps=1, **METHOD)
    trainer.train()
    groups = len(trainer.optimizer.param_groups)
    trainer.train()
    assert len(trainer.optimizer.param_groups) == groups
    assert trainer.optimizer.param_groups[-1]["lr"] == 1e-5
    assert trainer.lr_scheduler.get_last_lr()[0] == 1e-3


# What it does not go with


@pytest.mark.parametrize(("flag", "name"), [("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")])
def test_sharded_models_are_refused(build, flag, name):
    trainer = build(**METHOD)
    setattr(trainer, flag, True)
    with pytest.raises(ValueError, match=rf"'turn_ppo' trains a critic beside the policy, and {name} takes one model"):
        Values(trainer)


def test_scaled_gradients_of_several_processes_are_refused(build, monkeypatch):
    trainer = build(**METHOD)
    trainer.args.fp16 = True
    Values(trainer)
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda accelerator: 2))
    with pytest.raises(ValueError, match=r"with fp16=True processes could leave out different steps.*set bf16=True"):
        Values(trainer)


def test_a_schedule_of_ones_own_is_refused(config, rows, monkeypatch):
    tiny.Script(GROUP).install(monkeypatch)

    def build(with_schedule):
        model = tiny.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        schedule = get_constant_schedule(optimizer) if with_schedule else None
        return A2TGPOTrainer(
            model, correct, config(**METHOD), Dataset.from_list(rows), processing_class=tiny.tokenizer(), tools=[search],
            optimizers=(optimizer, schedule),
        )  # fmt: skip

    with pytest.raises(
        ValueError, match=r"the schedule of learning rates in optimizers was made without it: pass \(optimizer, None\)"
    ):
        build(True)
    trainer = build(False)
    trainer.train()
    assert (critic_of(trainer).head.weight != 0).any()


def test_a_frozen_policy_is_refused_but_played(build, rows):
    trainer = build(per_device_eval_batch_size=4, **METHOD)
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter of the model is trainable"):
        trainer.train()
    assert trainer.play(rows[:1], num_generations=4)[0].turns[0].credit["value"] == 0.0
