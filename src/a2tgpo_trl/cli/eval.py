"""`a2tgpo eval`: how often a model answers right, with its tools, on questions it has not seen."""

import glob
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trl import ModelConfig

from .. import A2TGPOConfig, A2TGPOTrainer
from ..checks import has_pictures
from ..integrations.plain import plain
from ..records.tables import as_json
from ..rewards import exact_match_reward, f1_reward
from ..rollout.pictures import digest
from .main import as_bad_usage
from .models import ModelSource, find_model
from .names import TaskArguments, tag_of_finish
from .parser import parse
from .prompts import default_template
from .scores import summarize
from .searches import check_retrievers
from .train import TrainArguments

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
    split: list[str] = field(
        default_factory=lambda: ["test"], metadata={"help": "Split of the sets to ask: one for all, or one for each."}
    )
    subset: list[str] = field(
        default_factory=list,
        metadata={"help": "Subset (configuration) of sets on the Hub: one for all, or one for each."},
    )
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
        for option in ("split", "subset"):
            if len(given := getattr(self, option)) not in (option == "subset" and 0, 1, len(self.datasets)):
                raise ValueError(
                    f"{option} has {len(given)} values: give one for all sets, or one for each of {len(self.datasets)}."
                )
        names = [name for name, *_ in self.sets()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"datasets has two sets called {twice.pop()!r}: give one another name, other=dev.jsonl.")

    def sets(self) -> Iterator[tuple[str, str, str, str | None]]:
        """What each set is called, where it is, its split, and its subset."""
        splits, subsets = self.split, self.subset or [None]
        for i, source in enumerate(self.datasets):
            named = None if glob.glob(source) else NAMED.fullmatch(source)
            name, path = named.groups() if named else (Path(source).stem, source)
            yield name, path, splits[i % len(splits)], subsets[i % len(subsets)]


NAMED = re.compile(r"([^=/]+)=(.+)")
"""A set with a name; paths may have a `=` of their own."""
TRAIN_ONLY = {option.name for option in fields(TrainArguments)} - {option.name for option in fields(EvalArguments)}
"""Options that a file for `train` may hold."""


@dataclass(frozen=True)
class Question:
    """A row of a set, by the name of the set and its place in it. Its pictures are read when it is."""

    dataset: str
    index: int
    rows: Any

    @property
    def row(self) -> dict[str, Any]:
        return self.rows[self.index]

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
    "tool_loop",
    "tool_tags",
    "result_tag",
    "answer_stop",
    "answer_template",
    "generation_kwargs",
    "chat_template_kwargs",
)
"""Options of A2TGPOConfig that answers depend on."""


LOADING = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
"""Options of ModelConfig that answers depend on."""
COLUMNS = ("prompt", "answer", "images")
"""What is asked with; sets differ in their other columns."""
UNTRAINED = {
    "advantage_estimator": "grpo",  # answers are scored, turns are not
    "turn_reward_weights": None,
    "reward_weights": None,
    "belief_model": "policy",
    "beta": 0.0,
    "sync_ref_model": False,
    "eval_strategy": "no",
    "push_to_hub": False,
    "log_completions": False,
    "model_init_kwargs": None,  # the trainer gets a model that is loaded
}
"""Training options that eval resets."""


def run(options: list[str]) -> int:
    """Ask what is missing, and print the scores of all answers; returns the exit status."""
    classes = (EvalArguments, A2TGPOConfig, ModelConfig)
    arguments, config, model = parse("eval", DESCRIPTION, classes, options, ignored=TRAIN_ONLY)
    is_writer = config.process_index == 0
    with tempfile.TemporaryDirectory() as folder:  # the trainer wants one, and what it writes there is not needed
        config.output_dir = folder
        with as_bad_usage():
            source = find_model(model, config)
            tools, tokenizer = arguments.load_tools(), source.tokenizer()
            tag_of_finish(tools, config)
            template = default_template(tools, tokenizer, arguments.conversational, config)
            questions = list(_questions(arguments, template))
            output = Path(arguments.output)
            with config.main_process_first(local=False, desc="reading answers"):
                answers = open_answers(output, _settings(arguments, config, model, source))
            missing = [question for question in questions if not _is_answered(question, answers, output)]
            trainer = _build(arguments, config, model, source, tokenizer, tools, questions) if missing else None
        size, start_time = _batch_size(config, arguments.samples), time.monotonic()
        for start in range(0, len(missing), size):
            found = _ask(trainer, missing[start : start + size], arguments.samples)
            answers |= {(answer["dataset"], answer["index"]): answer for answer in found}
            done = start + len(found)
            if is_writer:
                with output.open("a", encoding="utf-8") as file:
                    file.writelines(as_json(answer) + "\n" for answer in found)
                left = (time.monotonic() - start_time) / done * (len(missing) - done)
                print(
                    f"{len(questions) - len(missing) + done} of {len(questions)} questions, {left:.0f} s left",
                    flush=True,
                )
    if is_writer:
        print(plain(summarize([answers[question.place] for question in questions])))
    return 0


