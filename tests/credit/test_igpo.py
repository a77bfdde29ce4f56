"""The estimator `"igpo"`."""

import math
from types import SimpleNamespace

import torch

from a2tgpo_trl.credit import IGPO, Turns

NAN = math.nan


def test_igpo(score):
    batch, _ = score(advantage_estimator="igpo", turn_gamma=0.5)
    g = batch["information_gain"]
    pooled = g[~g.isnan()]
    z = (g - pooled.mean()) / (pooled.std(correction=0) + 1e-6)
    outcome = torch.tensor([-0.75, 0.25, 0.25, 0.25]) / (0.5 + 1e-4)
    # row 3 has two tool turns: A_0 = z_0 + z_1 / 2 + Â / 4, A_1 = z_1 + Â / 2, answer turn Â
    expected = torch.stack([z[3, 0] + z[3, 1] / 2 + outcome[3] / 4, z[3, 1] + outcome[3] / 2, outcome[3]])
    row, ids = batch["advantages"][3], batch["turn_ids"][3]
    torch.testing.assert_close(torch.stack([row[ids == k][0] for k in range(3)]), expected, atol=1e-4, rtol=1e-4)
    assert (batch["clip_scale"] == 1).all()


def test_igpo_discounts_the_outcome_over_turns_that_could_not_be_scored():
    """A tool turn without a belief after it, as at the end of the context, is a turn all the same."""
    beliefs = torch.tensor([[-3.0, -2.0, NAN, NAN], [-3.0, NAN, NAN, NAN]])
    turns = Turns(
        outcome=torch.tensor([8.0, -8.0]),
        rewards=torch.tensor([1.0, 0.0]),
        num_turns=torch.tensor([3, 1]),
        num_tool_turns=torch.tensor([2, 0]),
        num_generations=2,
        signals={"beliefs": beliefs},
    )
    options = SimpleNamespace(turn_gamma=0.5, turn_credit_groups="all", gain_noise_floor=0.0)
    credit = IGPO().credit(turns, options)
    assert credit.outcome_part.tolist() == [[2.0, 4.0, 8.0], [-8.0, -8.0, -8.0]]
    assert credit.advantages[0].tolist() == [2.0, 4.0, 8.0]  # one gain in the group: its normalised value is 0
