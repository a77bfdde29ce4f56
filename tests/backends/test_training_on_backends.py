"""Training on the backends: the engine generates with the weights as they are, adapters merged."""

import copy
import json

import pytest
import torch
from peft import LoraConfig

import chance
import tiny
from a2tgpo_trl.cli.main import main
from chain import chain
from on_backends import CHAIN_ROWS, OTHERS, needs_vllm, played

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
UPDATES = {"learning_rate": 2e-2, "max_steps": 3, "num_generations": 4, "max_completion_length": 60}


def by_length(completions, **kwargs):
    return [float(len(str(messages)) % 5) for messages in completions]


def merged(trainer):
    model = copy.deepcopy(trainer.model)
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_rollouts_follow_the_weights(by_chance, backend, peft_config):
    options = {"max_completion_length": 60, "advantage_estimator": "a2tgpo"}
    trainer = by_chance(backend, peft_config=peft_config, reward=by_length, **{**options, **UPDATES})
    before = played(trainer, chance.rows())
    trainer.train()
    after = played(trainer, chance.rows())
    assert after[1] != before[1]
    expected = played(by_chance("transformers", model=merged(trainer), **options), chance.rows())
    assert after[1] == expected[1]


def hesitant(tokenizer):
    """A chain that sometimes leaves its path, so that there is something to learn."""
    model = chain(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.045)
    return model


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_rollouts_with_tags_follow_the_weights(by_chain, backend, peft_config):
    # In lockstep samples do not depend on when tools answer; some updates leave near ties, which backends break differently
    options = {"max_completion_length": 60, "advantage_estimator": "a2tgpo", "num_generations": 4, "lockstep": True}
    updates = {"learning_rate": 0.3, "max_steps": 3}
    model = hesitant(tiny.tokenizer())
    trainer = by_chain(backend, model=model, peft_config=peft_config, reward=by_length, **options, **updates)
    before = played(trainer, CHAIN_ROWS)
    trainer.train()
    assert sum(log.get("tools/search/calls", 0) for log in trainer.state.log_history) > 0
    after = played(trainer, CHAIN_ROWS)
    assert after[1] != before[1]
    expected = played(by_chain("transformers", model=merged(trainer), **options), CHAIN_ROWS)
    assert after[1] == expected[1]


@needs_vllm
def test_the_importance_correction_of_a_trained_policy_is_of_that_policy(by_chance):
    trainer = by_chance("vllm", peft_config=LORA, reward=by_length, advantage_estimator="a2tgpo", **UPDATES)
    trainer.train()
    trainer.model.train()
    batch = trainer._generate_and_score_completions(chance.rows())
    written = (batch["completion_mask"] * batch["tool_mask"]).bool()
    torch.testing.assert_close(
        batch["sampling_per_token_logps"][written], batch["old_per_token_logps"][written], atol=5e-3, rtol=5e-3
    )
    logged = trainer.state.log_history[0]
    assert logged["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-2)


@needs_vllm
def test_the_evaluation_command_on_the_engine(small, save, engine, tmp_path, capsys):
    folder = save(small(), tiny.tokenizer())
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n}?", "answer": "Paris"}) + "\n" for n in range(3)))
    command = f"eval --datasets {data} --model_name_or_path {folder} --tools calculator --max_completion_length 20"
    answers = {}
    for name, flags in (("transformers", ""), ("vllm", "--use_vllm --vllm_max_model_length 1024")):
        output = tmp_path / f"{name}.jsonl"
        assert main([*command.split(), "--output", str(output), *flags.split()]) == 0
        assert "3 of 3 questions" in capsys.readouterr().out
        _, *answers[name] = map(json.loads, output.read_text().splitlines())
    assert answers["vllm"] == answers["transformers"]


@pytest.mark.parametrize("backend", OTHERS)
def test_evaluation_of_several_batches(by_chance, backend):
    """Continuous batching puts the model into training mode."""
    options = {"num_generations_eval": 2, "per_device_eval_batch_size": 2, "max_completion_length": 30}
    trainer = by_chance(backend, reward=by_length, num_generations=4, **options)
    metrics = trainer.evaluate(chance.dataset().select(range(3)))
    assert metrics["eval_reward"] >= 0 and not trainer.model.training
    assert not any(trainer._metrics["train"].values())
