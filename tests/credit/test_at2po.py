"""The estimator `"at2po"`: outcomes backed up a tree."""

import math
import random
from dataclasses import replace

import pytest
import torch
from loops import NAN, credited, group
from torch.testing import assert_close

from a2tgpo_trl.credit import AT2PO, Turns
from a2tgpo_trl.functional import leaves_below, tree_values
from conftest import same, weights

SEEDS = range(12)


def tree(rewards, nodes, surprisals, num_generations=None):
    """Turns by hand; `surprisals` by node."""
    num_turns = [sum(node >= 0 for node in row) for row in nodes]
    turns = group(rewards, [max(n - 1, 0) for n in num_turns], num_turns=num_turns, num_generations=num_generations)
    table = [[surprisals.get(node, NAN) for node in row] for row in nodes]
    signals = {"nodes": torch.tensor(nodes), "surprisals": torch.tensor(table, dtype=torch.float64)}
    return replace(turns, signals=signals)


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9, equal_nan=True)


# Two leaves of turn 0, of which one of turn 2 too; a chain of its own
#   root ─┬─ 0 ─┬─ 1            R 1
#         │     └─ 2 ─┬─ 3      R 0
#         │           └─ 4      R 1
#         └─ 5                  R 0
NODES = [[0, 1, -1], [0, 2, 3], [0, 2, 4], [5, -1, -1]]
REWARDS = [1.0, 0.0, 1.0, 0.0]  # outcomes 1/2, -1/2, 1/2, -1/2


def test_by_hand():
    # H of 3 and 4: log 1 and log 3 → V(2) = (1 · -1/2 + 3 · 1/2) / 4 = 1/4; of 1 and 2: log 1 and log 2 → V(0) = (1/2 + 2 · 1/4) / 3 = 1/3
    # of 0 and 5: equal → V(root) = (1/3 - 1/2) / 2 = -1/12
    surprisals = {0: 0.7, 1: 0.0, 2: math.log(2), 3: 0.0, 4: math.log(3), 5: 0.7}
    turns = tree(REWARDS, NODES, surprisals)
    value = [[1 / 3, 1 / 2, NAN], [1 / 3, 1 / 4, -1 / 2], [1 / 3, 1 / 4, 1 / 2], [-1 / 2, NAN, NAN]]
    credit = credited(AT2PO, turns)
    close(credit.columns["value"], value)
    assert torch.equal(
        credit.advantages.where(~credit.columns["value"].isnan(), NAN).isnan(), credit.columns["value"].isnan()
    )
    close(credit.advantages.where(~credit.columns["value"].isnan(), NAN), value)
    shown = credited(AT2PO("root"), turns).advantages[:, 0]
    close(shown, [1 / 3 + 1 / 12, 1 / 3 + 1 / 12, 1 / 3 + 1 / 12, -1 / 2 + 1 / 12])
    parent = credited(AT2PO("parent"), turns).advantages
    close(parent[0, :2], [1 / 3 + 1 / 12, 1 / 2 - 1 / 3])
    close(parent[2], [1 / 3 + 1 / 12, 1 / 4 - 1 / 3, 1 / 2 - 1 / 4])


def test_equal_surprisals_give_the_mean_of_children():
    for surprisal in (0.0, 2.5):
        values = credited(AT2PO, tree(REWARDS, NODES, dict.fromkeys(range(6), surprisal))).columns["value"]
        close(values[1, 1], 0.0)  # (-1/2 + 1/2) / 2
        close(values[0, 0], 0.25)  # (1/2 + 0) / 2


def test_a_rollout_that_ends_at_a_shared_turn_is_a_child_of_it():
    # As where the next turn was cut to no tokens: H 0 against log 3
    turns = tree([1.0, 0.0, 0.0, 1.0], [[0, 1], [0, -1], [2, -1], [3, -1]], {1: math.log(3)})
    close(credited(AT2PO, turns).columns["value"][:2, 0], [(3 * 0.5 - 0.5) / 4] * 2)


def test_what_nobody_scored_counts_for_nobody():
    surprisals = {node: node / 3 for node in range(6)}
    turns = tree([1.0, 0.0, NAN, 0.0], NODES, surprisals)
    credit = credited(AT2PO, turns)
    assert credit.columns["value"][2, 2].isnan() and credit.advantages[2, 2] == 0
    close(credit.columns["value"][1, 1:], [turns.outcome[1].item()] * 2)  # of its one scored leaf
    nobody = credited(AT2PO("parent"), tree([NAN] * 4, NODES, surprisals))
    assert (nobody.advantages == 0).all() and nobody.columns["value"].isnan().all()


def test_a_completion_without_turns_counts_for_nobody():
    turns = tree([1.0, 0.0, 1.0], [[0, 1], [0, 2], [-1, -1]], {})
    values = tree_values(turns.signals["nodes"], turns.signals["surprisals"], turns.outcome, 3)
    close(values[:, 0], [turns.outcome[:2].mean().item()] * 2 + [NAN])


