"""Scores of answers: by set, over all questions (micro) and over all sets (macro), with bootstrap intervals."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """
    Percentile bootstrap of the mean.

    Args:
        scores (`Sequence[float]`): One for each question, the mean over its samples.
        seed (`int`): Of the resampling.

    Returns:
        `tuple[float, float]`: the bounds of the 95 % interval.
    """
    values = np.asarray(scores, dtype=float)
    picks = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    means = values[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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
        by_set[answer["dataset"]].append({name: float(np.mean(answer[name])) for name in ("exact_match", "f1")})
    lines = [f"{'':20}{'questions':>10}  {'exact match':^22}  {'F1':^22}"]
    lines += [_line(name, scores) for name, scores in by_set.items()]
    if len(by_set) > 1:
        lines.append(_line("micro", [score for scores in by_set.values() for score in scores]))
        means = {
            name: np.mean([np.mean([score[name] for score in scores]) for scores in by_set.values()])
            for name in ("exact_match", "f1")
        }
        lines.append(f"{'macro':20}{'':10}  {means['exact_match']:^22.3f}  {means['f1']:^22.3f}")
    return "\n".join(lines)


def _line(name: str, scores: list[dict[str, float]]) -> str:
    cells = []
    for measure in ("exact_match", "f1"):
        values = [score[measure] for score in scores]
        low, high = interval(values)
        cells.append(f"{np.mean(values):.3f} ({low:.3f}–{high:.3f})")
    return f"{name:20}{len(scores):10}  {cells[0]:^22}  {cells[1]:^22}"
