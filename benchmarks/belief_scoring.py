"""
Claim: all beliefs of a batch cost what one forward over its distinct tokens costs, however many turns there are.

Completions of a model of the demo's shape (135 M parameters, random), float32: the beliefs at the prompt and after each of
their tool turns, by a token tree, and prefix by prefix, one forward of the whole context for each belief, as the releases
of IGPO and A²TGPO do. The floor is one forward without gradient over as many tokens, causal and without any mask, with as
many of them scored by the LM head. Also: the same completion cut into more turns, a prompt shared by a group, and the
memory of one completion of 8,000 tokens. With `--aliases` and `--guard` all of it is of so many aliases of each answer, and of
a belief before each observation as well (`gain_from="turn_end"`); then also the tree's time over that of one alias without these.

    python benchmarks/belief_scoring.py
    python benchmarks/belief_scoring.py --aliases 4 --guard
    python benchmarks/belief_scoring.py --device cuda --bf16

Writes the figures as JSON beside itself, with either option under the name belief_scoring_all_probes.json.
"""

import argparse
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from measuring import demo_shape, in_turn, make_parser, peak_megabytes, ratio, report, wait
from trl.trainer.utils import add_fused_lm_head

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.integrations.replaced import replaced
from a2tgpo_trl.signals.beliefs import BeliefPlan, Probe, ProbedRow, queries, share_contexts
from a2tgpo_trl.signals.beliefs.head import predicting_at
from a2tgpo_trl.signals.beliefs.packing import pack
from a2tgpo_trl.signals.beliefs.scoring import BeliefScorer

PROMPT_TOKENS = 200


def make_plan(
    vocab_size: int,
    num_rows: int,
    tokens: int,
    turns: int,
    probe_tokens: int,
    shared_prompt: bool = False,
    aliases: int = 1,
    guard: bool = False,
) -> BeliefPlan:
    """
    Random completions that share nothing, or their prompt; the last observation ends at the last token. Aliases share the
    template; with `guard` each turn, a third of what there is up to the end of its observation, is probed at its end too.
    """
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(0, vocab_size, (n,), generator=generator).tolist()

    opening, closing, num_scored = ids(3), ids(3), probe_tokens - 6
    scored = [False] * 3 + [True] * num_scored + [False] * 3
    probes = [Probe(opening + ids(num_scored) + closing, scored) for _ in range(aliases)]
    thirds = range(3 * turns + 1) if guard else range(0, 3 * turns + 1, 3)
    ends = [PROMPT_TOKENS + (tokens - PROMPT_TOKENS) * third // (3 * turns) for third in thirds if third % 3 < 2]
    prompt = ids(PROMPT_TOKENS)
    rows = [
        ProbedRow((prompt if shared_prompt else ids(PROMPT_TOKENS)) + ids(tokens - PROMPT_TOKENS), ends, probes)
        for _ in range(num_rows)
    ]
    rows, keys = share_contexts(rows)
    return BeliefPlan(rows, torch.tensor(keys), [0] * num_rows)


class Methods:
    def __init__(self, device: str, bf16: bool, toy: bool):
        self.model = demo_shape(device, toy)
        add_fused_lm_head(self.model)
        args = A2TGPOConfig(
            answer_template="{answer}",
            answer_aliases="max",  # of one alias it is that one
            disable_tqdm=True,
            use_cpu=device == "cpu",
            bf16=bf16,
        )
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if bf16 else "no")
        self.scorer = BeliefScorer(self.model, None, self.accelerator, args, 16384)

    def tree(self, plan: BeliefPlan) -> torch.Tensor:
        self.scorer.why_prefixes = None
        return self.scorer.measure(self.model, plan, len(plan.rows))

    def prefixes(self, plan: BeliefPlan) -> torch.Tensor:
        self.scorer.why_prefixes = "asked for"
        return self.scorer.measure(self.model, plan, len(plan.rows))

    def in_float32(self, method: str, plan: BeliefPlan) -> torch.Tensor:
        with replaced(self.accelerator, autocast=nullcontext):
            return getattr(self, method)(plan)

    def differences(self, plan: BeliefPlan) -> dict[str, float]:
        """Largest differences, in nats, from the beliefs prefix by prefix in float32; and those of float32 itself."""
        reference = self.in_float32("prefixes", plan)
        found = {"tree": self.tree(plan)}
        if self.accelerator.mixed_precision == "bf16":
            found |= {"tree_in_float32": self.in_float32("tree", plan), "prefixes": self.prefixes(plan)}
        return {name: (beliefs - reference).abs().max().item() for name, beliefs in found.items()}

    @torch.no_grad()
    def floor(self, plan: BeliefPlan) -> torch.Tensor:
        """As many tokens, in as many rows, and as many predictions."""
        found = queries(plan.rows)
        (tree,) = pack(
            [query.ids for query in found], [query.context_length for query in found], [0] * len(found), 10**9
        )
        size = len(plan.rows)
        width, predictions = len(tree.ids) // size, sum(len(query.labels) for query in found) // size
        device = self.model.device
        ids = torch.tensor(tree.ids[: width * size], device=device).view(size, width)
        labels = torch.zeros(1, predictions * size, dtype=torch.long, device=device)
        columns = list(range(width - predictions, width)) * size
        rows = [row for row in range(size) for _ in range(predictions)]
        with predicting_at(self.model, rows, columns), self.accelerator.autocast():
            return self.model(input_ids=ids, shift_labels=labels, fused_lm_head=True).log_probs


