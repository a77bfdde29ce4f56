"""The warm start: supervised fine-tuning on scripted traces, most of which are lazy on purpose.

As shipped, the model can neither use the tags nor chain two searches. A full trace searches twice and answers; a lazy one
stops after the first search and answers with the country, which is never right. A model trained on both learns the
protocol and keeps the habit of stopping early: what is left for reinforcement learning is to find out that the second
search pays. Every token of a trace is placed as the tool loop places it in a rollout.

A space follows each opening tag. Words have other tokens after a space than without one, and so the words of a query or an answer
have the tokens that they have in the midst of a question or a result: a small model copies tokens well, and spells badly.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from ..rollout import TagProtocol
from .model import load_model, load_tokenizer

PROMPT_TEMPLATE = "Question: {question}\n"
QUERY_TEMPLATE = "<search> {query}</search>"
ANSWER_TEMPLATE = "<answer> {answer}</answer>"
MADE_OF = "warm_start.json"  # in the adapter's folder
IGNORED = -100  # the label of tokens that the model does not write


@dataclass(frozen=True)
class WarmStart:
    """
    Settings of the warm start.

    Attributes:
        steps (`int`): Optimizer steps.
        traces_per_step (`int`): Traces in each step; no trace is seen twice.
        lazy_share (`float`): Share of lazy traces, the same in every step.
        learning_rate (`float`): Peak, with linear decay to zero.
        lora_rank (`int`): Rank of the adapter on all linear layers.
        seed (`int`): Picks the traces and the adapter's first weights.
    """

    steps: int = 48
    traces_per_step: int = 8
    lazy_share: float = 0.7
    learning_rate: float = 1e-3
    lora_rank: int = 16
    seed: int = 0


def lazy_pattern(number: int, share: float) -> list[bool]:
    """Which of `number` traces are lazy: `share` of them, spread evenly, so that every batch has its part."""
    return [int((i + 1) * share) > int(i * share) for i in range(number)]


def trace_segments(question: dict, search: Callable[[str], str], lazy: bool) -> list[tuple[str, str | None]]:
    """The turns of a perfect or a lazy agent, each with the search result that follows it (`None` after the last)."""
    queries = question["supports"][:1] if lazy else question["supports"]
    answer = question["country"] if lazy else question["answer"][0]
    turns = [(QUERY_TEMPLATE.format(query=query), search(query)) for query in queries]
    return [*turns, (ANSWER_TEMPLATE.format(answer=answer), None)]


def tokenize_trace(prompt: str, segments: list[tuple[str, str | None]], tokenizer, protocol: TagProtocol) -> dict:
    """Ids and labels of a trace; labels are the ids of what the model writes, and nothing elsewhere."""
    input_ids = tokenizer(prompt)["input_ids"]
    labels = [IGNORED] * len(input_ids)
    for turn, result in segments:
        ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
        observed = (
            [tokenizer.eos_token_id] if result is None else protocol.observe([{"role": "tool", "content": result}])[1]
        )
        input_ids += ids + observed
        labels += ids + (observed if result is None else [IGNORED] * len(observed))
    return {"input_ids": input_ids, "labels": labels}


def make_traces(questions: Sequence[dict], search: Callable[[str], str], tokenizer, settings: WarmStart) -> Dataset:
    """Tokenised traces in the order in which they are to be seen."""
    number = settings.steps * settings.traces_per_step
    chosen = random.Random(settings.seed).sample(list(questions), number)
    protocol = TagProtocol(tokenizer, [search])
    return Dataset.from_list(
        [
            tokenize_trace(
                PROMPT_TEMPLATE.format(**question), trace_segments(question, search, lazy), tokenizer, protocol
            )
            for question, lazy in zip(chosen, lazy_pattern(number, settings.lazy_share), strict=True)
        ]
    )


class StepProgress(TrainerCallback):
    """Prints the loss of every fifth step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and state.global_step % 5 == 0:
            print(f"  step {state.global_step}/{state.max_steps}: loss {float(logs['loss']):.2f}", flush=True)


def warm_up(
    model_folder: Path,
    adapter_folder: Path,
    questions: Sequence[dict],
    search: Callable[[str], str],
    settings: WarmStart,
    use_cpu: bool = True,
) -> Path:
    """
    Train the adapter into `adapter_folder`, and return that. One of the same settings and traces is kept; anything else there is replaced.
    """
    if is_kept(adapter_folder, settings):
        return adapter_folder
    tokenizer = load_tokenizer(model_folder)
    partial = adapter_folder.with_name(adapter_folder.name + ".partial")
    trainer = SFTTrainer(
        model=load_model(model_folder),
        args=SFTConfig(
            output_dir=str(partial),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.traces_per_step,
            learning_rate=settings.learning_rate,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            loss_type="chunked_nll",  # skips the LM head on tokens that have no label
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=use_cpu,
            seed=settings.seed,
        ),
        train_dataset=make_traces(questions, search, tokenizer, settings),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[StepProgress()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(partial))
    (partial / MADE_OF).write_text(json.dumps(made_of(settings), indent=1) + "\n")
    shutil.rmtree(adapter_folder, ignore_errors=True)
    partial.rename(adapter_folder)
    return adapter_folder


def is_kept(adapter_folder: Path, settings: WarmStart) -> bool:
    """Whether a folder holds an adapter of these settings, trained on traces of this form."""
    file = adapter_folder / MADE_OF
    return file.is_file() and json.loads(file.read_text()) == made_of(settings)


def made_of(settings: WarmStart) -> dict:
    """What an adapter depends on."""
    return asdict(settings) | {"query": QUERY_TEMPLATE, "answer": ANSWER_TEMPLATE}
