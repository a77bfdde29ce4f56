"""Runs of the demo's model on the demo's task, one after the other on all cores; a run whose file is there is left out.

python benchmarks/learning/confirm.py [confirm.yaml] [--out FOLDER] [--models FOLDER]
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from controls import CONTROLS
from grid import HERE, GridError, check_done, read_grid, write_result
from run import MeasuredTrainer, Size, train_and_measure

from a2tgpo_trl.data import to_dataset
from a2tgpo_trl.demo.model import prepare_model
from a2tgpo_trl.demo.training import GROUP_SIZE, PROMPTS_PER_BATCH, UPDATES_PER_BATCH, Task, load_task, make_trainer
from a2tgpo_trl.demo.warmup import PROMPT_TEMPLATE, WarmStart, warm_up

MODELS = Path("outputs/demo")


@dataclass(frozen=True)
class DemoRun:
    """
    One run, from the demo's warm start of the same seed.

    Attributes:
        task ([`~a2tgpo_trl.demo.training.Task`]): The demo's questions and search.
        size ([`Size`]): Of the demo's prompts, groups and updates; batches, and questions of an evaluation.
        method (`str`): The option `advantage_estimator`, or one of `controls.py`.
        seed (`int`): Of the warm start, the order of questions and sampling.
        options (`dict`): Of [`A2TGPOConfig`].
        models (`Path`): Where the model and the warm starts are kept, as in the demo's output.
    """

    task: Task
    size: Size
    method: str
    seed: int
    options: dict
    models: Path

    def execute(self) -> dict:
        """Train, and return what was measured."""
        model, adapter = prepare_model(self.models / "model"), self.models / f"seed-{self.seed}" / "warm-start"
        adapter = warm_up(
            model,
            adapter,
            self.task.train,
            self.task.search.search,
            WarmStart(steps=24, learning_rate=5e-4, seed=self.seed),
        )
        start, cpu = time.monotonic(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                model, adapter, self.task, Path(folder), self.size.batches, self.seed, trainer_class=MeasuredTrainer,
                advantage_estimator=CONTROLS.get(self.method, self.method), save_strategy="no", turn_records=False,
                lr_scheduler_type="linear", **self.options,
            )  # fmt: skip
            questions = random.Random(0).sample(self.task.held_out, self.size.questions)
            trainer.tokens_of_an_answer = self._tokens_of_an_answer(trainer)
            rows = list(to_dataset(questions, PROMPT_TEMPLATE))
            return train_and_measure(trainer, rows, self.size, start, cpu)

    def _tokens_of_an_answer(self, trainer: MeasuredTrainer) -> float:
        """The mean over the questions, of the answer in its template."""
        template = trainer.args.answer_template
        answers = [template.format(answer=question["answer"][0]) for question in self.task.train]
        return statistics.fmean(map(len, trainer._tokenizer(answers).input_ids))


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, nargs="?", default=HERE / "confirm.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--models", type=Path, default=MODELS)
    options = parser.parse_args(args)
    try:
        planned = read_grid(options.grid)
        check_done(planned, options.out)
        for run in planned:
            check_size(run.settings["size"])
    except GridError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    task = load_task()
    for number, run in enumerate(planned, 1):
        path, settings = run.path(options.out), run.settings
        if not path.exists():
            asked = {"method": settings["method"], "options": settings["options"], "size": Size(**settings["size"])}
            result = DemoRun(task, seed=run.seed, models=options.models, **asked).execute()
            write_result(run, path, result)
            final = result["curve"][-1]["exact_match"]
            print(f"{number}/{len(planned)} {run.cell} seed {run.seed}: ends at {final:.2f}", flush=True)
    return 0


def check_size(size: dict) -> None:
    """
    Refuse a size that the demo does not have.

    Raises:
        GridError: If prompts, groups or updates are not the demo's.
    """
    demo = {"prompts": PROMPTS_PER_BATCH, "group": GROUP_SIZE, "updates": UPDATES_PER_BATCH}
    if other := [name for name, value in demo.items() if size[name] != value]:
        raise GridError(f"The demo has {other[0]}: {demo[other[0]]}, and the grid says {size[other[0]]}.")


if __name__ == "__main__":
    sys.exit(main())
