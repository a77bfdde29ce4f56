"""Adapters: beliefs are the adapted policy's, the base stays as it was, and what is exported answers as what was trained."""

import copy

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import tiny
from a2tgpo_trl.signals.beliefs import make_probe
from conftest import QUESTION, same
from scoring import TEMPLATE, naive_belief

ADAPTERS = {
    "LoRA": {},
    "DoRA": dict(use_dora=True),
    "rank-stabilised LoRA": dict(use_rslora=True),
    "LoRA of an embedding": dict(target_modules=["embed_tokens", "q_proj", "v_proj"]),
    "LoRA with a trained norm": dict(modules_to_save=["norm"]),
}
PROMPTS = [QUESTION, "Question: Which currency has Japan?"]


def lora(**options):
    defaults = dict(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights="gaussian")
    return peft.LoraConfig(**(defaults | options))


def base_weights(model):
    """What is not trained, by its name in the model without an adapter."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    return {n: p for n, p in kept.items() if "lora" not in n and "modules_to_save" not in n}


def greedy(model, prompt):
    ids = tiny.tokenizer()(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval().generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0).tolist()


@pytest.fixture
def train(build):
    def trained(**options):
        trainer = build(max_steps=3, learning_rate=0.02, **options)
        before = base_weights(trainer.model)
        trainer.train()
        return trainer, before

    return trained


def merged(model):
    return copy.deepcopy(model).merge_and_unload()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_base_stays_and_what_is_exported_answers_alike(train, kind, tmp_path):
    trainer, before = train(peft_config=lora(**ADAPTERS[kind]))
    assert len(before) >= 10 and same(base_weights(trainer.model), before)
    with trainer.model.disable_adapter():
        untrained = [greedy(trainer.model, prompt) for prompt in PROMPTS]
    answers = [greedy(trainer.model, prompt) for prompt in PROMPTS]
    assert answers != untrained
    trainer.save_model(str(tmp_path / "adapter"))
    reloaded = peft.PeftModel.from_pretrained(tiny.model(), tmp_path / "adapter")
    merged(reloaded).save_pretrained(tmp_path / "merged")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for model in (reloaded, alone):
        assert [greedy(model, prompt) for prompt in PROMPTS] == answers


def naive_beliefs(model, rollout, probe):
    """At the prompt, and after each observation."""
    context, beliefs = list(rollout.prompt_ids), []
    beliefs.append(naive_belief(model, context, probe))
    for turn in rollout.turns:
        if turn.observation_ids:
            context += turn.ids + turn.observation_ids
            beliefs.append(naive_belief(model, context, probe))
    return beliefs


@pytest.mark.parametrize("kind", ADAPTERS)
def test_beliefs_are_the_adapted_policys(train, rows, kind):
    trainer, _ = train(peft_config=lora(**ADAPTERS[kind]))
    trainer.model.train()
    batch = trainer._roll_out([dict(row) for row in rows[:4]])
    probe = make_probe(tiny.tokenizer(), TEMPLATE, "Paris")
    adapted, base = merged(trainer.model).eval(), tiny.model().eval()
    for rollout, beliefs in zip(batch.rollouts, batch.turns.signals["beliefs"].tolist(), strict=True):
        expected = naive_beliefs(adapted, rollout, probe)
        assert beliefs[: len(expected)] == pytest.approx(expected, abs=1e-4)
        assert naive_beliefs(base, rollout, probe)[0] != pytest.approx(expected[0], abs=1e-2)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_an_adapter_that_was_trained_before(build, tmp_path, beta):
    """It is trained on, and with `beta` the reference is what it was, not the base."""
    trained = peft.get_peft_model(tiny.model(), lora(init_lora_weights=False))
    trained.save_pretrained(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(tiny.model(), tmp_path / "adapter", is_trainable=True)
    before, model_given = base_weights(model), copy.deepcopy(model)
    trainer = build(model=model, max_steps=3, learning_rate=0.01, beta=beta)
    trainer.train()
    assert same({n: p for n, p in base_weights(trainer.model).items() if n in before}, before)
    if beta:
        first, _, last = [log["kl"] for log in trainer.state.log_history if "kl" in log]
        assert first == 0 and last > 0
        of_reference = {name: p for name, p in trainer.model.named_parameters() if ".ref." in name}
        given = {name: p for name, p in model_given.named_parameters() if "lora" in name}
        assert len(of_reference) == len(given) > 10
        assert all(torch.equal(p, given[name.replace(".ref.", ".default.")]) for name, p in of_reference.items())


def test_a_quantised_base(build, rows, tmp_path):
    """QLoRA: the four-bit base stays, beliefs are those of the adapted model, and an adapter that is read again answers alike."""
    # On a CPU bitsandbytes generates only with layers as wide as its blocks
    tiny.model(hidden_size=64, head_dim=16, intermediate_size=128).save_pretrained(tmp_path / "model")

    def quantised():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.float32
        )

    trainer = build(model=quantised(), peft_config=lora(), max_steps=3, learning_rate=0.02)
    before = base_weights(trainer.model)
    trainer.train()
    assert len(before) >= 10 and same(base_weights(trainer.model), before)
    trainer.model.train()
    batch = trainer._roll_out([dict(row) for row in rows[:4]])
    probe, model = make_probe(tiny.tokenizer(), TEMPLATE, "Paris"), trainer.model
    for rollout, beliefs in zip(batch.rollouts, batch.turns.signals["beliefs"].tolist(), strict=True):
        with torch.no_grad():
            expected = naive_beliefs(model, rollout, probe)
            with model.disable_adapter():
                of_base = naive_beliefs(model, rollout, probe)
        assert beliefs[: len(expected)] == pytest.approx(expected, abs=1e-3)
        assert of_base[0] != pytest.approx(expected[0], abs=1e-2)
    trainer.save_model(str(tmp_path / "adapter"))
    reloaded = peft.PeftModel.from_pretrained(quantised(), tmp_path / "adapter")
    answers = [greedy(model, prompt) for prompt in PROMPTS]
    assert [greedy(reloaded, prompt) for prompt in PROMPTS] == answers
    with model.disable_adapter():
        assert [greedy(model, prompt) for prompt in PROMPTS] != answers
