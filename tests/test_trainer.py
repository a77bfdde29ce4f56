"""The trainer end to end on a tiny model whose generations are scripted."""

import copy
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import LlamaForSequenceClassification, LlamaModel, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import tiny
from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.batch import GenerationBatch
from a2tgpo_trl.callbacks.skip_updates import SkipUpdates
from a2tgpo_trl.credit import GRPO
from a2tgpo_trl.functional import spread_turns, turn_ids, turn_log_ratio
from a2tgpo_trl.integrations.plain import CONTROL
from a2tgpo_trl.records import read_turns
from a2tgpo_trl.rewards import exact_match_reward
from a2tgpo_trl.signals.beliefs import BeliefScorer
from conftest import (
    ANSWER_ONLY,
    CHAT_ROWS,
    GROUP,
    QUESTION,
    chat_correct,
    chat_rollouts,
    correct,
    same,
    search,
    weights,
)

NAN = math.nan


# ---- the scored batch


def test_scored_batch(score):
    batch, _ = score()
    ids, masks = batch["turn_ids"], (batch["completion_mask"], batch["tool_mask"])
    assert torch.equal(ids, turn_ids(*masks))
    assert (ids.amax(dim=1) + 1).tolist() == [1, 2, 4, 3]
    gains = batch["information_gain"]
    assert gains.shape == (4, 4)
    assert (~gains.isnan()).sum(1).tolist() == [0, 1, 3, 2]
    assert batch["advantages"].shape == batch["clip_scale"].shape == ids.shape
    assert (batch["advantages"][ids < 0] == 0).all()
    assert (batch["clip_scale"][ids < 0] == 1).all()
    # rewards 0 1 1 1: mean 3/4, sample deviation 1/2, TRL's outcome advantages ∓(…)/(1/2 + 1e-4)
    outcome = torch.tensor([-0.75, 0.25, 0.25, 0.25]) / (0.5 + 1e-4)
    last_turn = torch.tensor([row[mask].tolist()[-1] for row, mask in zip(batch["advantages"], ids >= 0, strict=True)])
    torch.testing.assert_close(last_turn, outcome)


def test_advantages_and_clip_scales_by_hand(score):
    batch, _ = score()
    g = batch["information_gain"].double()
    outcome = torch.tensor([-0.75, 0.25, 0.25, 0.25]).double() / (0.5 + 1e-4)

    def z(values):
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        return [(v - mean) / (std + 1e-6) for v in values]

    first = z([g[1, 0].item(), g[2, 0].item(), g[3, 0].item()])  # turn group 0: rows 1, 2, 3
    second = z([g[2, 1].item(), g[3, 1].item()])  # turn group 1: rows 2, 3; turn group 2 is row 2 alone: 0
    expected = torch.tensor(
        [
            [outcome[0], NAN, NAN, NAN],
            [outcome[1] + 0.3 * first[0], outcome[1], NAN, NAN],
            [
                outcome[2] + 0.3 * (first[1] + second[0] + 0) / math.sqrt(3),
                outcome[2] + 0.3 * (second[0] + 0) / math.sqrt(2),
                outcome[2],
                outcome[2],
            ],
            [outcome[3] + 0.3 * (first[2] + second[1]) / math.sqrt(2), outcome[3] + 0.3 * second[1], outcome[3], NAN],
        ]
    ).float()
    ids = batch["turn_ids"]
    torch.testing.assert_close(batch["advantages"], spread_turns(expected, ids, 0.0), atol=1e-4, rtol=1e-4)

    def c(gain):
        return 1 + 0.3 * (2 / (1 + math.exp(-gain)) - 1)

    scales = torch.tensor(
        [
            [1.0, 1.0, 1.0, 1.0],
            [c(first[0]), 1.0, 1.0, 1.0],
            [c(first[1]), c(second[0]), 1.0, 1.0],
            [c(first[2]), c(second[1]), 1.0, 1.0],
        ]
    )
    torch.testing.assert_close(batch["clip_scale"], spread_turns(scales, ids, 1.0), atol=1e-4, rtol=1e-4)


def test_gains_are_differences_of_the_policys_own_beliefs(score):
    batch, _ = score()
    tokenizer, model = tiny.tokenizer(), tiny.model().eval()
    prompt = tokenizer(QUESTION)["input_ids"]
    text = "<search>Lyon</search>"
    context = prompt + tokenizer(text)["input_ids"]
    for piece in ("\n<result>", "Lyon is in France.", "</result>\n"):
        context = context + tokenizer(piece)["input_ids"]

    def belief(ids):
        opening, answer = tokenizer("<answer>")["input_ids"], tokenizer("Paris")["input_ids"]
        assert tokenizer("<answer>Paris</answer>")["input_ids"][: len(opening) + len(answer)] == opening + answer
        with torch.no_grad():
            logps = model(torch.tensor([ids + opening + answer])).logits.log_softmax(-1)[0]
        start = len(ids) + len(opening)
        return sum(logps[start + i - 1, token].item() for i, token in enumerate(answer)) / len(answer)

    assert batch["information_gain"][1, 0].item() == pytest.approx(belief(context) - belief(prompt), abs=1e-4)


def test_a_row_without_an_answer_learns_from_its_outcome_only(score, rows):
    rows[2] = {"prompt": QUESTION, "answer": []}

    def reward(completions, **kwargs):
        return [0.0, 1.0, 1.0, 1.0]

    batch, trainer = score(reward=reward)
    assert batch["information_gain"][2].isnan().all()
    values = batch["advantages"][2][batch["turn_ids"][2] >= 0]
    assert values.unique().numel() == 1
    metrics = trainer._metrics["train"]
    assert metrics["information_gain/rows_without_answer"] == [1.0]
    assert metrics["information_gain/unscorable_turns"] == [3.0]


def test_the_first_alias_that_is_not_empty_is_scored_and_recorded(score, rows):
    expected, _ = score()
    rows[:] = [{"prompt": QUESTION, "answer": ["", "Paris"]}] * 8

    def reward(completions, answer, **kwargs):
        return correct(completions, [aliases[1:] for aliases in answer])

    batch, trainer = score(reward=reward)
    torch.testing.assert_close(batch["information_gain"], expected["information_gain"], equal_nan=True)
    assert set(read_turns(trainer.args.output_dir)["answer"].to_pylist()) == {"Paris"}


