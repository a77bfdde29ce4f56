"""
Each method in plain float64 Python, cell by cell, and random turns to compare on.

Written from the papers' equations, not from the package. Values are dicts from (completion, turn) to a number; a turn without one is
not in them.
"""

import math
import random
import statistics
from collections import defaultdict
from dataclasses import fields
from types import SimpleNamespace

import torch

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.config import _TURN_DEFAULTS
from a2tgpo_trl.credit import TurnCredit, Turns, check_credit

NAN = math.nan


def options_of(estimator, **given):
    """The options that an estimator reads, at its defaults; signals that are not measured are no matter here."""
    defaults = {field.name: field.default for field in fields(A2TGPOConfig)} | _TURN_DEFAULTS | estimator.defaults
    assert given.keys() <= {*estimator.options}
    return SimpleNamespace(**{option: given.get(option, defaults[option]) for option in estimator.options})


def credited(estimator, turns, **options) -> TurnCredit:
    """Credit of an object or class, which fits the turns."""
    estimator = estimator() if isinstance(estimator, type) else estimator
    credit = estimator.credit(turns, options_of(estimator, **options))
    check_credit(estimator, turns, credit)
    return credit


def group(rewards, num_tool_turns, *, answered=None, num_turns=None, num_generations=None, **signals):
    """Turns by hand, in float64: outcome `R - mean`, an answer turn after the tool turns unless it is said otherwise."""
    tool_turns = torch.tensor(num_tool_turns)
    rewards = torch.tensor(rewards, dtype=torch.float64)
    num_turns = tool_turns + 1 if num_turns is None else torch.tensor(num_turns)
    groups = rewards.unflatten(0, (-1, num_generations or len(rewards)))
    return Turns(
        outcome=(groups - groups.nanmean(1, keepdim=True)).flatten().nan_to_num(),
        rewards=rewards,
        num_turns=num_turns,
        num_tool_turns=tool_turns,
        num_generations=num_generations or len(rewards),
        signals={
            name: torch.tensor(values, dtype=torch.long if name == "states" else torch.float64)
            for name, values in signals.items()
        },
        answered=None if answered is None else torch.tensor(answered),
    )


def random_turns(seed, num_generations=4, groups=4) -> Turns:
    """Ragged turns with ties, unscored turns and completions, cut-off ones, an empty one, and a group of equal rewards."""
    rng = random.Random(seed)
    n = num_generations * groups
    tool_turns = [rng.randint(0, 4) for _ in range(n)]
    extra = [rng.random() < 0.8 for _ in range(n)]  # a turn that no observation follows
    answered = [last and rng.random() < 0.8 for last in extra]
    tool_turns[1], extra[1], answered[1] = 0, False, False
    num_turns = [tools + last for tools, last in zip(tool_turns, extra, strict=True)]
    width = max(num_turns) + rng.randint(0, 1)
    rewards = [rng.choice([0.0, 0.5, 1.0, 1.0, NAN]) for _ in range(n)]
    rewards[:num_generations] = [0.25, 0.25, NAN, 0.25]
    outcome = []
    for start in range(0, n, num_generations):
        scored = [r for r in rewards[start : start + num_generations] if not math.isnan(r)]
        mean = statistics.mean(scored) if scored else 0.0
        outcome += [0.0 if math.isnan(r) else r - mean for r in rewards[start : start + num_generations]]

    def cells(draw, there, size=width):
        return [[draw() if k < there[i] else NAN for k in range(size)] for i in range(n)]

    beliefs = cells(
        lambda: rng.choice([-rng.randint(1, 24) / 8, -3.0, -2.0, NAN]), [k + 1 for k in tool_turns], width + 1
    )
    turn_rewards = cells(lambda: rng.choice([rng.gauss(0, 1), 0.0, -0.1, NAN]), num_turns)
    states = [[rng.choice([0, 7, -5, 2**60]) if k < num_turns[i] else -1 for k in range(width)] for i in range(n)]
    values = cells(lambda: rng.gauss(0, 1), num_turns, width + 1)
    for i, row in enumerate(values):
        row[num_turns[i]] = 0.0 if answered[i] else rng.gauss(0, 1)  # a limit cut it off
    return Turns(
        outcome=torch.tensor(outcome, dtype=torch.float64),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        num_turns=torch.tensor(num_turns),
        num_tool_turns=torch.tensor(tool_turns),
        num_generations=num_generations,
        signals={
            "beliefs": torch.tensor(beliefs, dtype=torch.float64),
            "turn_rewards": torch.tensor(turn_rewards, dtype=torch.float64),
            "states": torch.tensor(states),
            "values": torch.tensor(values, dtype=torch.float64),
        },
        answered=torch.tensor(answered),
    )