def seconds_of(run) -> float:
    wait()
    start = time.perf_counter()
    run()
    wait()
    return round(time.perf_counter() - start, 3)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=2, help="completions of the batch")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a prompt with its completion")
    parser.add_argument("--turns", type=int, default=8, help="tool turns of a completion")
    parser.add_argument(
        "--probe-tokens", type=int, default=10, help="tokens of the filled template, six of them template"
    )
    parser.add_argument("--group", type=int, default=8, help="completions that share a prompt")
    parser.add_argument("--long", type=int, default=8000, help="tokens of the completion whose memory is measured")
    parser.add_argument("--aliases", type=int, default=1, help="aliases of each answer")
    parser.add_argument("--guard", action="store_true", help="beliefs before observations too")
    parser.add_argument("--prefix-rounds", type=int, default=2, help="rounds of prefix by prefix, which take long")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> dict:
    start = time.perf_counter()
    methods = Methods(options.device, options.bf16, options.toy)
    set_up = round(time.perf_counter() - start, 3)
    plain = partial(make_plan, methods.model.config.vocab_size)
    make = partial(plain, aliases=options.aliases, guard=options.guard)
    plan = make(options.rows, options.tokens, options.turns, options.probe_tokens)
    differences = methods.differences(make(options.rows, 500, options.turns, options.probe_tokens))
    lengths = [make(options.rows, tokens, options.turns, options.probe_tokens) for tokens in range(510, 1000, 70)]
    first = {name: [seconds_of(partial(methods.tree, p)) for p in lengths] for name in ("first", "again")}
    pairs = {name: partial(getattr(methods, name), plan) for name in ("tree", "floor", "prefixes")}
    seconds = {
        "floor": in_turn({name: pairs[name] for name in ("tree", "floor")}, options.rounds),
        "prefixes": in_turn({name: pairs[name] for name in ("prefixes", "tree")}, options.prefix_rounds),
    }

    if options.aliases > 1 or options.guard:
        one = plain(options.rows, options.tokens, options.turns, options.probe_tokens)
        runs = {"all": pairs["tree"], "one_alias_without_guard": partial(methods.tree, one)}
        seconds["probes"] = in_turn(runs, options.rounds)

    by_turns = {n: make(options.rows, options.tokens, n, options.probe_tokens) for n in (1, 32)}
    seconds["turns"] = in_turn({str(n): partial(methods.tree, p) for n, p in by_turns.items()}, options.rounds)

    # Short completions, as in the demo: 200 tokens of prompt and 200 of completion, two tool turns
    groups = {shared: make(options.group, 400, 2, options.probe_tokens, shared) for shared in (True, False)}
    seconds["group"] = in_turn(
        {"shared": partial(methods.tree, groups[True]), "apart": partial(methods.tree, groups[False])}, options.rounds
    )

    long = make(1, options.long, options.turns, options.probe_tokens)
    memory = {name: peak_megabytes(partial(getattr(methods, name), long)) for name in ("floor", "tree")}
    extra = {"all_over_one_alias_without_guard": ratio(seconds["probes"], *runs)} if "probes" in seconds else {}
    return extra | {
        "attention": methods.scorer.attention,
        "prefixes_over_tree": ratio(seconds["prefixes"], "prefixes", "tree"),
        "tree_over_floor": ratio(seconds["floor"], "tree", "floor"),
        "turns_32_over_1": ratio(seconds["turns"], "32", "1"),
        "group_with_shared_prompt_over_apart": ratio(seconds["group"], "shared", "apart"),
        "megabytes_of_a_long_completion": memory,
        "largest_difference_nats": differences,
        "seconds_to_set_up": set_up,
        "seconds_of_other_lengths": first,
        "seconds": seconds,
    }


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    more = options.aliases > 1 or options.guard
    script = Path(__file__).with_stem("belief_scoring_all_probes") if more else __file__
    report(script, "beliefs at the cost of one forward over the distinct tokens", options, measure(options))


if __name__ == "__main__":
    main()