def test_a_probe_past_the_context_is_unscorable_not_fatal(score):
    batch, _ = score()
    prompt, mask, tool_mask = (batch[key][2] for key in ("prompt_mask", "completion_mask", "tool_mask"))
    last_observation = int(((mask == 1) & (tool_mask == 0)).nonzero().max()) + 1
    # Row 2's last observation fits, the probe after it does not
    room = int(prompt.sum()) + last_observation + 2
    cut, trainer = score(model=tiny.model(max_position_embeddings=room))
    assert trainer._metrics["train"]["information_gain/unscorable_turns"] == [1.0]
    assert cut["information_gain"][2].isnan().tolist() == [False, False, True, True]
    assert not cut["advantages"].isnan().any()


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_packed_sequence_may_be_longer_than_the_context(score, architecture):
    """Positions restart at each boundary, so only the end of a probe counts."""
    long, _ = score(model=tiny.model(architecture, attn_implementation="eager"))
    longest = int((long["prompt_mask"].sum(1) + long["completion_mask"].sum(1)).max())
    short, _ = score(model=tiny.model(architecture, attn_implementation="eager", max_position_embeddings=longest + 20))
    torch.testing.assert_close(long["information_gain"], short["information_gain"], atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_token_budget_changes_the_forwards_and_no_gain(score, monkeypatch, architecture):
    """Token trees, and padded prefixes where a model cannot take them."""
    sizes = []
    original = BeliefScorer._score

    def recording(self, model, **inputs):
        sizes.append(inputs["input_ids"].numel())
        return original(self, model, **inputs)

    monkeypatch.setattr(BeliefScorer, "_score", recording)
    gains, forwards = [], []
    for budget in (1000, 130, 1):
        sizes.clear()
        model = tiny.model(architecture, attn_implementation="eager")
        batch, _ = score(model=model, ig_tokens_per_batch=budget, gradient_accumulation_steps=2)
        gains.append(batch["information_gain"])
        forwards.append(len(sizes))
        assert budget == 1 or max(sizes) <= budget
    # A tree for each rollout, the prompt in the first one's; or a forward for the prompt and each observation, of which two
    # rollouts have one in common
    assert forwards[2] == (4 if architecture == "llama" else 6) > forwards[1] > forwards[0]
    for other in gains[1:]:
        torch.testing.assert_close(gains[0], other, atol=1e-4, rtol=0, equal_nan=True)


def adapter(**options):
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options)


def recorded_forwards(monkeypatch):
    """Tokens of each forward of the tiny model, its log-probabilities and beliefs alike."""
    sizes = []
    original = LlamaModel.forward

    def recording(self, input_ids=None, **kwargs):
        sizes.append(tuple(input_ids.shape))
        return original(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", recording)
    return sizes


def test_beliefs_share_forward_on_the_old_log_probabilities(score, monkeypatch):
    """The forwards of GRPO, each followed by its probes alone; its old log-probabilities, and the gains of a run without."""
    sizes = recorded_forwards(monkeypatch)
    grpo, _ = score(advantage_estimator="grpo")
    theirs = sizes.copy()
    sizes.clear()
    shared, trainer = score()
    assert sizes[::2] == theirs and len(theirs) == 2
    longest_probe = len(trainer._tokenizer("<answer>Paris")["input_ids"])
    assert all(rows == 2 and tokens <= 4 * longest_probe for rows, tokens in sizes[1::2])
    assert torch.equal(shared["old_per_token_logps"], grpo["old_per_token_logps"])
    sizes.clear()
    alone, _ = score(gradient_accumulation_steps=2)
    assert "old_per_token_logps" not in alone and len(sizes) == 1 and sizes[0][0] == 1
    torch.testing.assert_close(
        shared["information_gain"], alone["information_gain"], atol=1e-4, rtol=0, equal_nan=True
    )
    torch.testing.assert_close(shared["advantages"], alone["advantages"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        dict(pad_to_multiple_of=16),
        dict(mask_truncated_completions=True),
        dict(beta=0.1),
        dict(gradient_checkpointing=True),
        dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}),
    ],
    ids=str,
)
def test_beliefs_share_forward_whatever_else_trl_does(score, options):
    cut = [*GROUP[:3], ["<search>Lyon</search>", "and on and on without an end"]]
    gains = []
    for updates in ({}, {"gradient_accumulation_steps": 2}):  # old log-probabilities are computed, or not
        torch.manual_seed(0)
        # A random adapter: the reference model, whose log-probabilities come second, has other beliefs
        batch, trainer = score(cut, peft_config=adapter(init_lora_weights=False), **updates, **options)
        gains.append(batch["information_gain"])
    assert trainer._batch is None
    torch.testing.assert_close(*gains, atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("leading", [[], [("What is known: nothing.\n", 0)]], ids=["", "read before the first turn"])
def test_beliefs_share_forward_on_the_rollouts_of_a_rollout_func(build, rows, leading):
    """Its `env_mask` says where observations end."""
    tokenizer = tiny.tokenizer()
    pieces = [
        *leading,
        ("<search>Lyon</search>", 1),
        ("\n<result>Lyon is in France.</result>\n", 0),
        ("<answer>Paris</answer>", 1),
    ]

    def rollouts(prompts, trainer):
        ids, mask = [], []
        for text, written in pieces:
            tokens = tokenizer(text)["input_ids"]
            ids, mask = ids + tokens, mask + [written] * len(tokens)
        prompt_ids = tokenizer(QUESTION)["input_ids"]
        columns = {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [0.0] * len(ids), "env_mask": mask}
        return {name: [values] * len(prompts) for name, values in columns.items()}

    def gains(**options):
        trainer = build(None, tools=None, rollout_func=rollouts, **options)
        trainer.model.train()
        return trainer._generate_and_score_completions([dict(row) for row in rows[:4]])["information_gain"]

    shared, alone = gains(), gains(gradient_accumulation_steps=2)
    assert (~shared.isnan()).sum(1).tolist() == [1] * 4
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=0, equal_nan=True)


