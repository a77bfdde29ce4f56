"""The estimator `"trace"`."""

import math

import loops
import torch
from loops import NAN, credited, group, options_of, random_turns
from torch.testing import assert_close

from a2tgpo_trl.credit import TRACE
from a2tgpo_trl.functional import belief_progress, spread_turns

LN2 = math.log(2)


def close(actual, expected):
    assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def turns_of(*beliefs):
    """Two completions whose gaps to certainty, `0.1 - s`, are given; the first is right, outcomes 0.5 and -0.5."""
    width = max(map(len, beliefs)) + 1
    padded = [[0.1 - gap for gap in row] + [NAN] * (width - len(row)) for row in beliefs]
    return group([1.0, 0.0], [len(row) - 1 for row in beliefs], beliefs=padded)


def test_by_hand():
    # The gap halves twice: δ = ln 2, ln 2. c_0 = (ln 2 + ½ ln 2) / 1.5 + 2 · ½² · ½, c_1 = ln 2 + 2 · ½ · ½
    turns = turns_of([4.0, 2.0, 1.0], [4.0])
    credit = credited(TRACE, turns, turn_gamma=0.5, turn_advantage_coef=0.2)
    close(credit.advantages, [[0.5 + 0.2 * (LN2 + 0.25), 0.5 + 0.2 * (LN2 + 0.5), 0.5], [-0.5] * 3])
    close(credit.columns["belief_progress"][0, :2], [LN2, LN2])


def test_the_outcome_fills_windows_that_reach_the_last_tool_turn():
    # δ = 0 throughout. Four tool turns, a window of three: turns 1, 2 and 3 reach the last one
    turns = turns_of([1.0] * 5, [1.0])
    credit = credited(TRACE, turns, turn_gamma=0.5, turn_advantage_coef=1.0)
    close(credit.advantages[0], [0.5, 0.5 + 0.125, 0.5 + 0.25, 0.5 + 0.5, 0.5])
    wider = credited(TRACE(window=4), turns, turn_gamma=0.5, turn_advantage_coef=1.0)
    close(wider.advantages[0, 0], 0.5 + 2 * 0.5**4 * 0.5)


def test_a_window_of_one_without_discount_and_fill_is_plain_progress():
    turns = random_turns(3)
    credit = credited(TRACE(window=1, fill=0.0), turns, turn_gamma=1.0, turn_advantage_coef=1.0)
    progress = belief_progress(turns.signals["beliefs"]).masked_fill(turns.unscored.unsqueeze(1), 0.0)
    assert_close(credit.advantages, turns.outcome.unsqueeze(1) + progress.nan_to_num())


def test_a_redundant_turn_does_not_add_progress():
    short, long = turns_of([4.0, 1.0], [4.0]), turns_of([4.0, 4.0, 1.0, 1.0], [4.0])
    total, same = (credited(TRACE, turns).columns["belief_progress"][0].nansum() for turns in (short, long))
    assert_close(total, same)
    close(total, 2 * LN2)


class Watched(TRACE):
    """Keeps what it was given."""

    def credit(self, turns, options):
        self.turns = turns
        return super().credit(turns, options)


def test_rollouts_with_tools(score, build):
    batch, trainer = score(advantage_estimator=Watched())
    turns = trainer.estimator.turns
    expected = torch.tensor(loops.trace(turns, options_of(TRACE)))
    assert_close(batch["advantages"], spread_turns(expected, batch["turn_ids"], 0.0), rtol=1e-4, atol=1e-4)
    assert (batch["advantages"][3] - turns.outcome[3] != 0).any() and not batch["advantages"].requires_grad
    trainer = build(advantage_estimator="trace")
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["belief_progress/mean"])
