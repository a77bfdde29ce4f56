"""The equations of A²TGPO in plain float64 Python, one loop per row and turn, and random input to compare on.

Written from the paper's equations, not from the package: tests hold the tensor code against it.
"""

import math
import random
import statistics

import torch

NAN = math.nan


def masks(*rows, width=None):
    """
    Completion and tool masks of completions drawn as text: `m` a model token, `t` a tool token.

    Rows are padded on the right, the completion mask with 0 and the tool mask with 1, as TRL does.
    """
    width = max(map(len, rows)) if width is None else width
    completion_mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    tool_mask = [[int(token == "m") for token in row] + [1] * (width - len(row)) for row in rows]
    return completion_mask, tool_mask


def turns(completion, tool):
    """Turns of one completion: a list of (positions of its tokens, length up to its observation's end or None)."""
    found = []
    previous = False
    for position, (real, model) in enumerate(zip(completion, tool, strict=True)):
        written = bool(real and model)
        if written and not previous:
            found.append(([], None))
        if written:
            found[-1][0].append(position)
        elif real and found:
            found[-1] = (found[-1][0], position + 1)
        previous = written
    return found


def turn_ids(completion_mask, tool_mask):
    rows = []
    for completion, tool in zip(completion_mask, tool_mask, strict=True):
        row = [-1] * len(completion)
        for k, (positions, _) in enumerate(turns(completion, tool)):
            for position in positions:
                row[position] = k
        rows.append(row)
    return rows


def observation_ends(completion_mask, tool_mask):
    rows = [
        [-1 if end is None else end for _, end in turns(completion, tool)]
        for completion, tool in zip(completion_mask, tool_mask, strict=True)
    ]
    width = max([1, *map(len, rows)])
    return [row + [-1] * (width - len(row)) for row in rows]


def turn_ends(completion_mask, tool_mask):
    rows = [
        [positions[-1] + 1 for positions, _ in turns(completion, tool)]
        for completion, tool in zip(completion_mask, tool_mask, strict=True)
    ]
    width = max([1, *map(len, rows)])
    return [row + [-1] * (width - len(row)) for row in rows]


def spread_turns(values, ids, fill):
    return [[row[k] if k >= 0 else fill for k in row_ids] for row, row_ids in zip(values, ids, strict=True)]


def information_gain(beliefs):  # equation 2
    return [[row[k + 1] - row[k] for k in range(len(row) - 1)] for row in beliefs]


def normalize(values, eps):
    """Standard scores with the population deviation. `statistics` is exact, so equal values give 0."""
    mean, deviation = statistics.mean(values), statistics.pstdev(values)
    return [(value - mean) / (deviation + eps) if deviation else 0.0 for value in values]


def _normalize_cells(gains, groups_of_cells, eps):
    out = [[NAN] * len(row) for row in gains]
    for cells in groups_of_cells:
        cells = [(i, k) for i, k in cells if not math.isnan(gains[i][k])]
        if cells:
            for (i, k), value in zip(cells, normalize([gains[i][k] for i, k in cells], eps), strict=True):
                out[i][k] = value
    return out


def standardize(values, set_ids, center=True, scale=True, leave_one_out=False, eps=1e-6, floor=0.0):
    """Turn by turn, with the exact means of `statistics`."""
    out = [[NAN] * len(row) for row in values]
    for i, row in enumerate(values):
        for k, value in enumerate(row):
            if math.isnan(value):
                continue
            cells = [(j, m) for j in range(len(values)) for m in range(len(row)) if set_ids[j][m] == set_ids[i][k]]
            members = [values[j][m] for j, m in cells if not math.isnan(values[j][m])]
            others = [values[j][m] for j, m in cells if (j, m) != (i, k) and not math.isnan(values[j][m])]
            deviation = statistics.pstdev(members)
            if not deviation:
                out[i][k] = 0.0
                continue
            mean = statistics.mean(others if leave_one_out else members) if center else 0.0
            out[i][k] = (value - mean) / (max(deviation, floor) + eps if scale else 1.0)
    return out


