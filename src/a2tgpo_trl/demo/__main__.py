"""The demo: a small real model learns to search twice. `python -m a2tgpo_trl.demo --help`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from installed packages

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import transformers

from ..cli.main import INTERRUPTED, BadUsage, OptionParser
from ..plain import plain

MOST_HELD_OUT = 400
BAD_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    Args:
        arguments (`Sequence[str]`, *optional*): Options; by default those of the process.

    Returns:
        `int`: exit status, 0 if all went well, 2 for bad usage or if something is not installed, 130 after Ctrl-C.
    """
    try:
        from .run import DemoSettings, run

        options = _parse(arguments, DemoSettings())
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        warnings.filterwarnings("ignore", category=FutureWarning)
        run(DemoSettings(options.seed, options.rollout_batches, options.held_out), options.output_dir, options.restart)
    except BadUsage as error:
        print(f"a2tgpo demo: error: {plain(str(error))}", file=sys.stderr)
        return BAD_USAGE
    except ImportError as error:
        hint = ": pip install 'a2tgpo-trl[demo]'" if error.name else ""  # without a name the message has its own
        print(f"a2tgpo demo: error: {plain(' '.join(str(error).split()))}{hint}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command to go on from here.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(arguments: Sequence[str] | None, defaults) -> argparse.Namespace:
    parser = OptionParser(prog="a2tgpo demo", description=__doc__)

    def add(name: str, **options) -> None:
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", **options)

    add("output-dir", type=Path, default=Path("outputs/demo"), help="where everything is kept")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of traces, adapter, questions and sampling")
    add("rollout-batches", type=int, default=defaults.rollout_batches, help="length of training")
    add("held-out", type=int, default=defaults.held_out_questions, help="questions to evaluate on")
    parser.add_argument("--restart", action="store_true", help="train again from the warm start")
    options = parser.parse_args(arguments)
    if not 1 <= options.held_out <= MOST_HELD_OUT or options.rollout_batches < 1:
        parser.error(f"--rollout-batches is at least 1, and --held-out from 1 to {MOST_HELD_OUT}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