def test_the_copy_of_an_adapter_that_is_trained_on_carries_no_beliefs(tmp_path, config, rows, monkeypatch):
    """An adapter that is given goes on as the policy; TRL keeps a copy of it, "ref", as the reference."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny.model(), adapter(init_lora_weights=False))
    tiny.Script(GROUP).install(monkeypatch)
    trainer = A2TGPOTrainer(
        model, correct, config(beta=0.1), Dataset.from_list(rows), processing_class=tiny.tokenizer(), tools=[search]
    )
    assert "ref" in trainer.model.peft_config
    for name, parameter in trainer.model.named_parameters():
        if ".ref." in name:
            parameter.data.mul_(-3.0)  # so that a look at the reference would show
    trainer.model.train()
    tiny.Script(GROUP).install(monkeypatch)
    shared = trainer._generate_and_score_completions([dict(row) for row in rows[:4]])["information_gain"]
    monkeypatch.setattr(trainer.signals["beliefs"], "_shares_forward", lambda: False)
    tiny.Script(GROUP).install(monkeypatch)
    alone = trainer._generate_and_score_completions([dict(row) for row in rows[:4]])["information_gain"]
    torch.testing.assert_close(shared, alone, atol=1e-4, rtol=0, equal_nan=True)


def test_a_reward_function_may_play(build, rows):
    """As a judge that samples may."""
    seen = []

    def judge(completions, log_extra, **kwargs):
        if not seen:
            seen.append(None)
            seen.append(trainer.play([{"prompt": QUESTION, "answer": "Paris"}], num_generations=4))
        log_extra("length", [len(text) for text in completions])
        return correct(completions, [["Paris"]] * len(completions))

    trainer = build(GROUP, reward=judge, per_device_eval_batch_size=4)
    trainer.model.train()
    trainer._generate_and_score_completions([dict(row) for row in rows[:4]])
    assert len(seen[1]) == 4 and trainer._batch is None
    (played, *_) = trainer.play(rows[:1], num_generations=4)
    assert played.extra == {"length": len(played.completion)}


@pytest.mark.parametrize("loop", ["a2tgpo", "trl", "none"])
def test_a_completion_that_a_limit_cut_is_no_answer(build, config, monkeypatch, loop):
    call = '<tool_call>\n{"name": "search", "arguments": {"query": "Lyon"}}\n</tool_call><|im_end|>'
    group = [
        ["<answer>Paris</answer><|im_end|>"],
        ["on and on"],
        [call, "<answer>Rome</answer><|im_end|>"],
        [call, "on"],
    ]
    if loop == "none":
        group = [["Paris<|im_end|>"], ["on and on"]] * 2
    tiny.Script(group).install(monkeypatch)
    options = {"tool_loop": loop} if loop != "none" else {}
    trainer = A2TGPOTrainer(
        tiny.model(), chat_correct, config(advantage_estimator="grpo", **options), Dataset.from_list(CHAT_ROWS),
        processing_class=tiny.chat_tokenizer(), tools=[search] if loop != "none" else None,
    )  # fmt: skip
    batches = []
    read = GenerationBatch.read_turns
    monkeypatch.setattr(GenerationBatch, "read_turns", lambda batch, *a: (read(batch, *a), batches.append(batch)))
    trainer.model.train()
    trainer._generate_and_score_completions([dict(row) for row in CHAT_ROWS[:4]])
    assert batches[0].turns.answered.tolist() == [True, False, True, False]


def test_an_error_leaves_nothing_behind(build, rows, monkeypatch):
    trainer = build()
    trainer.model.train()
    monkeypatch.setattr("a2tgpo_trl.signals.beliefs.shared_forward._mask", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer._generate_and_score_completions([dict(row) for row in rows[:4]])
    assert trainer._batch is None and "_get_per_token_logps_and_entropies" not in vars(trainer)
    assert trainer.model.config._attn_implementation == "sdpa"


def test_a_reference_forward_carries_no_beliefs(score, monkeypatch):
    """With every update on-policy the first log-probabilities that TRL computes are the reference's."""
    monkeypatch.setattr(BeliefScorer, "share_forward", lambda *args: pytest.fail("that model is not the policy"))
    batch, _ = score(gradient_accumulation_steps=2, beta=0.1, peft_config=adapter())
    assert "ref_per_token_logps" in batch and (~batch["information_gain"].isnan()).any()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_beliefs_take_forwards_of_their_own_with_dropout(score, caplog, monkeypatch, dropout):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    transformers.utils.logging.warning_once.cache_clear()
    forwards, original = [], BeliefScorer.share_forward
    monkeypatch.setattr(BeliefScorer, "share_forward", lambda *args: forwards.append(1) or original(*args))
    with caplog.at_level(logging.WARNING):
        batch, _ = score(peft_config=adapter(lora_dropout=dropout))
    told = any("takes forwards of its own" in r.message and "lora_dropout" in r.message for r in caplog.records)
    assert (len(forwards), told) == ((0, True) if dropout else (1, False))
    plain, _ = score(gradient_accumulation_steps=2)  # LoRA begins as the model itself
    torch.testing.assert_close(batch["information_gain"], plain["information_gain"], atol=1e-4, rtol=0, equal_nan=True)


def test_the_same_context_has_the_same_belief(score):
    """Rows that wrote the same so far differ by rounding alone, which normalisation would turn into credit."""
    group = [
        ["<search>Lyon</search>", "<answer>Rome</answer><|im_end|>"],
        ["<search>Lyon</search>", "<search>capital of France</search>", "<answer>Paris</answer><|im_end|>"],
        ["<search>Lyon</search>", "<search>a much longer query about it</search>", "<answer>x</answer><|im_end|>"],
        ["<search>Lyon</search>", "<search>capital of France</search>", "no answer<|im_end|>"],
    ]
    batch, _ = score(group)
    gains = batch["information_gain"]
    assert gains[:, 0].unique().numel() == 1
    assert gains[1, 1] == gains[3, 1] != gains[2, 1]
    assert (batch["clip_scale"][batch["turn_ids"] == 0] == 1).all()


def test_truncated_completions_masked_away_have_no_turns(score):
    cut = [*GROUP[:3], ["<search>Lyon</search>", "and on and on without an end"]]
    batch, _ = score(cut, mask_truncated_completions=True)
    assert (batch["turn_ids"][3] == -1).all()
    assert batch["information_gain"][3].isnan().all()
    assert (batch["advantages"][3] == 0).all()


# ---- the loss


