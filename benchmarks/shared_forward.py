"""
Claim: where the old log-probabilities are computed anyway, information gain adds at most 15 % to that forward.

TRL's forward over a generation batch, as `A2TGPOTrainer` makes it: alone, and with the beliefs that share it. Two settings:
two completions of 2,000 tokens with eight tool turns, float32, on a random model of the demo's shape (135 M parameters), which
share nothing; and a batch of the demo, 32 traces of one and two searches in four groups, bfloat16, with its model and adapter.
Memory is the peak of the process above what it held before, for one completion of 8,000 tokens with eight tool turns.
With `--aliases` each answer has so many aliases, which are all scored (`answer_aliases="max"`); with `--guard` beliefs before
observations are too (`gain_from="turn_end"`).

    python benchmarks/shared_forward.py
    python benchmarks/shared_forward.py --aliases 4 --guard
    python benchmarks/shared_forward.py --device cuda --bf16 --random

Writes the figures as JSON beside itself, with either option under the name shared_forward_all_probes.json.
"""

import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from measuring import demo_shape, in_turn, make_parser, peak_megabytes, ratio, report
from scripted import atlas_tokenizer, make_tokenizer
from step_cost import demo_rollouts, make_trainer

from a2tgpo_trl import A2TGPOConfig, A2TGPOTrainer
from a2tgpo_trl.batch import GenerationBatch
from a2tgpo_trl.demo.model import load_model, load_tokenizer
from a2tgpo_trl.rollout import Rollout, Turn
from a2tgpo_trl.signals.beliefs import Query, queries
from a2tgpo_trl.signals.beliefs.shared_forward import SharedForward

ANSWER = "Paris, or so"
"""Some ten tokens in the template, as an answer of two words takes with a real vocabulary."""
CITIES = ("Tokyo", "Lagos", "Quito", "Turin", "Lyon", "Oslo", "Rome")
"""What takes its city's place in further aliases."""


def long_trainer(options: argparse.Namespace) -> A2TGPOTrainer:
    return A2TGPOTrainer(
        model=demo_shape(options.device, options.toy),
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=A2TGPOConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=options.rows,
            num_generations=2,
            steps_per_generation=2,
            answer_template="\n{answer}\n",
            gradient_checkpointing=False,
            use_cpu=options.device == "cpu",
            bf16=options.bf16,
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": "?", "answer": ANSWER}]),
        processing_class=make_tokenizer(),
    )


@dataclass
class Setting:
    """
    What TRL computes log-probabilities of.

    Attributes:
        trainer ([`A2TGPOTrainer`]): Whose policy is asked.
        rollouts (`list[Rollout]`, length `B`): With their turns.
        answers (`list[list[str]]`, length `B`): The aliases of what is believed.
        inputs (`tuple`): Token ids and mask, `(B, L)`, and the length of completions.
    """

    trainer: A2TGPOTrainer
    rollouts: list[Rollout]
    answers: list[list[str]]
    inputs: tuple[torch.Tensor, torch.Tensor, int]


def demo_setting(model, tokenizer) -> Setting:
    """The demo's trainer, and a batch of its traces."""
    rows, rollouts = demo_rollouts(tokenizer)
    trainer = make_trainer(A2TGPOTrainer, A2TGPOConfig, model, rollouts, rows)
    batch = trainer._roll_out([dict(row) for row in rows for _ in range(trainer.num_generations)])
    tensors = batch.tensors
    ids = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], dim=1)
    mask = torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], dim=1)
    return Setting(trainer, batch.rollouts, batch.answers, (ids, mask, tensors["completion_ids"].size(1)))


def long_setting(trainer: A2TGPOTrainer, lengths: list[tuple[int, int]], num_turns: int) -> Setting:
    """Random tokens; each completion has so many tool turns and an answer of ten tokens."""
    generator = torch.Generator().manual_seed(0)
    width = max(prompt for prompt, _ in lengths), max(completion for _, completion in lengths)
    ids = torch.randint(5, trainer.model.config.vocab_size, (len(lengths), sum(width)), generator=generator)
    mask = torch.zeros_like(ids)
    rollouts = []
    for i, (prompt, completion) in enumerate(lengths):
        mask[i, width[0] - prompt : width[0] + completion] = 1
        tokens = ids[i, width[0] :].tolist()
        length = (completion - 10) // num_turns
        starts, written = range(0, num_turns * length, length), length - length * 2 // 3
        turns = [Turn(tokens[s : s + written], {}, observation_ids=tokens[s + written : s + length]) for s in starts]
        turns.append(Turn(tokens[num_turns * length : completion], {}))
        rollouts.append(Rollout(ids[i, width[0] - prompt : width[0]].tolist(), turns))
    inputs = (ids.to(trainer.model.device), mask.to(trainer.model.device), width[1])
    return Setting(trainer, rollouts, [[ANSWER]] * len(rollouts), inputs)