def random_tree(seed, num_generations=6, groups=3):
    """Leaves that begin as earlier ones did, some unscored, one that ends at a shared turn; surprisals by node."""
    rng = random.Random(seed)
    nodes, surprisals, rewards = [], {}, []
    for _ in range(groups):
        leaves, fresh = [], iter(range(1000))
        for i in range(num_generations):
            kept = []
            if i > 1 and rng.random() < 0.8:
                source = rng.choice(leaves)
                kept = source[: rng.randint(0, len(source) - 1)]
            new = 0 if kept and rng.random() < 0.1 else rng.randint(1, 4 - len(kept)) if len(kept) < 4 else 1
            leaves.append(kept + [next(fresh) for _ in range(new)])
        nodes += leaves
        rewards += [rng.choice([0.0, 0.3, 1.0, 1.0, NAN]) for _ in leaves]
    width = max(map(len, nodes))
    for i, row in enumerate(nodes):
        for node in row:
            surprisals.setdefault((i // num_generations, node), rng.choice([0.0, 0.5, rng.expovariate(1)]))
    table = [
        [surprisals[i // num_generations, node] for node in row] + [NAN] * (width - len(row))
        for i, row in enumerate(nodes)
    ]
    turns = group(rewards, [len(row) - 1 for row in nodes], num_generations=num_generations)
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in nodes])
    return replace(turns, signals={"nodes": padded, "surprisals": torch.tensor(table, dtype=torch.float64)})


def by_recursion(turns: Turns, baseline="none"):
    """Node by node, from the paper's equation, in plain Python."""
    size, rewards = turns.num_generations, turns.rewards.tolist()
    nodes, surprisals, outcome = (
        turns.signals["nodes"].tolist(),
        turns.signals["surprisals"].tolist(),
        turns.outcome.tolist(),
    )
    advantages = [[0.0 if math.isnan(rewards[i]) else outcome[i]] * turns.max_turns for i in range(len(nodes))]
    for first in range(0, len(nodes), size):
        branches = {i: tuple(node for node in nodes[i] if node >= 0) for i in range(first, first + size)}
        branches = {i: branch for i, branch in branches.items() if branch}

        def value(prefix, branches=branches):
            below = [i for i, branch in branches.items() if branch[: len(prefix)] == prefix]
            children = [(0.0, outcome[i]) for i in below if branches[i] == prefix and not math.isnan(rewards[i])]
            for child in sorted({branches[i][len(prefix)] for i in below if branches[i] != prefix}):
                i = next(i for i in below if branches[i][len(prefix) : len(prefix) + 1] == (child,))
                v = value((*prefix, child))
                if v is not None:
                    children.append((surprisals[i][len(prefix)], v))
            if not children:
                return None
            weights = [math.exp(h) for h, _ in children]
            return math.fsum(w * v for w, (_, v) in zip(weights, children, strict=True)) / math.fsum(weights)

        for i, branch in branches.items():
            for k in range(len(branch)):
                v, less = value(branch[: k + 1]), 0.0
                if v is None:
                    continue
                if baseline != "none":
                    less = value(branch[:k] if baseline == "parent" else ())
                advantages[i][k] = v - less
    return torch.tensor(advantages, dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("baseline", ["none", "parent", "root"])
def test_it_matches_the_recursion(seed, baseline):
    turns = random_tree(seed)
    there = turns.signals["nodes"] >= 0
    assert (leaves_below(turns.signals["nodes"], 6) > 1).any()
    ours = credited(AT2PO(baseline), turns).advantages
    assert_close(ours[there], by_recursion(turns, baseline)[there], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS[:6])
@pytest.mark.parametrize("baseline", ["none", "parent", "root"])
def test_order_of_leaves_and_numbers_of_nodes_do_not_matter(seed, baseline):
    turns, rng = random_tree(seed), random.Random(seed)
    order = torch.tensor([6 * g + i for g in range(3) for i in rng.sample(range(6), 6)])
    signals = {name: values[order] for name, values in turns.signals.items()}
    signals["nodes"] = torch.where(signals["nodes"] >= 0, 500 - signals["nodes"], -1)
    parts = {
        name: getattr(turns, name)[order] for name in ("outcome", "rewards", "num_turns", "num_tool_turns", "answered")
    }
    swapped = replace(turns, signals=signals, **parts)
    assert_close(credited(AT2PO(baseline), swapped).advantages, credited(AT2PO(baseline), turns).advantages[order])


@pytest.mark.parametrize("seed", SEEDS[:6])
def test_without_a_shared_turn_it_is_grpo_to_the_bit(seed):
    turns = random_tree(seed)
    nodes = turns.signals["nodes"]
    own = torch.arange(nodes.numel()).view_as(nodes).where(nodes >= 0, -1)
    chains = replace(turns, outcome=turns.outcome.float(), signals={**turns.signals, "nodes": own})
    chains = replace(chains, signals={**chains.signals, "surprisals": chains.signals["surprisals"].float()})
    advantages = credited(AT2PO, chains).advantages
    assert torch.equal(advantages, chains.outcome.unsqueeze(1).expand_as(advantages))


def test_other_prompts_do_not_matter():
    turns = random_tree(0)
    parts = {
        name: getattr(turns, name)[6:12] for name in ("outcome", "rewards", "num_turns", "num_tool_turns", "answered")
    }
    alone = replace(turns, signals={name: values[6:12] for name, values in turns.signals.items()}, **parts)
    assert_close(credited(AT2PO, alone).advantages, credited(AT2PO, turns).advantages[6:12])


def test_large_surprisals_do_not_overflow():
    turns = tree(REWARDS, NODES, {node: 800.0 + node for node in range(6)})
    assert credited(AT2PO, turns).advantages.isfinite().all()


def test_baselines_that_there_are_not():
    with pytest.raises(ValueError, match="baseline must be 'none', 'parent' or 'root', got 'mean'"):
        AT2PO("mean")


def test_training_without_an_expansion_is_training_with_grpo(build):
    """The same weights, bit for bit: scripted rollouts, two updates."""
    shared = dict(
        importance_sampling_level="turn", loss_type="grpo", skip_empty_updates=True, per_device_train_batch_size=4
    )
    trained = []
    for options in (dict(advantage_estimator="at2po", tree_chains=4), dict(advantage_estimator="grpo")):
        trainer = build(**shared, **options, steps_per_generation=1)
        trainer.train()
        trained.append(weights(trainer))
    assert same(*trained)