def test_one_turn_is_the_sequence_level(build, monkeypatch):
    """With one turn per completion, the turn level is TRL's sequence level in value and gradient."""
    recipe = dict(max_steps=4, num_iterations=2, epsilon=0.02, epsilon_high=0.03)
    recipe |= dict(loss_type="grpo", skip_empty_updates=True)
    ours = build(ANSWER_ONLY, **recipe)
    theirs = build(ANSWER_ONLY, importance_sampling_level="sequence", advantage_estimator="grpo", **recipe)
    for trainer in (ours, theirs):
        torch.manual_seed(0)
        trainer.train()
    assert any(log.get("clip_ratio/region_mean", 0) > 0 for log in ours.state.log_history)
    for left, right in zip(weights(ours).values(), weights(theirs).values(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)


def loss_inputs(score, **options):
    """A scored batch whose old log-probabilities come from a policy some way off."""
    batch, trainer = score(num_iterations=2, **options)
    torch.manual_seed(1)
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + 0.02 * torch.randn_like(batch["old_per_token_logps"])
    return batch, trainer


def test_loss_of_equation_8(score):
    batch, trainer = loss_inputs(score)
    model = trainer.model
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()

    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    width = batch["completion_ids"].size(1)
    logits = model(ids, attention_mask=mask).logits[:, -width - 1 : -1]
    logps = logits.log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    total = 0.0
    clipped = 0
    for i in range(4):
        tokens = []
        for k in range(int(batch["turn_ids"][i].max()) + 1):
            turn = (batch["turn_ids"][i] == k).nonzero().flatten()
            mean = (logps[i, turn] - batch["old_per_token_logps"][i, turn]).mean().detach()
            for t in turn:
                ratio = torch.exp(mean + logps[i, t] - logps[i, t].detach())
                c, advantage = batch["clip_scale"][i, t], batch["advantages"][i, t]
                bounded = ratio.clamp(1 - c * 3e-3, 1 + c * 4e-3)
                clipped += int(bounded != ratio)
                tokens.append(-torch.minimum(ratio * advantage, bounded * advantage))
        total = total + torch.stack(tokens).mean()
    expected = total / 4
    expected.backward()
    assert clipped > 0
    torch.testing.assert_close(loss.detach(), expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, model.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-3)


def test_the_loss_leaves_batch_and_trainer_as_they_were(score):
    batch, trainer = loss_inputs(score)
    before = copy.deepcopy(batch)
    epsilon = trainer.epsilon_low, trainer.epsilon_high
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    assert all(torch.equal(batch[key], before[key]) for key in ("old_per_token_logps", "advantages", "clip_scale"))
    assert (trainer.epsilon_low, trainer.epsilon_high) == epsilon
    assert trainer.importance_sampling_level == "turn"


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo"])
@pytest.mark.parametrize("level", ["turn", "token", "sequence"])
def test_every_clipped_loss_type_trains(score, loss_type, level):
    options = {"epsilon_high": 5.0} if loss_type == "cispo" else {}
    batch, trainer = loss_inputs(score, loss_type=loss_type, importance_sampling_level=level, **options)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert trainer.model.get_input_embeddings().weight.grad.abs().sum() > 0
    # The ranges reach the loss: with one of no width every ratio is clipped or pessimistic
    wide = trainer.compute_loss(trainer.model, batch | {"clip_scale": batch["clip_scale"] * 100})
    narrow = trainer.compute_loss(trainer.model, batch | {"clip_scale": batch["clip_scale"] * 0})
    assert wide != narrow


def test_tool_tokens_get_no_gradient(score):
    """Whatever the log-probabilities of tool tokens: the loss does not depend on them."""
    batch, trainer = loss_inputs(score)
    trainer.current_gradient_accumulation_steps = 1
    original = trainer.compute_loss(trainer.model, batch)
    off_turn = batch["turn_ids"] < 0
    batch["old_per_token_logps"] = batch["old_per_token_logps"].masked_fill(off_turn, -7.0)
    batch["advantages"] = batch["advantages"].masked_fill(off_turn, 99.0)
    assert torch.equal(trainer.compute_loss(trainer.model, batch), original)


# ---- options: every one changes some output


@pytest.mark.parametrize(
    "key, options",
    [
        ("advantages", dict(turn_advantage_coef=1.0)),
        ("advantages", dict(turn_gamma=0.5)),
        ("advantages", dict(turn_rescale=False)),
        ("advantages", dict(turn_normalization="group")),
        ("advantages", dict(turn_normalization="none")),
        ("advantages", dict(advantage_estimator="igpo")),
        ("clip_scale", dict(turn_clip_strength=0.0)),
        ("clip_scale", dict(turn_clip_strength=0.9)),
        ("information_gain", dict(belief_measure="prob")),
        ("information_gain", dict(answer_template="The answer is {answer}.")),
        ("information_gain", dict(temperature=0.5)),
    ],
)  # fmt: skip
def test_option_changes_the_scored_batch(score, key, options):
    default, _ = score()
    changed, _ = score(**options)
    assert not torch.equal(default[key].nan_to_num(9.0), changed[key].nan_to_num(9.0))


@pytest.mark.parametrize(
    "options",
    [
        dict(importance_sampling_level="token", epsilon=3e-3, epsilon_high=4e-3),
        dict(importance_sampling_level="sequence"),
        dict(epsilon=0.1),
        dict(epsilon_high=0.1),
        dict(loss_type="bnpo"),
    ],
)
def test_option_changes_the_loss(score, options):
    def loss(**options):
        batch, trainer = loss_inputs(score, **options)
        trainer.current_gradient_accumulation_steps = 1
        return trainer.compute_loss(trainer.model, batch).item()

    assert loss() != loss(**options)


def test_answer_column(score, rows):
    default, _ = score()
    rows[:] = [{**row, "gold": "Rome"} for row in rows]
    changed, _ = score(answer_column="gold")
    assert not torch.equal(default["information_gain"].nan_to_num(9.0), changed["information_gain"].nan_to_num(9.0))


def test_tags_are_configurable(score):
    renamed = [[turn.replace("search>", "lookup>") for turn in rollout] for rollout in GROUP]
    batch, trainer = score(renamed, tool_tags={"search": "lookup"}, result_tag="passage")
    text = tiny.tokenizer().decode(batch["completion_ids"][1])
    assert "<lookup>Lyon</lookup>\n<passage>Lyon is in France.</passage>\n<answer>" in text
    assert trainer.generation_config.stop_strings == ["</lookup>", "</answer>"]


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ({}, "</answer>"),
        (dict(answer_template="Then <final> {answer} </final>."), "</final>"),
        (dict(answer_template="The answer is {answer}."), None),
        (dict(answer_template="{answer}<|im_end|>"), None),
        (dict(answer_stop="."), "."),
        (dict(answer_stop=""), None),
        (dict(mask_truncated_completions=True), None),
        (dict(mask_truncated_completions=True, answer_stop="</answer>"), "</answer>"),
        (dict(advantage_estimator="grpo"), "</answer>"),
    ],
)
def test_what_ends_a_rollout_with_tags(build, options, stop):
    assert build(**options).generation_config.stop_strings == ["</search>"] + [stop] * (stop is not None)


def test_a_tool_may_have_the_tag_of_answers(build):
    assert build(tool_tags={"search": "answer"}).generation_config.stop_strings == ["</answer>"]


# ---- answers that environments give


class Capitals:
    """Owns its data: `reset` draws a question, and sets the answer to it."""

    def reset(self, **row):
        assert "answer" not in row
        self.answer = ["", "Paris"]
        return QUESTION

    def search(self, query: str) -> str:
        """
        Look something up.

        Args:
            query: What to look for.
        """
        return search(query)


class Riddles(Capitals):
    def reset(self, **row):
        return QUESTION


class Unsolved(Capitals):
    def reset(self, **row):
        self.answer = None
        return QUESTION


class Asking(Riddles):
    def answer(self, text: str) -> str:
        """
        Hand in the answer.

        Args:
            text: The answer.
        """
        return text


def with_environments(config, factory, names=None, dataset=None, **options):
    """A trainer whose rows hold nothing, or the name of their environment; exact match reads the answer."""
    rows = [{"environment": name} for name in names or ["capitals"] * 4] * 2
    return A2TGPOTrainer(
        tiny.model(), exact_match_reward, config(**options), dataset or Dataset.from_list(rows),
        processing_class=tiny.chat_tokenizer(), environment_factory=factory,
    )  # fmt: skip


@pytest.mark.parametrize("updates", [{}, dict(gradient_accumulation_steps=2)], ids=["shared", "alone"])
@pytest.mark.parametrize("estimator", ["a2tgpo", "grpo"])
def test_an_environment_gives_the_answer(config, monkeypatch, estimator, updates):
    tiny.Script(chat_rollouts()).install(monkeypatch)
    trainer = with_environments(config, Capitals, advantage_estimator=estimator, **updates)
    inputs = [{"environment": "capitals"} for _ in range(4)]
    trainer.model.train()
    batch = trainer._generate_and_score_completions(inputs)
    assert trainer._metrics["train"]["rewards/exact_match_reward/mean"] == [0.5]
    assert inputs == [{"environment": "capitals"}] * 4 and trainer._batch is None
    if estimator == "a2tgpo":
        assert (~batch["information_gain"].isnan()).sum(1).tolist() == [0, 1, 2, 1]
        assert trainer._metrics["train"]["information_gain/rows_without_answer"] == [0.0]
    assert set(read_turns(trainer.args.output_dir)["answer"].to_pylist()) == {"Paris"}
    trainer.train()
    played, *_ = trainer.play([{}], num_generations=4)
    assert played.rewards == {"exact_match_reward": 0.0} and played.answer == "Paris"


def test_an_environment_may_own_all_data(config, monkeypatch):
    tiny.Script(chat_rollouts()).install(monkeypatch)
    trainer = A2TGPOTrainer(
        tiny.model(),
        exact_match_reward,
        config(max_steps=1),
        processing_class=tiny.chat_tokenizer(),
        environment_factory=Capitals,
    )
    trainer.train()
    assert set(read_turns(trainer.args.output_dir)["answer"].to_pylist()) == {"Paris"}


def test_several_splits_are_no_dataset(config):
    splits = DatasetDict(train=Dataset.from_list([{"prompt": QUESTION, "answer": "Paris"}]))
    with pytest.raises(TypeError, match="train_dataset is of type DatasetDict"):
        A2TGPOTrainer(tiny.model(), exact_match_reward, config(), splits, processing_class=tiny.tokenizer())


def test_a_row_keeps_its_own_answer(config, monkeypatch):
    class Open(Capitals):
        def reset(self, **row):
            self.answer = "Paris"
            return QUESTION

    tiny.Script(chat_rollouts()).install(monkeypatch)
    trainer = with_environments(config, Open, dataset=Dataset.from_list([{"answer": "Rome"}] * 8))
    trainer.train()
    assert set(read_turns(trainer.args.output_dir)["answer"].to_pylist()) == {"Rome"}


