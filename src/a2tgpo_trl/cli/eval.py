"""`a2tgpo eval`: how often a model answers right, with its tools, on questions it has not seen."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import ModelConfig, get_quantization_config

from .. import A2TGPOConfig, A2TGPOTrainer
from ..rewards import exact_match_reward, f1_reward
from .main import as_bad_usage
from .names import TaskArguments
from .parser import parse
from .scores import summarize
from .train import loading_options

DESCRIPTION = (
    "Exact match and token F1 of a model, a folder, an adapter or a name on the Hub. Rollout options of A2TGPOConfig "
    "(tool_protocol, max_completion_length, temperature, use_vllm, …) are taken as well."
)


@dataclass
class EvalArguments(TaskArguments):
    """What to ask, how often, and where to keep the answers."""

    datasets: list[str] = field(
        default_factory=list,
        metadata={"help": "Question sets, as train's dataset; with name=, what to call one: hotpot=dev.jsonl."},
    )
    split: str = field(default="test", metadata={"help": "Split of the sets to ask."})
    samples: int = field(
        default=0, metadata={"help": "Sampled answers to each question; 0 takes one greedy answer to each."}
    )
    limit: int | None = field(default=None, metadata={"help": "Questions of each set to ask, the first ones."})
    output: str = field(
        default="eval.jsonl",
        metadata={"help": "File of the answers, one a line. A second run asks only what is missing in it."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.datasets:
            raise ValueError("datasets is empty: name at least one question set.")
        if self.samples < 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"samples={self.samples} must be at least 0 and limit={self.limit} at least 1.")


@dataclass(frozen=True)
class Question:
    """A row of a set, by the name of the set and its place in it."""

    dataset: str
    index: int
    row: dict[str, Any]


def run(options: list[str]) -> int:
    """Ask what is missing, and print the scores of all answers; returns the exit status."""
    arguments, config, model = parse("eval", DESCRIPTION, (EvalArguments, A2TGPOConfig, ModelConfig), options)
    with as_bad_usage():
        questions = list(_questions(arguments))
        output = Path(arguments.output)
        answers = read_answers(output, _settings(arguments, model))
        missing = [q for q in questions if (q.dataset, q.index) not in answers]
        trainer = _build(arguments, config, model, questions) if missing else None
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(_settings(arguments, model)) + "\n", encoding="utf-8")
    for batch in _batches(missing, config.per_device_eval_batch_size, max(arguments.samples, 1)):
        found = _ask(trainer, batch, arguments.samples)
        with output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found)
        answers |= {(answer["dataset"], answer["index"]): answer for answer in found}
        print(f"{len(answers)} of {len(questions)} questions", flush=True)
    asked = [answers[question.dataset, question.index] for question in questions]
    print(summarize(asked))
    return 0


def _questions(arguments: EvalArguments) -> Iterator[Question]:
    names = set()
    for source in arguments.datasets:
        name, _, path = source.rpartition("=")
        name = name or Path(path).stem
        if name in names:
            raise ValueError(f"datasets has two sets called {name!r}: give one another name, other={path}.")
        names.add(name)
        rows = arguments.load_data(path, arguments.split)
        for index, row in enumerate(rows.take(min(arguments.limit or len(rows), len(rows)))):
            yield Question(name, index, row)


def _settings(arguments: EvalArguments, model: ModelConfig) -> dict[str, Any]:
    """What answers in one file have in common."""
    return {"model": model.model_name_or_path, "samples": arguments.samples, "tools": arguments.tools}


def read_answers(file: Path, settings: dict[str, Any]) -> dict[tuple[str, int], dict]:
    """
    The answers that an earlier run left, by set and index. A last line that was cut off is dropped.

    Raises:
        ValueError: If the file is of another model, or another way to ask it.
    """
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").split("\n")
    if lines[-1]:  # an interrupted run left half a line
        file.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
    if not lines[:-1] or json.loads(lines[0]) != settings:
        raise ValueError(f"{file} holds answers to other settings ({lines[0]}): name another output.")
    answers = map(json.loads, lines[1:-1])
    return {(answer["dataset"], answer["index"]): answer for answer in answers}


def _build(
    arguments: EvalArguments, config: A2TGPOConfig, model: ModelConfig, questions: list[Question]
) -> A2TGPOTrainer:
    from datasets import Dataset

    if model.model_name_or_path is None:
        raise ValueError("model_name_or_path is missing: name a model on the Hub, a folder, or a trained adapter.")
    config.advantage_estimator = "grpo"  # answers are scored, turns are not
    config.output_dir = tempfile.mkdtemp()  # the trainer wants one, and writes nothing here
    options = {**loading_options(model, config), "quantization_config": get_quantization_config(model)}
    config.model_init_kwargs = None  # the trainer gets a model that is loaded
    return A2TGPOTrainer(
        model=_load(model.model_name_or_path, options),
        reward_funcs=[exact_match_reward, f1_reward],
        args=config,
        train_dataset=Dataset.from_list([questions[0].row]),
        tools=arguments.load_tools() or None,
        processing_class=_tokenizer(model.model_name_or_path, config),
    )


def _load(name: str, options: dict[str, Any]):
    """A model, or an adapter merged into the model that it was trained on."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    if (Path(name) / "adapter_config.json").exists():
        return AutoPeftModelForCausalLM.from_pretrained(name, **options).merge_and_unload()
    return AutoModelForCausalLM.from_pretrained(name, **options)


def _tokenizer(name: str, config: A2TGPOConfig):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=config.trust_remote_code)


def _batches(missing: list[Question], batch_size: int, samples: int) -> Iterator[list[Question]]:
    size = max(batch_size // samples, 1)
    for start in range(0, len(missing), size):
        yield missing[start : start + size]


def _ask(trainer: A2TGPOTrainer, questions: list[Question], samples: int) -> list[dict]:
    """One answer for each question, with the scores of its samples."""
    played = trainer.play([question.row for question in questions], samples == 0, max(samples, 1))
    groups = defaultdict(list)
    for i, rollout in enumerate(played):
        groups[i // max(samples, 1)].append(rollout)
    return [
        {
            "dataset": question.dataset,
            "index": question.index,
            "prompt": groups[i][0]["prompt"],
            "answer": question.row["answer"],
            "completions": [rollout["completion"] for rollout in groups[i]],
            "exact_match": [rollout["rewards"]["exact_match_reward"] for rollout in groups[i]],
            "f1": [rollout["rewards"]["f1_reward"] for rollout in groups[i]],
        }
        for i, question in enumerate(questions)
    ]
