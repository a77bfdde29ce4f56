"""The warm start: a random tiny Llama, trained on scripted traces in fresh worlds, kept on disk by what it depends on."""

import hashlib
import inspect
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import task as tasks
import torch
import world as worlds
from task import ANSWER_TEMPLATE, NOTHING, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from world import Habits, World, ask, trace

CACHE = Path(__file__).parents[2] / "outputs" / "learning" / "warm_starts"
IGNORED = -100


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
}


def make_model(seed: int) -> LlamaForCausalLM:
    """Random: 3 layers of width 128."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
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
    )
    return LlamaForCausalLM(config)


def trace_text(chance: random.Random, settings: WarmStart) -> tuple[str, str]:
    """The prompt of a scripted rollout in a fresh world, and what follows it."""
    world = World(chance.getrandbits(48))
    question = ask(chance, chance.choice(list(settings.habits)), chance.random() < 0.5)
    noise = settings.result_noise if chance.random() < settings.noisy else 0.0

    def result(query):
        return None if chance.random() < noise else world.fact(*query)

    asked, answer = trace(chance, world, question, settings.habits[len(question.relations)], result)
    told = [
        f"<search> e{e} r{r} </search> <result> {NOTHING if fact is None else f'e{e} r{r} e{fact}'} </result>"
        for (e, r), fact in asked
    ]
    return question.prompt, " ".join([*told, ANSWER_TEMPLATE.format(answer=f"e{answer}")])


def batches(settings: WarmStart, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of each step; everything behind the prompt is learned, results too, which teach the clusters."""
    tokenizer, chance = make_tokenizer(), random.Random(seed)
    for _ in range(settings.steps):
        texts = [trace_text(chance, settings) for _ in range(settings.traces)]
        rows = [[tokenizer(text)["input_ids"] for text in pair] for pair in texts]
        width = max(len(prompt) + len(rest) for prompt, rest in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        for i, (prompt, rest) in enumerate(rows):
            ids[i, : len(prompt) + len(rest)] = torch.tensor(prompt + rest)
            labels[i, len(prompt) : len(prompt) + len(rest)] = torch.tensor(rest)
        yield ids, labels


def train(settings: WarmStart, seed: int) -> LlamaForCausalLM:
    """Supervised training from random weights."""
    model, start = make_model(seed), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step, (ids, labels) in enumerate(batches(settings, seed), start=1):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
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


def folder_of(name: str, seed: int) -> Path:
    """Where a warm start is kept: by its settings, its seed and the code that it depends on."""
    sources = [inspect.getsource(module) for module in (worlds, tasks)] + [
        inspect.getsource(part) for part in (make_model, trace_text, batches, train)
    ]
    content = json.dumps([asdict(WARM_STARTS[name]), seed, sources], sort_keys=True)
    return CACHE / f"{name}-{seed}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def warm_start(name: str, seed: int) -> Path:
    """The folder of a warm start, which is trained if it is not there yet."""
    folder = folder_of(name, seed)
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        train(WARM_STARTS[name], seed).save_pretrained(partial)
        partial.rename(folder)
    return folder