@pytest.mark.parametrize("estimator", ["a2tgpo", "grpo"])
@pytest.mark.parametrize("cell", ["", " ", [], ["", " "], None], ids=repr)
def test_an_empty_cell_is_no_answer(config, monkeypatch, estimator, cell):
    class Open(Capitals):
        def reset(self, **row):
            self.answer = "Paris"
            return QUESTION

    tiny.Script(chat_rollouts()).install(monkeypatch)
    dataset = Dataset.from_list([{"answer": cell}] * 8)
    trainer = with_environments(config, Open, dataset=dataset, advantage_estimator=estimator)
    trainer.train()
    assert set(read_turns(trainer.args.output_dir)["answer"].to_pylist()) == {"Paris"}
    assert trainer.state.log_history[0]["rewards/exact_match_reward/mean"] == 0.5


def test_some_environments_have_no_answer(config, monkeypatch):
    tiny.Script(chat_rollouts()).install(monkeypatch)
    factory, names = {"capitals": Capitals, "unsolved": Unsolved}, ["capitals", "unsolved"] * 2
    trainer = with_environments(config, factory, names)
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"environment": name} for name in names])
    assert (~batch["information_gain"].isnan()).sum(1).tolist() == [0, 0, 2, 0]
    assert trainer._metrics["train"]["information_gain/rows_without_answer"] == [2.0]


@pytest.mark.parametrize("factory", [Riddles, Asking])
def test_no_answer_anywhere_is_an_error_that_says_what_needs_none(config, build, monkeypatch, factory):
    tiny.Script(chat_rollouts()).install(monkeypatch)
    trainer = with_environments(config, factory)
    needs_none = "choose an advantage_estimator that needs none, such as 'grpo'"
    with pytest.raises(
        ValueError, match=f"nor does {factory.__name__}.reset set the attribute 'answer'.*{needs_none}"
    ):
        trainer.train()
    with pytest.raises(ValueError, match=f"no column 'answer'.*{needs_none}"):
        build(dataset=Dataset.from_list([{"prompt": QUESTION}] * 8))
    assert not GRPO.signals  # or the error lies


# ---- rewards that are no numbers


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(turn_normalization="group"),
        dict(turn_normalization="none", turn_clip_strength=0.9),
        dict(advantage_estimator="igpo"),
        dict(advantage_estimator="grpo"),
    ],
    ids=str,
)
def test_a_rollout_that_nothing_scored_has_no_credit(score, options):
    batch, trainer = score(reward=lambda completions, **kwargs: [0.0, 1.0, None, 0.9], **options)
    assert (batch["advantages"][2] == 0).all() and (batch["advantages"][3] != 0).any()
    assert trainer._metrics["train"]["rollout/unscored"] == [1.0]
    if "clip_scale" in batch:
        assert (batch["clip_scale"][2] == 1).all()
        assert not batch["information_gain"][2, :3].isnan().any()  # it is measured, and counts for nobody
        records = [row for row in read_turns(trainer.args.output_dir).to_pylist() if row["turn"] == 0]
        assert [row["turn_group_size"] for row in records] == [None, 2, None, 2]
        assert trainer._metrics["train"]["turn_group/size_mean"] == [1.5]  # rows 1 and 3, and row 3 alone


def test_a_rollout_that_nothing_scored_is_no_yardstick(score):
    batch, _ = score(reward=lambda completions, **kwargs: [0.0, 1.0, None, 1.0], turn_rescale=False)
    first, second = batch["information_gain"][1, 0].item(), batch["information_gain"][3, 0].item()
    # Two members: the normalised gains of turn 0 are 1 and -1
    sign = math.copysign(1.0, first - second)
    turns = batch["turn_ids"][1] == 0
    outcome = batch["advantages"][1][batch["turn_ids"][1] == 1][0].item()
    assert batch["advantages"][1][turns][0].item() == pytest.approx(outcome + 0.3 * sign, abs=1e-4)


def broken_reward(value, kind="function"):
    """`correct`, with a value in the first row, as a function, a coroutine function or a callable object."""

    def reward(completions, answer, **kwargs):
        return [value, *correct(completions, answer)[1:]]

    async def reward_later(**kwargs):
        return reward(**kwargs)

    class Reward:
        __name__ = "reward"

        async def __call__(self, **kwargs):
            return reward(**kwargs)

    reward_later.__name__ = "reward"
    return {"function": reward, "coroutine": reward_later, "object": Reward()}[kind]


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (math.inf, "function"),
        (-math.inf, "function"),
        (math.nan, "function"),
        (torch.tensor(math.nan), "function"),
        (np.float32(math.inf), "function"),
        (1e39, "function"),  # more than float32 holds
        (math.nan, "coroutine"),
        (math.inf, "object"),
    ],
)
def test_a_reward_that_is_no_finite_number_counts_as_none(build, caplog, value, kind, scale):
    def trained(value, kind="function"):
        caplog.clear()
        trainer = build(GROUP[1:] + GROUP[:1], reward=broken_reward(value, kind), scale_rewards=scale, max_steps=4)
        trainer.train()
        messages = [record.getMessage() for record in caplog.records]
        told = [m for m in messages if "Reward function 'reward' returned NaN or infinity for 1 of 4 completions" in m]
        assert all(f"The first is completion 0, to '{QUESTION}'." in message for message in told)
        return weights(trainer), len(told), sum("returned None for the following" in message for message in messages)

    expected, *counts = trained(None)
    assert counts == [0, 2] and all(weight.isfinite().all() for weight in expected.values())
    assert not same(expected, dict(tiny.model().named_parameters()))  # the rest of the group is learned from
    broken, *counts = trained(value, kind)
    assert counts == [2, 0]  # for each generation batch
    assert same(broken, expected)


def test_a_reward_model_that_gives_nan_is_named(config, rows, caplog, monkeypatch):
    model = LlamaForSequenceClassification(tiny.CONFIGS["llama"](num_labels=1, name_or_path="scorer"))
    torch.nn.init.constant_(model.score.weight, math.nan)
    tiny.Script(GROUP).install(monkeypatch)
    trainer = A2TGPOTrainer(
        tiny.model(), [model, correct], config(reward_weights=[0.5, 1.0]), Dataset.from_list(rows),
        processing_class=tiny.tokenizer(), reward_processing_classes=[tiny.tokenizer(), None], tools=[search],
    )  # fmt: skip
    trainer.train()
    assert any("'scorer' returned NaN or infinity for 4 of 4" in record.getMessage() for record in caplog.records)
    assert trainer.state.log_history[0]["rewards/scorer/mean"] is None
    assert trainer.state.log_history[0]["rollout/unscored"] == 0
    assert trainer.state.log_history[0]["reward"] == pytest.approx(0.75)


def test_rewards_are_summed_by_their_weights(config, rows, monkeypatch):
    """What one function leaves out does not count; a completion that none scored has none."""
    tiny.Script(GROUP).install(monkeypatch)
    functions = [lambda completions, **_: [1.0, None, 2.0, None], lambda completions, **_: [0.5, 3.0, -1.0, None]]
    trainer = A2TGPOTrainer(
        tiny.model(), functions, config(reward_weights=[2.0, 0.5]), Dataset.from_list(rows),
        processing_class=tiny.tokenizer(), tools=[search],
    )  # fmt: skip
    trainer.model.train()
    given = trainer._roll_out([dict(row) for row in rows[:4]]).turns.rewards
    assert given[:3].tolist() == [2.25, 1.5, 3.5] and given[3].isnan()


