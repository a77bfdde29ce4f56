"""What holds of every method: parity with a loop, weight 0, and what must not matter."""

import random
from dataclasses import replace

import loops
import pytest
import torch
from loops import NAN, credited, options_of, random_turns
from torch.testing import assert_close

from a2tgpo_trl.credit import (
    A2TGPO,
    GTPO,
    IGPO,
    MTGRPO,
    TRACE,
    A2TGPOStop,
    BeliefBonus,
    GiGPO,
    Returns,
    TurnPPO,
    Turns,
)

SEEDS = range(12)
METHODS = [
    (A2TGPO, loops.a2tgpo, {}),
    (A2TGPO, loops.a2tgpo, dict(turn_rescale=False)),
    (A2TGPO, loops.a2tgpo, dict(gain_noise_floor=0.7, turn_gamma=0.5, turn_credit_groups="mixed")),
    (IGPO, loops.igpo, dict(turn_gamma=0.9)),
    (IGPO, loops.igpo, dict(gain_noise_floor=0.7, turn_credit_groups="mixed")),
    (A2TGPOStop, loops.a2tgpo_stop, {}),
    (A2TGPOStop, loops.a2tgpo_stop, dict(turn_scale=True, gain_noise_floor=0.7, turn_gamma=0.5)),
    (A2TGPOStop, loops.a2tgpo_stop, dict(turn_credit_groups="mixed", turn_advantage_coef=1.0)),
    (TRACE, loops.trace, {}),
    (TRACE, loops.trace, dict(turn_gamma=1.0, turn_credit_groups="mixed")),
    (GiGPO, loops.gigpo, {}),
    (GiGPO, loops.gigpo, dict(turn_scale=True, turn_gamma=1.0, turn_credit_groups="mixed")),
    (TurnPPO, loops.turn_ppo, {}),
    (TurnPPO, loops.turn_ppo, dict(whiten_advantages=False, turn_gamma=1.0, gae_lambda=0.5)),
    (BeliefBonus, loops.belief_bonus, {}),
    (BeliefBonus, loops.belief_bonus, dict(turn_credit_groups="mixed", turn_advantage_coef=0.5)),
    (GTPO, loops.returns, {}),
    (GTPO, loops.returns, dict(turn_comparison="batch", turn_gamma=0.0, turn_credit_groups="mixed")),
    (MTGRPO, loops.returns, {}),
    (MTGRPO, loops.returns, dict(turn_credit_groups="mixed", turn_advantage_coef=0.5)),
    *(
        (Returns, loops.returns, dict(turn_comparison=sets, turn_aggregation=order, turn_outcome=outcome, **how))
        for sets, order, outcome, how in [
            ("prompt", "sum_then_standardize", "inside", {}),
            ("turn", "standardize_then_sum", "added", dict(turn_scale=False)),
            ("state", "sum_then_standardize", "added", dict(turn_baseline="leave_one_out")),
            ("origin", "sum_then_standardize", "inside", dict(turn_baseline="leave_one_out", turn_scale=False)),
            ("origin", "standardize_then_sum", "added", dict(turn_gamma=0.5)),
            ("batch", "standardize_then_sum", "inside", dict(turn_baseline="none", turn_advantage_coef=0.5)),
        ]
    ),
]


def in_words(parameter):
    """The same in each process that collects tests."""
    return getattr(parameter, "__name__", str(parameter))


CHOICES = [(method, options) for method, _, options in METHODS]
every_method = pytest.mark.parametrize(("method", "options"), CHOICES, ids=in_words)


def shown(credit):
    return [credit.advantages, *credit.columns.values(), *([] if credit.clip_scale is None else [credit.clip_scale])]


def rows_of(turns, rows):
    """The turns of some completions, in that order."""
    tensors = {name: getattr(turns, name)[rows] for name in ("outcome", "rewards", "num_turns", "num_tool_turns")}
    signals = {name: values[rows] for name, values in turns.signals.items()}
    return replace(turns, **tensors, signals=signals, answered=turns.answered[rows])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("method", "loop", "options"), METHODS, ids=in_words)
