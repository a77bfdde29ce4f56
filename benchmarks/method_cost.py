"""
Claim: a step of a method that reads turn rewards or states takes at most 1.02 times that of GRPO; with beliefs, what it takes.

The demo's model, adapter, settings and rollouts, as in `step_cost.py`: one round is a whole `train()` of eight updates on a batch of
32 rollouts, whose generation takes no time. Each method at its defaults is paired with GRPO, and the two take turns. Methods that
read turn rewards get `format_penalty`. The rollouts are tokens without messages, so that a state is the hash of an empty text.
What beliefs add to the forward of the old log-probabilities alone: `shared_forward.py`.

    python benchmarks/method_cost.py
    python benchmarks/method_cost.py --methods gtpo gigpo --rounds 8
    python benchmarks/method_cost.py --device cuda --random

Writes the figures as JSON beside itself, and keeps those of other methods that the same machine and versions gave before.
"""

import argparse
from functools import partial

import torch
from measuring import add_demo_model, in_turn, make_parser, measured_before, peak_megabytes, ratio, report
from step_cost import demo_setting, make_trainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.credit import ESTIMATORS
from a2tgpo_trl.rewards import format_penalty

BASELINE = "grpo"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = add_demo_model(make_parser(__doc__, rounds=6))
    others = [name for name, cls in ESTIMATORS.items() if name != BASELINE and "tree" not in cls.signals]
    parser.add_argument("--methods", nargs="+", choices=others, default=others, help="which to pair with GRPO")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    model, rows, rollouts = demo_setting(options)

    def trainer(name: str) -> A2TGPOTrainer:
        cls = ESTIMATORS[name]
        rewarded = "turn_rewards" in (*cls.signals, *cls.optional_signals)
        trainer_class = partial(A2TGPOTrainer, turn_reward_funcs=[format_penalty] * rewarded)
        return make_trainer(trainer_class, partial(A2TGPOConfig, advantage_estimator=name), model(), rollouts, rows)

    baseline, figures = trainer(BASELINE), {}
    for name in options.methods:
        other = trainer(name)  # one at a time: each holds a model
        pair = {BASELINE: baseline.train, name: other.train}
        print(name, flush=True)
        seconds = in_turn(pair, options.rounds)
        first, theirs = other.state.log_history[0], baseline.state.log_history[0]
        assert first["turns/tool_mean"] == 1.5, "the rollouts are not what they are meant to be"
        assert first["reward"] == theirs["reward"]
        figures[name] = {
            "over_grpo": ratio(seconds, name, BASELINE),
            "megabytes": {which: peak_megabytes(run) for which, run in pair.items()},
            "seconds": seconds,
        }
    return figures


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    figures = measured_before(__file__, ESTIMATORS) | measure(options)
    report(__file__, "a step of each method over GRPO's, on the same rollouts", options, figures)


if __name__ == "__main__":
    main()
