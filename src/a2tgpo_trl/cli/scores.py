"""Scores of answers: by set, over all questions (micro) and over all sets (macro), with bootstrap intervals."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
MEASURES = ("exact_match", "f1")


def interval(*sets: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """
    Percentile bootstrap of the mean; of several sets, of the mean of their means, each set resampled by itself.

    Args:
        sets (`Sequence[float]`): One score for each question of a set, the mean over its samples.
        seed (`int`): Of the resampling.

    Returns:
        `tuple[float, float]`: the bounds of the 95 % interval.
    """
    generator = np.random.default_rng(seed)
    means = np.mean([_resampled(np.asarray(scores, dtype=float), generator) for scores in sets], axis=0)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(scores: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    picks = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
    return scores[picks].mean(axis=1)


def summarize(answers: Sequence[dict]) -> str:
    """
    A table of exact match and F1.

    Args:
        answers (`Sequence[dict]`): With `dataset`, and `exact_match` and `f1`, lists of one score for each sample.

    Returns:
        `str`: a line for each set; with several of them one for all questions and one for the mean of the sets.
    """
    by_set = defaultdict(list)
    for answer in answers:
        by_set[answer["dataset"]].append([float(np.mean(answer[measure])) for measure in MEASURES])
    sets = {name: np.array(scores) for name, scores in by_set.items()}  # (questions, 2) each
    lines = [f"{'':20}{'questions':>10}  {'exact match':^22}  {'F1':^22}"]
    lines += [_line(name, scores) for name, scores in sets.items()]
    if len(sets) > 1:
        lines.append(_line("micro", np.concatenate(list(sets.values()))))
        lines.append(_line("macro", *sets.values()))
    return "\n".join(lines)


def _line(name: str, *sets: np.ndarray) -> str:
    count = len(sets[0]) if len(sets) == 1 else ""
    cells = []
    for column in range(len(MEASURES)):
        values = [scores[:, column] for scores in sets]
        low, high = interval(*values)
        cells.append(f"{np.mean([scores.mean() for scores in values]):.3f} ({low:.3f}–{high:.3f})")
    return f"{name:20}{count:>10}  {cells[0]:^22}  {cells[1]:^22}"
