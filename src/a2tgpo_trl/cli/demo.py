"""`a2tgpo demo`: a small real model learns to search twice."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from installed packages

import argparse
import logging
import sys
import warnings
from pathlib import Path

from .main import INTERRUPTED, BadUsage, OptionParser, as_bad_usage

MOST_HELD_OUT = 400


def run(options: list[str]) -> int:
    """Run the demo; returns the exit status."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which peft imports; it warns of a kernel not used here
    try:
        import transformers

        from ..demo.run import DemoSettings, OtherSettings, run
    except ImportError as error:
        hint = ": pip install 'a2tgpo-trl[demo]'" if error.name else ""  # without a name the message has its own
        raise BadUsage(f"{' '.join(str(error).split())}{hint}") from error
    chosen = _parse(options, DemoSettings())
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with as_bad_usage(OtherSettings, ImportError):
            settings = DemoSettings(chosen.seed, chosen.rollout_batches, chosen.held_out, chosen.samples)
            run(settings, chosen.output_dir, chosen.restart)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command to go on from here.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(options: list[str], defaults) -> argparse.Namespace:
    parser = OptionParser(prog="a2tgpo demo", description=__doc__)

    def add(name: str, **settings) -> None:
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", **settings)

    add("output-dir", type=Path, default=Path("outputs/demo"), help="where everything is kept")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of traces, adapter, questions and sampling")
    add("rollout-batches", type=int, default=defaults.rollout_batches, help="length of training")
    add("held-out", type=int, default=defaults.held_out_questions, help="questions to evaluate on")
    parser.add_argument("--samples", type=int, default=defaults.samples, help="sampled answers to each of them")
    parser.add_argument("--restart", action="store_true", help="train again from the warm start")
    chosen = parser.parse_args(options)
    if not 1 <= chosen.held_out <= MOST_HELD_OUT or chosen.rollout_batches < 1 or chosen.samples < 1:
        parser.error(f"--rollout-batches and --samples are at least 1, and --held-out from 1 to {MOST_HELD_OUT}")
    return chosen