def normalize_along(values, dim, eps=1e-6):
    """Standard scores along a dimension of a tensor, operation by operation: later versions have the same bits."""
    present = ~values.isnan()
    count = present.sum(dim, keepdim=True).clamp(min=1)
    mean = values.nan_to_num().sum(dim, keepdim=True) / count
    deviation = (values - mean).nan_to_num()
    std = (deviation.square().sum(dim, keepdim=True) / count).sqrt()
    lowest = values.masked_fill(~present, torch.inf).amin(dim, keepdim=True)
    highest = values.masked_fill(~present, -torch.inf).amax(dim, keepdim=True)
    normalized = torch.where(lowest == highest, 0.0, deviation / (std + eps))
    return normalized.where(present, torch.nan)


def normalize_turn_groups(gains, num_generations, eps=1e-6):  # equation 3
    groups = [
        [(start + i, k) for i in range(num_generations)]
        for start in range(0, len(gains), num_generations)
        for k in range(len(gains[0]))
    ]
    return _normalize_cells(gains, groups, eps)


def normalize_groups(gains, num_generations, eps=1e-6):  # IGPO
    groups = [
        [(start + i, k) for i in range(num_generations) for k in range(len(gains[0]))]
        for start in range(0, len(gains), num_generations)
    ]
    return _normalize_cells(gains, groups, eps)


def accumulate(normalized, gamma=1.0, rescale=True):  # equation 4, √ of the number of terms
    out = []
    for row in normalized:
        out.append([NAN] * len(row))
        for k in range(len(row)):
            terms = [gamma ** (j - k) * row[j] for j in range(k, len(row)) if not math.isnan(row[j])]
            if not math.isnan(row[k]):
                out[-1][k] = math.fsum(terms) / (math.sqrt(len(terms)) if rescale else 1.0)
    return out


def turn_advantages(outcome, accumulated, coef):  # equation 5
    return [
        [total if math.isnan(value) else total + coef * value for value in row]
        for total, row in zip(outcome, accumulated, strict=True)
    ]


def discounted_outcome(outcome, normalized, gamma):  # IGPO
    out = []
    for total, row in zip(outcome, normalized, strict=True):
        tool_turns = max((k + 1 for k in range(len(row)) if not math.isnan(row[k])), default=0)
        out.append([total * gamma ** (tool_turns - k) if k < tool_turns else total for k in range(len(row))])
    return out


def adaptive_clip_scale(normalized, strength):  # equation 6
    return [
        [1.0 if math.isnan(value) else 1 + strength * (2 / (1 + math.exp(-value)) - 1) for value in row]
        for row in normalized
    ]


def turn_log_ratio(log_ratio, ids):  # equation 7
    out = []
    for row, row_ids in zip(log_ratio, ids, strict=True):
        out.append([0.0] * len(row))
        for k in set(row_ids) - {-1}:
            positions = [t for t, turn in enumerate(row_ids) if turn == k]
            for t in positions:
                out[-1][t] = math.fsum(row[s] for s in positions) / len(positions)
    return out


def turn_level_old_logps(logps, old_logps, ids):
    log_ratio = [[new - old for new, old in zip(*rows, strict=True)] for rows in zip(logps, old_logps, strict=True)]
    means = turn_log_ratio(log_ratio, ids)
    return [[new - mean for new, mean in zip(*rows, strict=True)] for rows in zip(logps, means, strict=True)]


