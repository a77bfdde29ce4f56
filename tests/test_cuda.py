"""
What runs in another way on a GPU: compiled flex attention, TRL's fused LM head in Triton, mixed precision, and who waits.

    pytest tests/test_cuda.py

Skipped where there is no GPU; with `--test-device cpu` all but what only a GPU can show is tried on the CPU.
"""

import contextlib
import math
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig

import tiny
from a2tgpo_trl.signals.beliefs.attention import why_no_flex
from conftest import CHAT_ROWS, chat_correct
from histories import Player, same_turns
from scoring import agree, make_rows, make_scorer, measured, naive, with_shared_forward
from test_loss_cost import batch_of, grpo_loss


@pytest.fixture
def device(request):
    name = request.config.getoption("--test-device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU; --test-device cpu tries it on the CPU")
    torch.compiler.reset()  # else what earlier tests compiled counts towards the most that is kept
    return torch.device(name)


@pytest.fixture
def cuda(device):
    if device.type != "cuda":
        pytest.skip("only a GPU shows it")
    return device


def wide_model(architecture="llama", **options):
    """Heads of 16 numbers, the fewest that flex attention takes."""
    return tiny.model(architecture, head_dim=16, **options).eval()


def same_beliefs(model, scorer, atol):
    """On every path, against one forward for each context in float64 on the CPU."""
    rows = make_rows()
    expected = naive(wide_model(model.config.model_type), rows)
    trees, shared = measured(scorer, model, rows), with_shared_forward(scorer, model, rows)
    scorer.why_prefixes = "as if"
    for actual in (trees, shared, measured(scorer, model, rows)):
        agree(actual, expected, atol)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_beliefs_agree_with_the_naive_loop(architecture, device):
    """In float32; on a GPU trees are scored with flex attention, compiled."""
    model = wide_model(architecture).to(device)
    scorer = make_scorer(model)
    assert scorer.attention == ("flex" if device.type == "cuda" else "blocks")
    same_beliefs(model, scorer, atol=1e-4)


def test_beliefs_in_bfloat16(device, monkeypatch):
    """With weights in float32, as mixed precision has them."""
    model = wide_model().to(device)
    scorer = make_scorer(model)
    monkeypatch.setattr(scorer.accelerator, "autocast", lambda: torch.autocast(device.type, torch.bfloat16))
    same_beliefs(model, scorer, atol=0.5)
    with pytest.raises(AssertionError):
        same_beliefs(model, scorer, atol=1e-4)  # it is bfloat16


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "dtype"),
    [(14, 2, 64, torch.float16), (9, 3, 64, torch.bfloat16), (16, 8, 128, torch.float32)],
    ids=["Qwen2.5-0.5B", "SmolLM2-135M", "Qwen3-0.6B"],
)
def test_flex_attention_compiles(heads, kv_heads, size, dtype, cuda):
    config = LlamaConfig(
        hidden_size=heads * size, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=size
    )
    assert why_no_flex(config, dtype, cuda) is None


# Beliefs that share the forward of the old log-probabilities, and those that take forwards of their own
UPDATES = {"shared": {}, "trees": dict(per_device_train_batch_size=4, steps_per_generation=1), "pictures": {}}


def pictured():
    """A model for pictures, and questions about one."""
    tiny_vision = pytest.importorskip(
        "tiny_vision", reason="older transformers lack some of its models", exc_type=ImportError
    )
    rows = [row | {"image": tiny_vision.picture("blue", (32, 24))} for row in CHAT_ROWS]
    given = dict(processing_class=tiny_vision.processor("qwen2_5_vl"), reward=chat_correct, tool_protocol="tags")
    return dict(model=tiny_vision.model("qwen2_5_vl"), dataset=Dataset.from_list(rows), **given)


def untimed(trainer):
    """What was logged of each update, without its seconds; NaN where there was nothing to measure."""
    rows = [row for row in trainer.state.log_history if "loss" in row]
    timed = ("time", "latency")
    return [
        {name: math.nan if value is None else value for name, value in row.items() if not any(map(name.count, timed))}
        for row in rows
    ]


@pytest.mark.parametrize("updates", UPDATES)
def test_training_is_that_of_the_cpu(updates, build, device):
    """In float32 on the same rollouts: gains, what else is logged, and weights after two updates."""

    def train(use_cpu):
        # With Adam, a gradient of zero plus rounding would be a step as large as any
        options = dict(use_cpu=use_cpu, optim="sgd", learning_rate=0.03, **UPDATES[updates])
        trainer = build(**made(), **options)
        trainer.train()
        assert trainer.model.device.type == ("cpu" if use_cpu else device.type)
        return trainer

    made = pictured if updates == "pictures" else lambda: {"model": wide_model()}
    before = made()["model"].state_dict()
    expected, actual = train(use_cpu=True), train(use_cpu=device.type == "cpu")
    assert expected.state.log_history[0]["information_gain/std"] > 0.1
    for ours, theirs in zip(untimed(actual), untimed(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3, nan_ok=True)
    moved = 0.0
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(actual.model.state_dict()[name].cpu(), weight, atol=1e-4, rtol=0)
        moved = max(moved, (weight - before[name]).abs().max().item())
    assert moved > 1e-3


def different_letters(completions, **kwargs):
    """A reward that what random weights write differs by."""
    return [len(set(text)) / 10 for text in completions]


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_training_on_what_the_model_writes(precision, build, request, rows):
    """Tags, sampling with histories, credit and updates; then greedy play."""
    device = request.getfixturevalue("cuda" if precision == "fp16" else "device")
    mixed = {} if precision == "float32" else {precision: True}
    options = dict(use_cpu=device.type == "cpu", max_completion_length=24, max_steps=8, **mixed)
    trainer = build(rollouts=None, model=wide_model(), reward=different_letters, **options)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 8 and all(torch.tensor(row["loss"]).isfinite() for row in logs)
    assert "rollout/tokens_fed_ratio" in logs[0]
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())
    played = trainer.play([dict(row) for row in rows[:2]], greedy=True, num_generations=2)
    assert len(played) == 4 and played[0].completion == played[1].completion
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


@pytest.mark.parametrize("share_prompts", [True, False])
def test_history_keeps_the_turns(share_prompts, device):
    same_turns(Player(wide_model().to(device), share_prompts=share_prompts))


def test_the_loss_waits_no_more_often_than_trls(build, cuda):
    trainer, batch = batch_of(build, 4, 3, use_cpu=False)

    def waits(compute_loss):
        compute_loss(trainer.model, batch).backward()
        with synchronizations() as caught:
            compute_loss(trainer.model, batch).backward()
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    theirs = waits(grpo_loss(trainer))
    assert theirs > 0  # TRL's metrics read numbers
    assert waits(trainer._compute_loss) == theirs


@contextlib.contextmanager
def synchronizations():
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        torch.cuda.set_sync_debug_mode("default")