# ---- updates with nothing to learn from


@pytest.mark.parametrize("skip", [True, False])
def test_empty_updates(build, skip):
    """Reward is given in the first generation batch only, so the later updates have a gradient of exactly zero."""
    batches = []

    def once(completions, **kwargs):
        batches.append(len(completions))
        return [1.0, 0.0, 0.0, 0.0] if len(batches) == 1 else [0.0] * 4

    states = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
            states.append(([p.detach().clone() for p in model.parameters()], moments))

    options = dict(max_steps=4, reward=once, callbacks=[Watch()], turn_advantage_coef=0.0, turn_clip_strength=0.0)
    trainer = build(ANSWER_ONLY, skip_empty_updates=skip, weight_decay=0.1, **options)
    trainer.train()

    def unchanged(before, after):
        return all(
            torch.equal(a, b)
            for x, y in zip(states[before], states[after], strict=True)
            for a, b in zip(x, y, strict=True)
        )

    assert not unchanged(0, 1)
    assert unchanged(1, 2) == unchanged(2, 3) == skip
    assert [log.get("updates/empty") for log in trainer.state.log_history[:4]] == (
        [0, 0, 1, 1] if skip else [None] * 4
    )
    if skip:
        assert trainer.skipped_updates.num_empty == 2


@pytest.mark.parametrize("rewards", [[0.3] * 8, [0.7] * 8, [1.1] * 8, [0.3] * 7 + [None]])
def test_equal_rewards_are_nothing_to_learn_from(build, rows, rewards):
    """reward - mean leaves rounding for these, and eight equal rollouts have no gains to tell them apart either."""
    group = [["<search>Lyon</search>", "<answer>Rome</answer><|im_end|>"]] * 8
    options = dict(
        num_generations=8, per_device_train_batch_size=4, max_steps=2, dataset=Dataset.from_list(rows[:1] * 8)
    )
    trainer = build(group, reward=lambda completions, **k: rewards, **options)
    start = weights(trainer)
    trainer.train()
    assert trainer.skipped_updates.num_empty == 2 and same(start, weights(trainer))


@pytest.mark.parametrize("skip_empty", [True, False])
def test_gradients_may_be_anywhere(build, skip_empty):
    """A parameter without elements, one without gradient, and a NaN that must not pass for zero."""
    trainer = build()
    metrics = {}
    callback = SkipUpdates(trainer.accelerator, metrics.__setitem__, skip_empty)
    module = torch.nn.ParameterList([torch.zeros(0), torch.zeros(2), torch.zeros(3)])
    for gradient, empty, non_finite in (
        ([0.0, 0.0, 0.0], 1.0, 0.0),
        ([0.0, torch.nan, 9.0], 0.0, 1.0),
        ([0.0, -torch.inf, 0.0], 0.0, 1.0),
        ([1.0, 1.0, 1.0], 0.0, 0.0),
    ):
        module[0].grad, module[2].grad = torch.zeros(0), torch.tensor(gradient)
        callback.on_pre_optimizer_step(None, trainer.state, None, model=module)
        assert metrics == {"updates/non_finite": non_finite} | ({"updates/empty": empty} if skip_empty else {})
        assert (module[2].grad is None) == bool(non_finite or (empty and skip_empty))


@pytest.mark.parametrize("skip_empty", [True, False])
@pytest.mark.parametrize(
    "steps",
    [
        dict(),
        dict(gradient_accumulation_steps=2, steps_per_generation=4, per_device_train_batch_size=1),
        dict(max_grad_norm=0.0),
        dict(importance_sampling_level="token", loss_type="dapo"),
    ],
    ids=str,
)
@pytest.mark.parametrize("column", ["old_per_token_logps", "advantages"])
def test_an_update_of_broken_numbers_is_left_out(build, caplog, column, steps, skip_empty):
    """One NaN in one row of the second generation batch: one of its two updates, and nothing else, is lost."""
    moved = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            self.before = [p.detach().clone() for p in model.parameters()]

        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            moved.append(not all(map(torch.equal, self.before, model.parameters())))
            assert all(s["exp_avg"].isfinite().all() for s in optimizer.state.values())

    # A range so wide that not everything is clipped, which would be an empty update
    trainer = build(max_steps=6, callbacks=[Watch()], skip_empty_updates=skip_empty, epsilon=5.0, **steps)
    batches, original = [], trainer._generate_and_score_completions

    def poisoned(inputs):
        batches.append(original(inputs))
        if len(batches) == 2:
            batches[-1][column][0, 0] = math.nan
        return batches[-1]

    trainer._generate_and_score_completions = poisoned
    trainer.train()
    assert len(batches) == 3
    (lost,) = [step for step, has_moved in enumerate(moved) if not has_moved]
    assert lost in (2, 3) and len(moved) == 6
    assert trainer.skipped_updates.num_non_finite == 1
    logged = [log["updates/non_finite"] for log in trainer.state.log_history if "updates/non_finite" in log]
    assert logged == [float(step == lost) for step in range(6)]
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert [r.message for r in caplog.records if f"Optimizer step {lost + 1} was left out" in r.message]


# ---- start-up


@pytest.mark.parametrize(
    "options, warns",
    [
        (dict(steps_per_generation=2, gradient_accumulation_steps=2), True),
        (dict(steps_per_generation=2, gradient_accumulation_steps=1), False),
        (dict(steps_per_generation=2, gradient_accumulation_steps=2, num_iterations=2), False),
        (dict(steps_per_generation=2, gradient_accumulation_steps=2, advantage_estimator="grpo"), False),
    ],
)
def test_warning_when_no_clip_range_can_bind(build, caplog, monkeypatch, options, warns):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        build(**options)
    assert any("on-policy" in record.message for record in caplog.records) == warns


@pytest.mark.parametrize(
    "options, warns",
    [(dict(epsilon=0.2), True), (dict(), False), (dict(epsilon=0.2, importance_sampling_level="token"), False)],
)
def test_warning_of_a_clip_range_for_tokens(build, caplog, monkeypatch, options, warns):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        build(**options)
    assert any("suit the ratio of a token" in record.message for record in caplog.records) == warns


@pytest.mark.parametrize(("tools", "warns"), [([], True), ([search], False)])
def test_warning_of_tool_options_without_tools(build, caplog, tools, warns):
    build(None, tools=tools, max_turn_tokens=50, lockstep=True)
    found = [r.message for r in caplog.records if "Without tools max_turn_tokens, lockstep do nothing" in r.message]
    assert bool(found) == warns


