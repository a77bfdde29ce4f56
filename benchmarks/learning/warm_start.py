"""The warm start: a random tiny Llama, trained on scripted traces, kept on disk by what it depends on."""

import hashlib
import inspect
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from task import IGNORED, Habits, Task
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

CACHE = Path(__file__).parents[2] / "outputs" / "learning" / "warm_starts"
PART = 16
"""Traces of about the same length that are padded together; a step takes all its parts."""


@dataclass(frozen=True)
class WarmStart:
    """
    Settings of a warm start.

    Attributes:
        habits (`dict[int, Habits]`): By number of hops, how scripted traces go on.
        steps (`int`): Optimizer steps.
        traces (`int`): In each step, each in a world of its own.
        learning_rate (`float`): Peak, with warm-up and a cosine to 0.
        noisy (`float`): Share of traces in worlds whose results are noisy.
        result_noise (`float`): Probability of `none` there.
    """

    habits: dict[int, Habits] = field(default_factory=dict)
    steps: int = 2500
    traces: int = 48
    learning_rate: float = 3e-3
    noisy: float = 0.25
    result_noise: float = 0.3


WARM_STARTS = {
    "short": WarmStart(
        {2: Habits(stop=0.3, wrong=0.12), 3: Habits(stop=0.25, wrong=0.12), 4: Habits(stop=0.25, wrong=0.12)}
    ),
    "long": WarmStart(
        {
            hops: Habits(stop, wrong=0.05, repeat=0.03, needless=0.05)
            for hops, stop in ((4, 0.08), (6, 0.06), (8, 0.05))
        },
        steps=2000,
        traces=32,
        noisy=0.1,
    ),
    "facts": WarmStart({2: Habits(stop=0.1), 3: Habits(stop=0.3)}, steps=1500),
}


def make_model(task: type[Task], seed: int) -> LlamaForCausalLM:
    """Random: 3 layers of width 128."""
    torch.manual_seed(seed)
    tokenizer = task.make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
        **task.model,
    )
    return LlamaForCausalLM(config)


def batches(task: type[Task], settings: WarmStart, seed: int) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Of each step the ids and labels, in parts of traces of about the same length, so that little is padded."""
    traces, pad = task.traces(settings, seed), task.make_tokenizer().pad_token_id
    for _ in range(settings.steps):
        rows = sorted(islice(traces, settings.traces), key=lambda trace: len(trace[0]))
        parts = (zip(*rows[i : i + PART], strict=True) for i in range(0, len(rows), PART))
        yield [(_padded(ids, pad), _padded(labels, IGNORED)) for ids, labels in parts]


def _padded(rows: Iterable[list[int]], fill: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed over what is learned; only there are logits computed."""
    hidden, targets = model.model(input_ids=ids).last_hidden_state[:, :-1], labels[:, 1:]
    learned = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), targets[learned], reduction="sum")


def train(task: type[Task], settings: WarmStart, seed: int) -> LlamaForCausalLM:
    """Supervised training from random weights."""
    model, start = make_model(task, seed), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step, parts in enumerate(batches(task, settings, seed), start=1):
        number = sum((labels[:, 1:] != IGNORED).sum().item() for _, labels in parts)
        loss = 0.0
        for ids, labels in parts:
            part = loss_of(model, ids, labels) / number
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            seconds = time.monotonic() - start
            print(
                f"warm start, seed {seed}: step {step}/{settings.steps}, loss {loss:.3f}, {seconds:.0f} s", flush=True
            )
    return model


def folder_of(task: Task, seed: int) -> Path:
    """Where a warm start is kept: by its settings, its seed and the code that it depends on."""
    sources = [inspect.getsource(part) for part in (*task.modules, make_model, batches, loss_of, train)]
    content = json.dumps([asdict(WARM_STARTS[task.warm_start]), seed, sources], sort_keys=True)
    return CACHE / f"{task.warm_start}-{seed}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def warm_start(task: Task, seed: int) -> Path:
    """The folder of a warm start, which is trained if it is not there yet."""
    folder = folder_of(task, seed)
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        train(type(task), WARM_STARTS[task.warm_start], seed).save_pretrained(partial)
        partial.rename(folder)
    return folder