def test_it_matches_the_loop(seed, method, loop, options):
    turns = random_turns(seed)
    expected = torch.tensor(loop(turns, options_of(method, **options)), dtype=torch.float64)
    assert_close(credited(method, turns, **options).advantages, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("method", [A2TGPO, A2TGPOStop, TRACE, MTGRPO, GiGPO, BeliefBonus])
def test_weight_0_is_grpo_to_the_bit(seed, method):
    turns = random_turns(seed)
    turns = replace(turns, outcome=turns.outcome.float())
    credit = credited(method, turns, turn_advantage_coef=0.0)
    outcome = turns.outcome.unsqueeze(1).expand(-1, turns.max_turns)
    assert torch.equal(credit.advantages, outcome.to(credit.advantages.dtype))


@pytest.mark.parametrize("seed", SEEDS[:6])
@every_method
def test_order_of_rollouts_and_groups_does_not_matter(seed, method, options):
    turns, rng = random_turns(seed), random.Random(seed)
    order = torch.tensor([4 * group + i for group in rng.sample(range(4), 4) for i in rng.sample(range(4), 4)])
    for ours, theirs in zip(
        shown(credited(method, rows_of(turns, order), **options)),
        shown(credited(method, turns, **options)),
        strict=True,
    ):
        assert_close(ours, theirs[order], equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS[:6])
@every_method
def test_padding_turns_change_nothing(seed, method, options):
    turns = random_turns(seed)
    fill = {"beliefs": NAN, "turn_rewards": NAN, "values": NAN, "states": -1}
    wide = {name: torch.nn.functional.pad(values, (0, 2), value=fill[name]) for name, values in turns.signals.items()}
    for ours, theirs in zip(
        shown(credited(method, replace(turns, signals=wide), **options)),
        shown(credited(method, turns, **options)),
        strict=True,
    ):
        assert_close(ours[:, :-2], theirs, equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS[:6])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        choice for choice in CHOICES if choice[1].get("turn_comparison") != "batch" and choice != (TurnPPO, {})
    ],  # it whitens
    ids=in_words,
)
def test_prompts_do_not_touch_each_other(seed, method, options):
    turns = random_turns(seed)
    alone = rows_of(turns, torch.arange(4, 8))
    for ours, theirs in zip(
        shown(credited(method, alone, **options)), shown(credited(method, turns, **options)), strict=True
    ):
        assert_close(ours, theirs[4:8], equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS[:6])
@every_method
def test_what_nobody_scored_counts_for_nobody(seed, method, options):
    """Their signals may be anything, and they have the outcome's advantage, which is 0."""
    turns = random_turns(seed)
    nobody = turns.rewards.isnan()
    assert nobody.any()
    noise = {
        name: values + 3.0 * nobody.unsqueeze(1) if name != "states" else values
        for name, values in turns.signals.items()
    }
    before, after = (
        credited(method, replace(turns, signals=signals), **options) for signals in (turns.signals, noise)
    )
    assert all(
        torch.equal(a.nan_to_num(99), b.nan_to_num(99)) for a, b in zip(shown(before), shown(after), strict=True)
    )
    assert (before.advantages[nobody] == 0).all()


@pytest.mark.parametrize("seed", SEEDS[:6])
@pytest.mark.parametrize("method", [A2TGPO, IGPO, A2TGPOStop, TRACE, MTGRPO, GiGPO, GTPO, Returns])
def test_credit_in_mixed_groups_only(seed, method):
    """Groups whose rewards are all equal have the outcome and the plain clip range; the others are as they were."""
    turns = random_turns(seed)
    everywhere = credited(method, turns)
    mixed = credited(method, turns, turn_credit_groups="mixed")
    assert (turns.rewards[:4].nan_to_num(0.25) == 0.25).all()
    assert torch.equal(mixed.advantages[:4], turns.outcome[:4].unsqueeze(1).expand(-1, turns.max_turns))
    rewards = turns.rewards.unflatten(0, (4, 4))
    for group, row in enumerate(rewards):
        members = slice(4 * group, 4 * group + 4)
        if len(set(row[~row.isnan()].tolist())) > 1:
            assert torch.equal(mixed.advantages[members], everywhere.advantages[members])
        if mixed.clip_scale is not None and group == 0:
            assert (mixed.clip_scale[members] == 1).all()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (A2TGPO, {}),
        (A2TGPOStop, {}),
        (A2TGPOStop, dict(turn_scale=True)),
        (GiGPO, dict(turn_scale=True)),
        (MTGRPO, {}),
        *((Returns, dict(turn_comparison=sets, turn_outcome="added")) for sets in ("turn", "state", "origin")),
    ],
    ids=in_words,
)
def test_equal_completions_have_the_outcome_alone(method, options):
    """The mean of seven 0.1 is not 0.1 in float32, and the difference over ε would not be small."""
    turns = Turns(
        outcome=torch.zeros(7),
        rewards=torch.full((7,), 0.3),
        num_turns=torch.full((7,), 3),
        num_tool_turns=torch.full((7,), 2),
        num_generations=7,
        signals={
            "beliefs": torch.tensor([[-2.1, -1.2, -0.7, NAN]] * 7),
            "turn_rewards": torch.full((7, 3), 0.1),
            "states": torch.tensor([[0, 1, 2]] * 7),
        },
    )
    assert (credited(method, turns, **options).advantages == 0).all()


def test_equal_rewards_teach_nothing_where_credit_is_for_mixed_groups(score):
    def alike(completions, **_):
        return [1.0] * len(completions)

    batch, _ = score(reward=alike)
    assert (batch["advantages"] != 0).any() and (batch["clip_scale"] != 1).any()
    batch, _ = score(reward=alike, turn_credit_groups="mixed")
    assert (batch["advantages"] == 0).all() and (batch["clip_scale"] == 1).all()


@pytest.mark.parametrize("name", ["a2tgpo", "igpo", "a2tgpo_stop"])
def test_differences_below_the_noise_floor_get_little_credit(score, name):
    def spread(**options):
        _, trainer = score(advantage_estimator=name, **options)
        return max(
            abs(value) for row in trainer._logs["extra"]["normalized_gain"] for value in row if value is not None
        )

    assert spread() > 1
    assert 0 < spread(gain_noise_floor=100.0) < 0.1  # the gains differ by less than 10 nats