def _questions(arguments: EvalArguments, template: str) -> Iterator[Question]:
    for name, path, split, subset in arguments.sets():
        rows = arguments.load_data(path, split, template, subset)
        for index in range(min(arguments.limit or len(rows), len(rows))):
            yield Question(name, index, rows)


def _settings(
    arguments: EvalArguments, config: A2TGPOConfig, model: ModelConfig, source: ModelSource
) -> dict[str, Any]:
    """What the answers in one file have in common."""
    settings = {"model": source.name, "revision": model.model_revision, "model_files": source.fingerprint()}
    settings |= {name: getattr(model, name) for name in LOADING} | {"model_init_kwargs": config.model_init_kwargs}
    settings |= {name: getattr(arguments, name) for name in vars(arguments) if name.startswith(("tools", "search_"))}
    options = (*ROLLOUTS, *SAMPLING, "seed") if arguments.samples else ROLLOUTS
    return settings | {"samples": arguments.samples} | {name: getattr(config, name) for name in options}


def open_answers(file: Path, settings: dict[str, Any]) -> dict[tuple[str, int], dict]:
    """
    The answers that an earlier run left, by set and index; a new file if there are none.

    A last line that was cut off is dropped.

    Args:
        file (`Path`): JSONL: the settings, then an answer a line.
        settings (`dict`): What the answers depend on beside the question.

    Raises:
        ValueError: If the file is of other settings, or holds something else.
    """
    text = file.read_bytes().decode("utf-8", "replace") if file.exists() else ""  # the last character may be cut
    first = json.dumps(settings)
    if first.startswith(text) or _holds_settings_alone(text, settings):  # a run may have ended with half a line
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(first + "\n", encoding="utf-8")
        return {}
    head, *lines = text.split("\n")[:-1] or [text]
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


def _holds_settings_alone(text: str, settings: dict[str, Any]) -> bool:
    """Whether a run, maybe with other settings, ended before its first answer."""
    try:
        before = json.loads(text)
    except ValueError:
        return False
    return isinstance(before, dict) and before.keys() == settings.keys()


def _is_answered(question: Question, answers: dict[tuple[str, int], dict], file: Path) -> bool:
    answer = answers.get(question.place)
    if answer is None:
        return False
    asked = _asked(question)
    for column in COLUMNS:
        if answer.get(column) != asked.get(column):
            raise ValueError(
                f"{file} has an answer with another {column} at {question.dataset} {question.index}: name another "
                "output, or give the set another name."
            )
    return True


def _asked(question: Question) -> dict[str, Any]:
    """What an answer belongs to, pictures by name."""
    row = question.row
    pictures = {"images": digest(row["images"])} if row.get("images") else {}
    return {"prompt": row["prompt"], "answer": row["answer"]} | pictures


def _build(
    arguments: EvalArguments,
    config: A2TGPOConfig,
    model: ModelConfig,
    source: ModelSource,
    tokenizer,
    tools: list[Callable],
    questions: list[Question],
) -> A2TGPOTrainer:
    check_retrievers(arguments.search_url)
    sets = {question.dataset: question.rows for question in questions}
    pictures = arguments.pictures or has_pictures(None, sets)
    for option, value in UNTRAINED.items():
        setattr(config, option, value)
    return A2TGPOTrainer(
        model=source.load(model),
        reward_funcs=[exact_match_reward, f1_reward],
        args=config,
        train_dataset=questions[0].rows.select(range(1)),
        tools=tools or None,
        processing_class=source.processor() if pictures else tokenizer,
    )


def _batch_size(config: A2TGPOConfig, samples: int) -> int:
    """Questions that all processes ask at once."""
    return max(config.per_device_eval_batch_size // max(samples, 1), 1) * config.world_size


def _ask(trainer: A2TGPOTrainer, questions: list[Question], samples: int) -> list[dict]:
    """One answer for each question, with the scores of its samples; processes share the questions."""
    count = max(samples, 1)
    processes = trainer.accelerator.num_processes
    padded = questions + questions[-1:] * (-len(questions) % processes)
    with trainer.accelerator.split_between_processes(padded) as own:
        rows = [{name: value for name, value in question.row.items() if name in COLUMNS} for question in own]
        played = trainer.play(rows, samples == 0, count)
    rollouts = [played[i * count : (i + 1) * count] for i in range(len(questions))]
    return [
        {
            "dataset": question.dataset,
            "index": question.index,
            **_asked(question),
            "completions": [rollout.completion for rollout in group],
            "exact_match": [rollout.rewards["exact_match_reward"] for rollout in group],
            "f1": [rollout.rewards["f1_reward"] for rollout in group],
        }
        for question, group in zip(questions, rollouts, strict=True)
    ]