def test_warning_of_masked_stops(build, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("a2tgpo_trl"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        build(mask_truncated_completions=True)
    assert any("mask_truncated_completions" in record.message for record in caplog.records)


def test_defaults_are_the_papers(config):
    args = A2TGPOConfig("x", use_cpu=True, bf16=False)
    assert (args.turn_advantage_coef, args.turn_gamma, args.turn_clip_strength) == (0.3, 1.0, 0.3)
    assert (args.epsilon, args.epsilon_high, args.importance_sampling_level, args.loss_type) == (
        3e-3,
        4e-3,
        "turn",
        "grpo",
    )
    assert (args.advantage_estimator, args.beta, args.learning_rate, args.answer_column) == (
        "a2tgpo",
        0.0,
        1e-6,
        "answer",
    )
    token = A2TGPOConfig("x", use_cpu=True, bf16=False, importance_sampling_level="token")
    assert (token.epsilon, token.epsilon_high) == (0.2, 0.2)
    assert A2TGPOConfig("x", use_cpu=True, bf16=False, epsilon=0.1).epsilon_high is None  # TRL: the same as epsilon
    again = A2TGPOConfig(
        **{k: v for k, v in args.to_dict().items() if k in ("epsilon", "epsilon_high", "output_dir")},
        use_cpu=True,
        bf16=False,
    )
    assert (again.epsilon, again.epsilon_high) == (3e-3, 4e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(answer_template="no place"), "answer_template must contain {answer} exactly once, got 'no place' with 0"),
        (dict(answer_template="{answer} {answer}"), "exactly once"),
        (dict(turn_advantage_coef=-0.1), "turn_advantage_coef (α) must be at least 0, got -0.1"),
        (dict(turn_gamma=-0.1), "turn_gamma (γ) must be in [0, 1], got -0.1"),
        (dict(turn_gamma=1.1), "turn_gamma (γ)"),
        (dict(turn_clip_strength=1.0), "turn_clip_strength (β) must be in [0, 1), got 1.0"),
        (dict(turn_clip_strength=-0.5), "turn_clip_strength (β)"),
        (dict(num_generations=1), "at least 2 generations"),
        (dict(advantage_estimator="ppo"), "advantage_estimator must be one of 'a2tgpo', 'igpo', 'grpo', 'a2tgpo_stop'"),
        (dict(importance_sampling_level="word"), "importance_sampling_level must be one of 'turn', 'turn_product', 'token', 'sequence'"),
        (dict(turn_normalization="x"), "turn_normalization must be one of"),
        (dict(belief_measure="x"), "belief_measure must be one of"),
        (dict(tool_protocol="x"), "tool_protocol must be one of"),
        (dict(max_completion_length=None), "max_completion_length must be at least 1, got None. For completions that"),
        (dict(max_completion_length=0), "max_completion_length must be at least 1, got 0"),
        (dict(loss_type="sapo"), "turn_clip_strength=0"),
        (dict(loss_type="cispo"), "set epsilon_high to the cap"),
        (dict(advantage_estimator="grpo", turn_advantage_coef=0.5), "turn_advantage_coef=0.5 has no effect"),
        (dict(advantage_estimator="grpo", gain_from="turn_end"), "gain_from='turn_end' has no effect"),
        (dict(tool_protocol="chat", result_tag="x"), "no effect with tool_protocol='chat'"),
        (dict(tool_protocol="chat", answer_stop="x"), "no effect with tool_protocol='chat'"),
        (dict(advantage_estimator="igpo", turn_clip_strength=0.1), "turn_clip_strength=0.1 has no effect"),
    ],
)  # fmt: skip
def test_bad_options(config, options, message):
    with pytest.raises(ValueError) as error:
        config(**options)
    assert message in str(error.value)


def undocumented(query: str) -> str:
    return query


def untyped(query):
    """
    Look up.

    Args:
        query: What.
    """


def test_bad_input(build, config):
    with pytest.raises(ValueError, match=r"no column 'answer'.*columns are \['gold', 'prompt'\]"):
        build(dataset=Dataset.from_list([{"prompt": QUESTION, "gold": "Paris"}] * 8))
    with pytest.raises(ValueError, match=r"eval_dataset has no column 'answer'"):
        build(eval_dataset=Dataset.from_list([{"prompt": QUESTION}]))
    with pytest.raises(ValueError, match="'undocumented' needs type hints and a Google-style docstring"):
        build(tools=[undocumented])
    with pytest.raises(ValueError, match="'untyped' needs type hints"):
        build(tools=[untyped])
    with pytest.raises(TypeError, match="args must be an A2TGPOConfig, got GRPOConfig"):
        A2TGPOTrainer(
            tiny.model(),
            correct,
            config(GRPOConfig),
            Dataset.from_list([{"prompt": "", "answer": ""}]),
            processing_class=tiny.tokenizer(),
        )
    conversation = Dataset.from_list(CHAT_ROWS)
    with pytest.raises(ValueError, match="no chat template"):
        build(dataset=conversation)
    with pytest.raises(ValueError, match="tool_protocol='chat' cannot be used: prompts are plain text"):
        build(tool_protocol="chat")


def test_a_bad_answer_is_named(build, score, rows):
    with pytest.raises(ValueError, match=r"'answer' of the first row of train_dataset must be text.*got 7"):
        build(dataset=Dataset.from_list([{"prompt": QUESTION, "answer": 7}] * 8))
    fine = Dataset.from_list(rows)
    for cell in ({"text": "Paris"}, [["Paris"]], ["Paris", None]):
        rows[2] = {"prompt": QUESTION, "answer": cell}
        with pytest.raises(ValueError, match=r"'answer' of 'Question: What.*must be text or a list of aliases, got "):
            score(dataset=fine)
    with pytest.raises(ValueError, match="train_dataset is empty"):
        build(dataset=Dataset.from_list([{"prompt": "", "answer": ""}]).select([]))


@pytest.mark.parametrize(("kind", "beta"), [("adapter", 0.0), ("adapter", 0.1), ("whole", 0.0)])
def test_a_frozen_policy_is_refused_before_training(build, rows, tmp_path, kind, beta):
    """With `beta`, TRL would run to the end, log gradient norms, and change no weight."""
    if kind == "adapter":
        peft = pytest.importorskip("peft")
        peft.get_peft_model(tiny.model(), adapter()).save_pretrained(tmp_path / "adapter")
        model = peft.PeftModel.from_pretrained(tiny.model(), tmp_path / "adapter")
    else:
        model = tiny.model().requires_grad_(False)
    trainer = build(model=model, beta=beta, per_device_eval_batch_size=4)
    with pytest.raises(ValueError, match=r"No parameter of the model is trainable.*is_trainable=True"):
        trainer.train()
    assert len(trainer.play(rows[:1], num_generations=4)) == 4  # which takes no gradient


# ---- what is logged


def test_metrics_and_table(build, tmp_path):
    trainer = build(log_completions=True, max_steps=2)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["turns/mean"] == pytest.approx((1 + 2 + 4 + 3) / 4)
    assert log["turns/tool_mean"] == pytest.approx((0 + 1 + 3 + 2) / 4)
    # turn groups 0, 1, 2 have 3, 2 and 1 members
    assert log["turn_group/size_mean"] == pytest.approx(2.0)
    assert log["turn_group/singletons"] == pytest.approx(1 / 3)
    assert {"information_gain/turn_0", "information_gain/turn_1", "information_gain/turn_2"} <= set(log)
    assert log["clip_scale/min"] < log["clip_scale/mean"] < log["clip_scale/max"]
    assert log["belief/first"] < 0 and log["information_gain/unscorable_turns"] == 0
    table = pd.read_parquet(tmp_path / "run" / "completions" / "completions_00001.parquet")
    assert [len(turns) for turns in table["information_gain"]] == [1, 2, 4, 3]
    assert [len(turns) for turns in table["turn_advantages"]] == [1, 2, 4, 3]
    assert table["normalized_gain"][2][2] == 0  # alone in its turn group
    assert table["advantage"].nunique() == 4  # the outcome alone would be two values
    assert log["advantages/turn_part_abs_mean"] > 0