# Parts


def numbers(tensor):
    """The cells of a (N, K) tensor that are not NaN."""
    rows = enumerate(tensor.tolist())
    return {(i, k): value for i, row in rows for k, value in enumerate(row) if not math.isnan(value)}


def counted(turns, groups):
    """Completions that have turn credit."""
    rewards, size = turns.rewards.tolist(), turns.num_generations
    rows = set()
    for i, reward in enumerate(rewards):
        scored = {r for r in rewards[i // size * size : (i // size + 1) * size] if not math.isnan(r)}
        if not math.isnan(reward) and (groups == "all" or len(scored) > 1):
            rows.add(i)
    return rows


def gains(turns, groups):
    beliefs = numbers(turns.signals["beliefs"])
    rows = counted(turns, groups)
    return {(i, k): beliefs[i, k + 1] - s for (i, k), s in beliefs.items() if i in rows and (i, k + 1) in beliefs}


def compare(values, set_of, baseline="mean", scale=True, floor=0.0):
    sets, compared = defaultdict(list), {}
    for cell in values:
        sets[set_of(*cell)].append(cell)
    for cell, value in values.items():
        members = [values[other] for other in sets[set_of(*cell)]]
        others = [values[other] for other in sets[set_of(*cell)] if other != cell]
        if min(members) == max(members):
            compared[cell] = 0.0
            continue
        mean = {"mean": members, "leave_one_out": others, "none": [0.0]}[baseline]
        compared[cell] = value - statistics.mean(mean)
        if scale:
            compared[cell] /= max(statistics.pstdev(members), floor) + 1e-6
    return compared


def to_go(values, gamma):
    return {
        (i, k): math.fsum(gamma ** (j - k) * value for (row, j), value in values.items() if row == i and j >= k)
        for i, k in values
    }


def added(turns, credit, coef):
    """`Â + coef · credit`, the outcome alone where there is none; (N, K)."""
    return [
        [outcome + coef * credit.get((i, k), 0.0) for k in range(turns.max_turns)]
        for i, outcome in enumerate(turns.outcome.tolist())
    ]


def rewards_with_outcome(turns, groups, weight=1.0):
    own, rewards = numbers(turns.turn_rewards), turns.rewards.tolist()
    return {
        (i, k): weight * own.get((i, k), 0.0) + (rewards[i] if k == length - 1 else 0.0)
        for i, length in enumerate(turns.num_turns.tolist())
        if i in counted(turns, groups)
        for k in range(length)
    }


# Methods


def returns(turns, o):
    inside = o.turn_outcome == "inside"
    if inside:
        rewards = rewards_with_outcome(turns, o.turn_credit_groups, o.turn_advantage_coef)
    else:
        rows = counted(turns, o.turn_credit_groups)
        rewards = {cell: value for cell, value in numbers(turns.turn_rewards).items() if cell[0] in rows}
        if o.turn_aggregation == "sum_then_standardize" and o.turn_gamma > 0:
            last = {i: max(k for j, k in rewards if j == i) for i, _ in rewards}
            rewards = {(i, k): rewards.get((i, k), 0.0) for i in last for k in range(last[i] + 1)}
    states = turns.signals["states"].tolist()
    set_of = {
        "prompt": lambda i, k: i // turns.num_generations,
        "turn": lambda i, k: (i // turns.num_generations, k),
        "state": lambda i, k: (i // turns.num_generations, states[i][k]),
        "origin": lambda i, k: (i // turns.num_generations, k, states[i][k]),
        "batch": lambda i, k: 0,
    }[o.turn_comparison]
    if o.turn_aggregation == "sum_then_standardize":
        credit = compare(to_go(rewards, o.turn_gamma), set_of, o.turn_baseline, o.turn_scale)
    else:
        credit = to_go(compare(rewards, set_of, o.turn_baseline, o.turn_scale), o.turn_gamma)
    if not inside:
        return added(turns, credit, o.turn_advantage_coef)
    return [
        [credit.get((i, k), outcome) for k in range(turns.max_turns)]
        for i, outcome in enumerate(turns.outcome.tolist())
    ]


def gigpo(turns, o):
    states, size = turns.signals["states"].tolist(), turns.num_generations
    ahead = to_go(rewards_with_outcome(turns, o.turn_credit_groups), o.turn_gamma)
    step = compare(ahead, lambda i, k: (i // size, states[i][k]), scale=o.turn_scale)
    return added(turns, step, o.turn_advantage_coef)


def turn_ppo(turns, o):
    rewards, values = rewards_with_outcome(turns, "all"), numbers(turns.signals["values"])
    deltas = {(i, k): r + o.turn_gamma * values[i, k + 1] - values[i, k] for (i, k), r in rewards.items()}
    credit = to_go(deltas, o.turn_gamma * o.gae_lambda)
    if o.whiten_advantages and credit:
        mean, deviation = statistics.mean(credit.values()), statistics.pstdev(credit.values()) + 1e-6
        credit = {cell: (value - mean) / deviation for cell, value in credit.items()}
    return [[credit.get((i, k), 0.0) for k in range(turns.max_turns)] for i in range(len(turns.outcome))]


def trace(turns, o, window=3, fill=2.0):
    beliefs = numbers(turns.signals["beliefs"])
    gap = {cell: 0.1 - s for cell, s in beliefs.items() if cell[0] in counted(turns, o.turn_credit_groups)}
    delta = {(i, k): math.log(d / gap[i, k + 1]) for (i, k), d in gap.items() if (i, k + 1) in gap}
    credit = {}
    for i, k in delta:
        rest = turns.num_tool_turns.tolist()[i] - k
        ahead = [(o.turn_gamma**j, delta[i, k + j]) for j in range(min(window, rest)) if (i, k + j) in delta]
        credit[i, k] = math.fsum(w * d for w, d in ahead) / math.fsum(w for w, _ in ahead)
        if window >= rest:
            credit[i, k] += fill * o.turn_gamma**rest * turns.outcome.tolist()[i]
    return added(turns, credit, o.turn_advantage_coef)


def belief_bonus(turns, o):
    bonus = defaultdict(list)
    for (i, _), gain in gains(turns, o.turn_credit_groups).items():
        bonus[i].append(gain)
    outcomes = enumerate(turns.outcome.tolist())
    return [[outcome + o.turn_advantage_coef * math.fsum(bonus[i])] * turns.max_turns for i, outcome in outcomes]


def a2tgpo_stop(turns, o):
    beliefs, rows = numbers(turns.signals["beliefs"]), counted(turns, o.turn_credit_groups)
    gained = gains(turns, o.turn_credit_groups)
    for i, (tools, answered) in enumerate(zip(turns.num_tool_turns.tolist(), turns.answered.tolist(), strict=True)):
        if i in rows and answered and (i, tools) in beliefs:
            gained[i, tools] = 0.0
    ahead = to_go(gained, o.turn_gamma)

    def set_of(i, k):
        return i // turns.num_generations, k

    floor = o.gain_noise_floor
    credit = compare(ahead, set_of, "leave_one_out", o.turn_scale, floor)
    sizes = defaultdict(int)
    for cell in ahead:
        sizes[set_of(*cell)] += 1
    if not o.turn_scale:
        credit |= {cell: value for cell, value in ahead.items() if sizes[set_of(*cell)] == 1}
    return added(turns, credit, o.turn_advantage_coef)


def a2tgpo(turns, o):
    size, groups = turns.num_generations, o.turn_credit_groups
    z = compare(gains(turns, groups), lambda i, k: (i // size, k), floor=o.gain_noise_floor)
    ahead = to_go(z, o.turn_gamma)
    terms = {(i, k): sum(row == i and j >= k for row, j in z) if o.turn_rescale else 1 for i, k in z}
    return added(turns, {cell: total / math.sqrt(terms[cell]) for cell, total in ahead.items()}, o.turn_advantage_coef)


def igpo(turns, o):
    z = compare(gains(turns, o.turn_credit_groups), lambda i, k: i // turns.num_generations, floor=o.gain_noise_floor)
    credit = to_go(z, o.turn_gamma)
    tools = turns.num_tool_turns.tolist()
    return [
        [outcome * o.turn_gamma ** max(tools[i] - k, 0) + credit.get((i, k), 0.0) for k in range(turns.max_turns)]
        for i, outcome in enumerate(turns.outcome.tolist())
    ]
