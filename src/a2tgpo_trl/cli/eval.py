"""`a2tgpo eval`: how often a model answers right, with its tools, on questions it has not seen."""

import json
import tempfile
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

    @property
    def place(self) -> tuple[str, int]:
        return self.dataset, self.index


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
ROLLOUTS = (
    "max_completion_length",
    "max_tool_calling_iterations",
    "max_turn_tokens",
    "max_observation_tokens",
    "tool_protocol",
    "tool_tags",
    "result_tag",
    "generation_kwargs",
    "chat_template_kwargs",
)
"""Options of A2TGPOConfig that answers depend on."""


def run(options: list[str]) -> int:
    """Ask what is missing, and print the scores of all answers; returns the exit status."""
    arguments, config, model = parse("eval", DESCRIPTION, (EvalArguments, A2TGPOConfig, ModelConfig), options)
    is_writer = config.process_index == 0
    with as_bad_usage():
        questions = list(_questions(arguments))
        output = Path(arguments.output)
        with config.main_process_first(local=False, desc="reading answers"):
            answers = open_answers(output, _settings(arguments, config, model))
        missing = [question for question in questions if not _is_answered(question, answers, output)]
        trainer = _build(arguments, config, model, questions) if missing else None
    for batch in _batches(missing, config.per_device_eval_batch_size, max(arguments.samples, 1), config.world_size):
        found = _ask(trainer, batch, arguments.samples)
        answers |= {(answer["dataset"], answer["index"]): answer for answer in found}
        if is_writer:
            with output.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in found)
            print(f"{len(answers)} of {len(questions)} questions", flush=True)
    if is_writer:
        print(summarize([answers[question.place] for question in questions]))
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


def _settings(arguments: EvalArguments, config: A2TGPOConfig, model: ModelConfig) -> dict[str, Any]:
    """What the answers in one file have in common."""
    settings = {"model": model.model_name_or_path, "revision": model.model_revision, "samples": arguments.samples}
    settings |= {name: getattr(arguments, name) for name in vars(arguments) if name.startswith(("tools", "search_"))}
    options = ROLLOUTS + SAMPLING if arguments.samples else ROLLOUTS
    return settings | {name: getattr(config, name) for name in options}


def open_answers(file: Path, settings: dict[str, Any]) -> dict[tuple[str, int], dict]:
    """
    The answers that an earlier run left, by set and index; a new file if there is none.

    A last line that was cut off is dropped.

    Args:
        file (`Path`): JSONL: the settings, then an answer a line.
        settings (`dict`): What the answers depend on beside the question.

    Raises:
        ValueError: If the file is of other settings, or holds something else.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    head, *lines = text.split("\n")[:-1] or [None]  # an interrupted run may have left half a line
    if head is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, ensure_ascii=False) + "\n", encoding="utf-8")
        return {}
    try:
        before = json.loads(head)
        answers = {(answer["dataset"], answer["index"]): answer for answer in map(json.loads, lines)}
        other = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} holds no answers of a2tgpo eval: name another output.") from error
    if other:
        differences = ", ".join(f"{name} {before.get(name)!r}, now {settings.get(name)!r}" for name in other)
        raise ValueError(f"{file} holds answers to other settings ({differences}): name another output.")
    if not text.endswith("\n"):
        file.write_text(text[: text.rindex("\n") + 1], encoding="utf-8")
    return answers


def _is_answered(question: Question, answers: dict[tuple[str, int], dict], file: Path) -> bool:
    answer = answers.get(question.place)
    if answer is None:
        return False
    if answer["prompt"] != question.row["prompt"]:
        raise ValueError(
            f"{file} has an answer to another prompt at {question.dataset} {question.index}: name another output, or "
            "give the set another name."
        )
    return True


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
    """A model, or an adapter merged into the model that it was trained on, unless that is quantized."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(name, revision=options["revision"]) is None:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    adapted = AutoPeftModelForCausalLM.from_pretrained(name, **options)
    return adapted if options["quantization_config"] else adapted.merge_and_unload()


def _tokenizer(name: str, config: A2TGPOConfig):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, padding_side="left", trust_remote_code=config.trust_remote_code)


def _batches(missing: list[Question], batch_size: int, samples: int, processes: int) -> Iterator[list[Question]]:
    size = max(batch_size // samples, 1) * processes
    for start in range(0, len(missing), size):
        yield missing[start : start + size]


def _ask(trainer: A2TGPOTrainer, questions: list[Question], samples: int) -> list[dict]:
    """One answer for each question, with the scores of its samples; processes share the questions."""
    count = max(samples, 1)
    processes = trainer.accelerator.num_processes
    padded = questions + questions[-1:] * (-len(questions) % processes)
    with trainer.accelerator.split_between_processes(padded) as own:
        played = trainer.play([question.row for question in own], samples == 0, count)
    rollouts = [played[i * count : (i + 1) * count] for i in range(len(questions))]
    return [
        {
            "dataset": question.dataset,
            "index": question.index,
            "prompt": question.row["prompt"],
            "answer": question.row["answer"],
            "completions": [rollout["completion"] for rollout in group],
            "exact_match": [rollout["rewards"]["exact_match_reward"] for rollout in group],
            "f1": [rollout["rewards"]["f1_reward"] for rollout in group],
        }
        for question, group in zip(questions, rollouts, strict=True)
    ]
