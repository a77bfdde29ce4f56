"""The demo: a small real model learns to search twice. `python -m a2tgpo_trl.demo --help`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from installed packages

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import transformers

from .run import DemoSettings, run

MOST_HELD_OUT = 400


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="a2tgpo demo", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/demo"), help="where everything is kept")
    parser.add_argument("--seed", type=int, default=0, help="of traces, adapter, questions and sampling")
    parser.add_argument("--rollout-batches", type=int, default=DemoSettings.rollout_batches, help="length of training")
    parser.add_argument(
        "--held-out", type=int, default=DemoSettings.held_out_questions, help="questions to evaluate on"
    )
    parser.add_argument("--restart", action="store_true", help="train again from the warm start")
    options = parser.parse_args(arguments)
    if not 1 <= options.held_out <= MOST_HELD_OUT or options.rollout_batches < 1:
        parser.error(f"--rollout-batches is at least 1, and --held-out from 1 to {MOST_HELD_OUT}")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    settings = DemoSettings(options.seed, options.rollout_batches, options.held_out)
    try:
        run(settings, options.output_dir, restart=options.restart)
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted. Run the same command to go on from here.") from None


if __name__ == "__main__":
    main()