def with_probes(setting: Setting, num_aliases: int, guard: bool) -> Setting:
    """The same with as many aliases of each answer, and beliefs before observations."""
    options, aliases = setting.trainer.args, [ANSWER.replace("Paris", city) for city in CITIES[: num_aliases - 1]]
    options.answer_aliases, options.gain_from = "max", "turn_end" if guard else "turn_start"
    return replace(setting, answers=[answers[:1] + aliases for answers in setting.answers])


@torch.no_grad()
def logps(setting: Setting, with_beliefs: bool) -> tuple[torch.Tensor, SharedForward | None]:
    """Log-probabilities, and the forward that scored beliefs too, if there is one."""
    trainer = setting.trainer
    trainer.model.eval()
    batch = GenerationBatch([{}] * len(setting.rollouts), True, trainer.num_generations, trainer.accelerator)
    batch.rollouts, batch.answers = setting.rollouts, setting.answers
    sharing = trainer.signals["beliefs"].while_scoring(batch) if with_beliefs else nullcontext()
    size = trainer.args.per_device_train_batch_size
    with sharing, trainer.accelerator.autocast():
        old = trainer._get_per_token_logps_and_entropies(trainer.model, *setting.inputs, batch_size=size)[0]
    return old, batch.shared_forward


def compare(setting: Setting, rounds: int) -> dict:
    methods = {"alone": partial(logps, setting, False), "shared": partial(logps, setting, True)}
    alone, shared = (method() for method in methods.values())
    found = queries(shared[1].plan.rows)
    mask = setting.inputs[1].float()
    seconds = in_turn(methods, rounds)
    return {
        "log_probabilities_are_trls_to_the_bit": torch.equal(alone[0], shared[0]),
        "shared_over_alone": ratio(seconds, "shared", "alone"),
        "probes": len(found),
        "probe_tokens_over_tokens": round(tokens_fed(found) / mask.sum().item(), 3),
        "padding_share_of_the_forward": round(1 - mask.mean().item(), 3),
        "seconds": seconds,
    }


def tokens_fed(found: list[Query]) -> int:
    """Tokens that probes are read in: what aliases begin with alike once, with the last token of their context."""
    beginnings = set()
    for query in found:
        fed = tuple(query.ids[query.context_length - 1 :])
        beginnings |= {(query.row, query.end, fed[:length]) for length in range(1, len(fed) + 1)}
    return len(beginnings)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--model", type=Path, default=Path("outputs/demo/model"), help="the converted demo model")
    parser.add_argument("--random", action="store_true", help="for the demo's batch a random model of its shape")
    parser.add_argument("--rows", type=int, default=2, help="completions of 2,000 tokens in a micro-batch")
    parser.add_argument("--aliases", type=int, choices=range(1, len(CITIES) + 2), default=1, help="of each answer")
    parser.add_argument("--guard", action="store_true", help="beliefs before observations too")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of these with their prompts")
    parser.add_argument("--long", type=int, default=8000, help="tokens of the completion whose memory is measured")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    if options.random:
        model, tokenizer = demo_shape(toy=options.toy).bfloat16(), atlas_tokenizer()
    else:
        model, tokenizer = load_model(options.model).bfloat16(), load_tokenizer(options.model)
    probed = partial(with_probes, num_aliases=options.aliases, guard=options.guard)
    figures = {"demo": compare(probed(demo_setting(model.to(options.device), tokenizer)), options.rounds)}
    trainer, lengths = long_trainer(options), [(200, options.tokens - 200)] * options.rows
    figures["long"] = compare(probed(long_setting(trainer, lengths, 8)), options.rounds)
    longest = probed(long_setting(trainer, [(200, options.long - 200)], 8))
    figures["megabytes of a long completion"] = {
        name: peak_megabytes(partial(logps, longest, with_beliefs))
        for name, with_beliefs in (("alone", False), ("shared", True))
    }
    return figures


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    more = options.aliases > 1 or options.guard
    script = Path(__file__).with_stem("shared_forward_all_probes") if more else __file__
    report(script, "information gain beside the old log-probabilities", options, measure(options))


if __name__ == "__main__":
    main()