def test_model_card(build, tmp_path):
    trainer = build(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "A²TGPO" in card and "2605.06200" in card and "a2tgpo" in card and "DeepSeekMath" not in card


# ---- what TRL's trainer can do


@pytest.mark.parametrize(
    "options",
    [
        dict(gradient_accumulation_steps=2, steps_per_generation=4, per_device_train_batch_size=1),
        dict(num_iterations=3),
        dict(bf16=True),
        dict(gradient_checkpointing=True),
        dict(beta=0.1, lora=True),
        dict(lora=True),
        dict(lora=True, gradient_checkpointing=True, bf16=True),
        dict(scale_rewards="none"),
        dict(top_entropy_quantile=0.5),
        dict(entropy_coef=0.01),
        dict(off_policy_mask_threshold=0.5, num_iterations=2),
    ],
    ids=str,
)
def test_trl_features(build, options):
    options = dict(options)
    lora = options.pop("lora", False)
    if lora:
        peft = pytest.importorskip("peft")
        options["peft_config"] = peft.LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1
        )
    trainer = build(max_steps=3, **options)
    start = weights(trainer)
    trainer.train()
    end = weights(trainer)
    trained = [name for name in end if not torch.equal(start[name], end[name])]
    assert trained
    assert all("lora" in name for name in trained) == lora
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)


def test_beliefs_leave_no_trace_in_the_random_state(score):
    peft = pytest.importorskip("peft")

    def state(estimator):
        lora = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
        _, trainer = score(peft_config=lora, advantage_estimator=estimator)
        assert trainer.model.training
        return torch.random.get_rng_state()

    assert torch.equal(state("a2tgpo"), state("grpo"))


def test_eval(build, rows):
    trainer = build(eval_dataset=Dataset.from_list(rows[:2]), per_device_eval_batch_size=4, num_generations_eval=4)
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] == pytest.approx(0.75)
    assert {"eval_information_gain/turn_0", "eval_turns/mean"} <= set(metrics)


def test_checkpoint_and_resume(build, tmp_path):
    options = dict(max_steps=4, save_strategy="steps", save_steps=2, advantage_estimator="a2tgpo")
    straight = build(**options)
    straight.train()
    resumed = build(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for left, right in zip(weights(straight).values(), weights(resumed).values(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("chat", [False, True])
def test_completions_that_are_logged_cannot_steer_the_terminal(build, capsys, monkeypatch, chat):
    monkeypatch.setenv("COLUMNS", "300")
    text = "\x1b[2J\x1b]0;owned\x07 Paris\u202e"
    options = dict(log_completions=True, max_steps=1, steps_per_generation=2, advantage_estimator="grpo", tools=[])
    if chat:
        options |= dict(
            processing_class=tiny.chat_tokenizer(), dataset=Dataset.from_list(CHAT_ROWS), reward=chat_correct
        )
    trainer = build([[text]] * 4, **options)
    trainer._logs["extra"]["note"].extend([text] * 4)
    capsys.readouterr()
    trainer.train()
    printed = capsys.readouterr().out
    assert "owned" in printed and "Paris" in printed
    assert not CONTROL.search(printed)


def test_turn_ratio_is_what_the_loss_sees(score, monkeypatch):
    """What TRL's loss has when it is done: the old log-probabilities that make its token ratio the turn's."""
    batch, trainer = loss_inputs(score)
    seen = {}
    mask, loss = trainer.get_off_policy_mask, GRPOTrainer._compute_loss
    trainer.off_policy_mask_threshold = 1e9

    def see_mask(advantages, per_token_logps, sampling_per_token_logps, *args, **kwargs):
        seen.update(new=per_token_logps.detach(), sampling=sampling_per_token_logps)
        return mask(advantages, per_token_logps, sampling_per_token_logps, *args, **kwargs)

    def see_loss(self, model, inputs):
        given = loss(self, model, inputs)
        seen["old"] = inputs["old_per_token_logps"]
        return given

    trainer.get_off_policy_mask = see_mask
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", see_loss)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, batch)
    assert torch.equal(seen["sampling"], batch["old_per_token_logps"])  # what a mask of whole completions sums up
    expected = turn_log_ratio(seen["new"] - batch["old_per_token_logps"], batch["turn_ids"])
    torch.testing.assert_close(seen["new"] - seen["old"], expected, atol=1e-6, rtol=1e-5)


def test_play(build, rows):
    trainer = build(per_device_eval_batch_size=4)
    trainer.model.train()
    played = trainer.play(rows[:1], greedy=True, num_generations=4)
    assert (
        [rollout.rewards["correct"] for rollout in played]
        == [rollout.reward for rollout in played]
        == [0.0, 1.0, 1.0, 1.0]
    )
    assert [len(rollout.turns) for rollout in played] == [1, 2, 4, 3]
    first, answer = played[1].turns
    assert played[1].completion.startswith("<search>Lyon</search>\n<result>Lyon is in France.</result>\n<answer>")
    assert (first.text, first.observation) == ("<search>Lyon</search>", "Lyon is in France.")
    assert (first.calls[0].name, first.calls[0].arguments) == ("search", {"query": "Lyon"})
    assert (answer.text, answer.observation, answer.calls) == ("<answer>Paris</answer>", None, [])
    assert (played[1].prompt, played[1].answer, played[1].stop_reason) == (QUESTION, "Paris", "answered")
    assert first.credit["information_gain"] == pytest.approx(
        first.credit["belief_after"] - first.credit["belief_before"]
    )
    assert (
        answer.credit["information_gain"] is None
        and answer.credit["advantage"] == played[1].turns[-1].credit["advantage"]
    )
    assert trainer.model.training and trainer.generation_config.do_sample
    assert not trainer._metrics["eval"] and not trainer._logs["prompt"]


def test_play_compares_in_groups_of_its_own_size(build, rows):
    """Two rollouts of each of two rows, by a trainer whose groups have four: 0 and 1 tool turns, and 3 and 2."""
    trainer = build(per_device_eval_batch_size=4)
    _, alone, left, right = trainer.play(rows[:2], num_generations=2)
    assert alone.turns[0].credit["normalized_gain"] == 0
    pair = [rollout.turns[0].credit["normalized_gain"] for rollout in (left, right)]
    assert pair == [pytest.approx(-pair[1], abs=1e-4), pytest.approx(-pair[0], abs=1e-4)]
    assert abs(pair[0]) == pytest.approx(1, abs=1e-3)


def test_play_greedy_is_deterministic_and_sampling_is_not(build, rows):
    trainer = build(rollouts=None, max_completion_length=20)
    texts = [[trainer.play(rows[:1], greedy=greedy)[0].completion for _ in range(2)] for greedy in (True, False)]
    assert texts[0][0] == texts[0][1] and texts[1][0] != texts[1][1]


def test_logged_columns_stay_aligned(build, rows):
    """Fewer rows than the log holds: the outcome advantages are replaced, not joined by those trained on."""
    trainer = build(steps_per_generation=4, per_device_eval_batch_size=4, eval_dataset=Dataset.from_list(rows[:1]))
    trainer.evaluate()
    columns = [trainer._logs["prompt"], trainer._logs["advantages"], *trainer._logs["extra"].values()]
    assert [len(column) for column in columns] == [4] * len(columns)
    assert len(set(trainer._logs["advantages"])) == 4  # the outcome alone would be two values