def loss(batch, logps, alpha, gamma, beta, eps_low, eps_high):
    """
    Equations 2 to 8 from masks, beliefs and log-probabilities: the loss, its gradient, and the clipped turns' number.

    The gradient is the derivative of the loss as written (the turn's ratio is a mean over its tokens, so the n tokens
    that share it and the 1/n of the mean cancel): `-ρ A / (tokens · completions)`, 0 where the clip binds.
    """
    gains = normalize_turn_groups(information_gain(batch["beliefs"]), batch["num_generations"])
    completions = len(logps)
    total, clipped_turns = 0.0, 0
    gradient = [[0.0] * len(row) for row in logps]
    for i, outcome in enumerate(batch["outcome"]):
        row_turns = turns(batch["completion_mask"][i], batch["tool_mask"][i])
        tokens = sum(len(positions) for positions, _ in row_turns)
        scored = [k for k in range(len(row_turns)) if not math.isnan(gains[i][k])]
        for k, (positions, _) in enumerate(row_turns):
            advantage, scale = outcome, 1.0
            if k in scored:
                ahead = [j for j in scored if j >= k]
                total_gain = sum(gamma ** (j - k) * gains[i][j] for j in ahead)
                advantage += alpha * total_gain / math.sqrt(len(ahead))
                scale += beta * (2 / (1 + math.exp(-gains[i][k])) - 1)
            ratio = math.exp(sum(logps[i][t] - batch["old_logps"][i][t] for t in positions) / len(positions))
            bounded = min(max(ratio, 1 - scale * eps_low), 1 + scale * eps_high)
            objective = min(ratio * advantage, bounded * advantage)
            binds = objective != ratio * advantage
            clipped_turns += binds
            for t in positions:
                total -= objective / tokens / completions
                gradient[i][t] = 0.0 if binds else -ratio * advantage / tokens / completions
    return total, gradient, clipped_turns


def random_completions(seed, rows):
    """
    Drawn completions of 0 to 6 turns, in random order. The hard ones are always there.

    No tokens; only an observation; an observation before the first turn; cut inside an observation (or before the first
    token of the next turn: the masks are the same); six tool turns and an answer turn.
    """
    rng = random.Random(seed)

    def turn():
        return "m" * rng.randint(1, 4)

    def observation():
        return "t" * rng.randint(1, 3)

    def tool_turns(number):
        return "".join(turn() + observation() for _ in range(number))

    drawn = [
        "",
        observation(),
        observation() + tool_turns(1) + turn(),
        tool_turns(rng.randint(1, 5)),
        tool_turns(6) + turn(),
    ]
    drawn += [tool_turns(rng.randint(0, 5)) + rng.choice(["", turn()]) for _ in range(rows - len(drawn))]
    rng.shuffle(drawn)
    return drawn


def random_gains(seed, rows=12, width=6):
    """Gains (rows, width): ragged, with ties, zeros, NaN in the middle, a column of equal values and a singleton."""
    rng = random.Random(seed)
    gains = []
    for _ in range(rows):
        tool_turns = rng.randint(0, width - 2)
        row = [
            rng.choice([rng.gauss(0, 2), rng.gauss(0, 2), rng.randint(-2, 2) / 4, 0.0, NAN]) for _ in range(tool_turns)
        ]
        gains.append(row + [NAN] * (width - tool_turns))
    for i in range(4):
        gains[i][0] = 0.1  # a turn group of equal values
    gains[rng.randrange(rows)][width - 2] = rng.gauss(0, 2)  # a turn group of one
    return gains


def random_batch(seed, num_generations=4, groups=3):
    """Masks, beliefs, outcome advantages and log-probabilities of `groups * num_generations` completions."""
    rng = random.Random(seed)
    rows = random_completions(seed, groups * num_generations)
    completion_mask, tool_mask = masks(*rows, width=max(map(len, rows)) + rng.randint(0, 2))
    beliefs = []
    for ends in observation_ends(completion_mask, tool_mask):
        # Multiples of 1/8 so that equal gains are equal, and some gains are 0
        row = [rng.choice([rng.randint(-24, -8) / 8, -3.0, -2.0]) for _ in range(len(ends) + 1)]
        beliefs.append(
            [row[0]] + [s if end > 0 and rng.random() > 0.1 else NAN for s, end in zip(row[1:], ends, strict=True)]
        )
    logps = [[rng.uniform(-5, 0) for _ in row] for row in completion_mask]
    return {
        "num_generations": num_generations,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "beliefs": beliefs,
        "outcome": [rng.choice([rng.gauss(0, 1), 0.0, 1.0]) for _ in rows],
        "logps": logps,
        "old_logps": [[value + rng.gauss(0, 0.008) for value in row] for row in logps],
    }
