"""The estimator `"belief_bonus"`."""

import torch
from loops import NAN, credited, group

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.credit import BeliefBonus


def test_every_turn_has_twice_what_the_rollout_added_to_the_belief():
    """Right after two searches, right without one, wrong after one, and wrong after one whose result could not be scored."""
    beliefs = [[0.125, 0.25, 0.75, NAN], [0.125, NAN, NAN, NAN], [0.125, 0.0625, NAN, NAN], [0.125, NAN, NAN, NAN]]
    turns = group([1.0, 1.0, 0.0, 0.0], [2, 0, 1, 1], beliefs=beliefs)
    advantages = credited(BeliefBonus, turns).advantages
    assert advantages.tolist() == [[0.5 + 2 * 0.625] * 3, [0.5] * 3, [-0.5 - 2 * 0.0625] * 3, [-0.5] * 3]


def test_it_is_measured_in_probability_at_the_level_of_turns(tmp_path):
    args = A2TGPOConfig(output_dir=str(tmp_path), advantage_estimator="belief_bonus", report_to="none", use_cpu=True)
    assert (args.belief_measure, args.turn_advantage_coef, args.importance_sampling_level) == ("prob", 2.0, "turn")
    assert A2TGPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True).belief_measure == "logprob"


def test_all_tokens_of_a_rollout_share_it(score):
    batch, _ = score(advantage_estimator="belief_bonus")
    gained = batch["information_gain"].nansum(dim=1)
    outcome = torch.tensor([-0.75, 0.25, 0.25, 0.25]) / (0.5 + 1e-4)
    for row, turn_ids, expected in zip(batch["advantages"], batch["turn_ids"], outcome + 2 * gained, strict=True):
        own = row[turn_ids >= 0]
        torch.testing.assert_close(own, expected.expand_as(own), atol=1e-4, rtol=1e-4)
    assert (gained != 0).any()
