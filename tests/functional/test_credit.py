"""Information gain, normalisation, accumulation, turn advantages and clip scales (equations 2 to 6)."""

import math
import random

import pytest
import reference
import torch
from torch.testing import assert_close

from a2tgpo_trl.functional import (
    accumulate,
    adaptive_clip_scale,
    belief_progress,
    comparison_sets,
    discounted_outcome,
    information_gain,
    normalize_groups,
    normalize_turn_groups,
    set_sizes,
    standardize,
    turn_advantages,
    windowed_mean,
    with_outcome,
)

NAN = math.nan
SEEDS = range(20)
NORMALIZERS = [normalize_turn_groups, normalize_groups]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected):
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


# Parity with the loop


@pytest.mark.parametrize("seed", SEEDS)
def test_information_gain_matches_the_loop(seed):
    beliefs = reference.random_gains(seed)
    close(information_gain(tensor(beliefs)), reference.information_gain(beliefs))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_generations", [1, 3, 4, 12])
def test_normalisation_matches_the_loop(seed, num_generations):
    gains = reference.random_gains(seed)
    for normalize, expected in (
        (normalize_turn_groups, reference.normalize_turn_groups),
        (normalize_groups, reference.normalize_groups),
    ):
        close(normalize(tensor(gains), num_generations), expected(gains, num_generations))
        close(normalize(tensor(gains), num_generations, eps=0.1), expected(gains, num_generations, eps=0.1))


COMPARISONS = [
    dict(),
    dict(eps=0.1),
    dict(floor=1.5),
    dict(center=False),
    dict(scale=False),
    dict(leave_one_out=True),
    dict(scale=False, leave_one_out=True),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", COMPARISONS, ids=str)
def test_standardisation_matches_the_loop(seed, options):
    values, rng = reference.random_gains(seed), random.Random(seed)
    ids = [[rng.choice([-3, 0, 7, 2**40, 5 + i]) for _ in row] for i, row in enumerate(values)]
    close(standardize(tensor(values), torch.tensor(ids), **options), reference.standardize(values, ids, **options))


def sets_of(gains, num_generations, by_turn):
    """Turn groups, or prompts, as sets."""
    prompt = torch.arange(len(gains)).unsqueeze(1) // num_generations
    return prompt * 1000 + (torch.arange(gains.size(1)) if by_turn else torch.zeros(gains.size(1), dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_generations", [1, 2, 8, 16, 33])
@pytest.mark.parametrize("num_turns", [1, 2, 5, 8, 19])
def test_normalisers_have_the_bits_of_sums_along_a_dimension(dtype, num_generations, num_turns):
    generator = torch.Generator().manual_seed(num_turns)
    for scale in (1e-6, 1.0, 1e6):
        gains = scale * torch.randn(3 * num_generations, num_turns, dtype=dtype, generator=generator)
        gains[torch.rand(gains.shape, generator=generator) < 0.3] = NAN
        groups = gains.unflatten(0, (3, num_generations))
        for by_turn, normalize, expected in (
            (True, normalize_turn_groups, reference.normalize_along(groups, 1)),
            (False, normalize_groups, reference.normalize_along(groups.flatten(1), 1)),
        ):
            normalized = normalize(gains, num_generations)
            assert torch.equal(normalized.nan_to_num(nan=99.0), expected.view_as(gains).nan_to_num(nan=99.0))
            by_ids = standardize(gains, sets_of(gains, num_generations, by_turn))
            assert_close(by_ids, normalized, equal_nan=True, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rescale", [True, False])
def test_accumulation_matches_the_loop(seed, gamma, rescale):
    normalized = reference.random_gains(seed)
    close(accumulate(tensor(normalized), gamma, rescale), reference.accumulate(normalized, gamma, rescale))


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_and_clip_scales_match_the_loop(seed):
    values = reference.random_gains(seed)
    rng = random.Random(seed)
    outcome = [rng.choice([0.0, rng.gauss(0, 1)]) for _ in values]
    for strength in (0.0, 0.3, 0.9):
        expected = reference.turn_advantages(outcome, values, strength)
        close(turn_advantages(tensor(outcome), tensor(values), strength), expected)
        close(adaptive_clip_scale(tensor(values), strength), reference.adaptive_clip_scale(values, strength))
    for gamma in (0.0, 0.5, 1.0):
        expected = reference.discounted_outcome(outcome, values, gamma)
        close(discounted_outcome(tensor(outcome), tensor(values), gamma), expected)


# Worked by hand


def test_gain_of_the_first_turn_is_measured_from_the_prompt():
    # -1 - -4 = 3; a result that changed nothing gives 0; an unscored observation takes the gains on both sides with it
    beliefs = tensor([[-4.0, -1.0, -1.0, -3.0], [-4.0, NAN, -2.0, -1.5], [-4.0, NAN, NAN, NAN]])
    close(information_gain(beliefs), [[3.0, 0.0, -2.0], [NAN, NAN, 0.5], [NAN, NAN, NAN]])


def test_gains_from_elsewhere_than_the_turns_start():
    # A query that names the answer raises -4 to -2; what it found takes that down to -2.5
    beliefs, before = tensor([[-4.0, -2.5, -1.0], [-4.0, -3.0, NAN]]), tensor([[-2.0, -2.5], [NAN, NAN]])
    close(information_gain(beliefs, before), [[-0.5, 1.5], [NAN, NAN]])
    # with the offset ½ the gaps are 2½ -> 3 and 3 -> 1½
    close(belief_progress(beliefs, before, offset=0.5)[:1], [[math.log(2.5 / 3), math.log(2)]])
    close(belief_progress(beliefs, beliefs[:, :-1]), belief_progress(beliefs))


def test_turn_groups_by_hand():
    # turn 0: 0, 0, 3 -> μ = 1, σ = √((1 + 1 + 4) / 3) = √2 (the sample deviation would be √3)
    # turn 1: 1, 5    -> μ = 3, σ = 2;   turn 2: one member -> 0
    gains = tensor([[0.0, 1.0, 7.0], [0.0, NAN, NAN], [3.0, 5.0, NAN]])
    root = math.sqrt(2)
    expected = [[-1 / root, -1.0, 0.0], [-1 / root, NAN, NAN], [2 / root, 1.0, NAN]]
    close(normalize_turn_groups(gains, 3, eps=0.0), expected)


def test_eps_is_added_to_the_deviation():
    # 1, 5 -> μ = 3, σ = 2, (1 - 3) / (2 + 2) = -0.5
    close(normalize_turn_groups(tensor([[1.0], [5.0]]), 2, eps=2.0), [[-0.5], [0.5]])


def test_pooled_groups_by_hand():
    # 0, 2, 4, 6 -> μ = 3, σ = √((9 + 1 + 1 + 9) / 4) = √5, whichever turn they come from
    root = math.sqrt(5)
    expected = [[-3 / root, -1 / root, 1 / root], [3 / root, NAN, NAN]]
    close(normalize_groups(tensor([[0.0, 2.0, 4.0], [6.0, NAN, NAN]]), 2, eps=0.0), expected)


def test_standardisation_by_hand():
    # the set 7: 0, 2, 4 -> μ = 2, σ = √(8 / 3); the set 8: 5 and nothing else; the set 9: 3, 3
    values, ids = (
        tensor([[0.0, 5.0, 3.0], [2.0, 4.0, 3.0], [NAN, NAN, NAN]]),
        torch.tensor([[7, 8, 9], [7, 7, 9], [7, 8, 6]]),
    )
    root, rest = math.sqrt(8 / 3), [NAN] * 3
    close(standardize(values, ids, eps=0.0), [[-2 / root, 0.0, 0.0], [0.0, 2 / root, 0.0], rest])
    close(standardize(values, ids, scale=False), [[-2.0, 0.0, 0.0], [0.0, 2.0, 0.0], rest])
    # 0 against the mean of 2 and 4, 2 against that of 0 and 4, 4 against that of 0 and 2
    left_out = standardize(values, ids, scale=False, leave_one_out=True)
    close(left_out, [[-3.0, 0.0, 0.0], [0.0, 3.0, 0.0], rest])
    close(standardize(values, ids, center=False, eps=0.0), [[0.0, 0.0, 0.0], [2 / root, 4 / root, 0.0], rest])
    close(standardize(values, ids, eps=1.0)[1:2, 1:2], [[2 / (root + 1)]])


def test_standardisation_of_rounding_is_zero():
    values = torch.full((7, 3), 0.1)
    for options in COMPARISONS:
        assert (standardize(values, torch.zeros(7, 3, dtype=torch.long), **options) == 0).all()


def test_standardisation_of_no_rows_and_of_other_shapes():
    assert standardize(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"set_ids has the shape \(2,\), and values \(2, 1\)"):
        standardize(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
    for options in (dict(scale=False), dict(leave_one_out=True)):
        with pytest.raises(ValueError, match=r"center=False.*set center=True for leave_one_out, and center or scale"):
            standardize(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.long), center=False, **options)


def test_accumulation_by_hand():
    # D_0 = (2 + 0.5·0 + 0.25·(-1)) / √3, D_1 = (0 + 0.5·(-1)) / √2, D_2 = -1 / √1; then a row of one tool turn
    gains = tensor([[2.0, 0.0, -1.0, NAN], [3.0, NAN, NAN, NAN]])
    expected = [[1.75 / math.sqrt(3), -0.5 / math.sqrt(2), -1.0, NAN], [3.0, NAN, NAN, NAN]]
    close(accumulate(gains, gamma=0.5), expected)
    close(accumulate(gains, gamma=0.5, rescale=False), [[1.75, -0.5, -1.0, NAN], [3.0, NAN, NAN, NAN]])


def test_an_unscored_turn_keeps_its_place_in_the_discount_and_is_not_counted():
    # 1 + 0.5²·4 = 2 of two terms: / √2. Its own entry stays NaN
    close(accumulate(tensor([[1.0, NAN, 4.0]]), gamma=0.5), [[2 / math.sqrt(2), NAN, 4.0]])


def test_accumulation_defaults_are_the_papers():
    # γ = 1 and rescaled: (1 + 3) / √2
    close(accumulate(tensor([[1.0, 3.0]])), [[4 / math.sqrt(2), 3.0]])


def test_turn_advantages_by_hand():
    # 1 + 0.3·2 = 1.6, 1 + 0.3·(-5) = -0.5, answer turn 1; the second row has no gain at all
    expected = [[1.6, -0.5, 1.0], [-1.0, -1.0, -1.0]]
    close(turn_advantages(tensor([1.0, -1.0]), tensor([[2.0, -5.0, NAN], [NAN, NAN, NAN]]), coef=0.3), expected)


def test_clip_scale_by_hand():
    # σ(ln 3) = 3/4 -> 1 + 0.3·(2·3/4 - 1) = 1.15; σ(-ln 3) = 1/4 -> 0.85; σ(0) = 1/2 -> 1; answer turn 1
    gains = tensor([[math.log(3), -math.log(3), 0.0, NAN]])
    close(adaptive_clip_scale(gains, strength=0.3), [[1.15, 0.85, 1.0, 1.0]])


def test_discounted_outcome_by_hand():
    # two tool turns, then the answer turn: 8·0.5², 8·0.5, 8. Without a tool turn the outcome is not discounted
    expected = [[2.0, 4.0, 8.0], [-1.0, -1.0, -1.0], [1.0, 2.0, 4.0]]
    normalized = tensor([[1.0, 1.0, NAN], [NAN, NAN, NAN], [1.0, NAN, 1.0]])
    close(discounted_outcome(tensor([8.0, -1.0, 8.0]), normalized, gamma=0.5), expected)


@pytest.mark.parametrize(
    "normalize", [*NORMALIZERS, lambda x, n, **kw: standardize(x, torch.zeros(2, 1).long(), **kw)]
)
def test_a_floor_under_the_deviation_by_hand(normalize):
    # 1, 1.2 -> σ = 0.1: ±0.1 / 0.5. 1, 5 -> σ = 2, above the floor
    close(normalize(tensor([[1.0], [1.2]]), 2, floor=0.5, eps=0.0), [[-0.2], [0.2]])
    close(normalize(tensor([[1.0], [5.0]]), 2, floor=0.5, eps=0.0), [[-1.0], [1.0]])


def test_comparison_sets_by_hand():
    states = torch.tensor([[0, 2**62, -1], [0, 0, 2**62], [0, 5, 5], [5, 5, 5]])
    like = torch.zeros(4, 3)

    def partition(within):
        """For each turn the first one of its set."""
        flat = comparison_sets(within, 2, like, states).flatten().tolist()
        return [flat.index(number) for number in flat]

    assert partition("batch") == [0] * 12
    assert partition("prompt") == [0] * 6 + [6] * 6
    assert partition("turn") == [0, 1, 2, 0, 1, 2, 6, 7, 8, 6, 7, 8]
    assert partition("state") == [0, 1, 2, 0, 0, 1, 6, 7, 7, 7, 7, 7]
    assert partition("origin") == [0, 1, 2, 0, 4, 5, 6, 7, 8, 9, 7, 8]


def test_comparison_sets_that_cannot_be():
    with pytest.raises(
        ValueError, match="within must be one of 'prompt', 'turn', 'state', 'origin', 'batch', got 'x'"
    ):
        comparison_sets("x", 2, torch.zeros(2, 1))
    for within in ("state", "origin"):
        with pytest.raises(ValueError, match=f"within='{within}' compares turns by the states they set out from"):
            comparison_sets(within, 2, torch.zeros(2, 1))


@pytest.mark.parametrize("num_generations", [1, 4, 12])
def test_prompts_and_turn_groups_are_sets(num_generations):
    gains = tensor(reference.random_gains(0))
    for within, by_turn in (("turn", True), ("prompt", False)):
        ids = comparison_sets(within, num_generations, gains)
        close(standardize(gains, ids), standardize(gains, sets_of(gains, num_generations, by_turn)))


def test_set_sizes_by_hand():
    ids = torch.tensor([[7, 2**60, 7], [7, 7, -1]])
    close(set_sizes(tensor([[0.0, 1.0, NAN], [2.0, 3.0, 4.0]]), ids), [[3.0, 1.0, NAN], [3.0, 3.0, 1.0]])
    assert set_sizes(torch.full((2, 3), NAN), ids).isnan().all()


def test_windowed_mean_by_hand():
    # (1 + ½ · 4) / 1.5, (4 + ½ · 7) / 1.5, 7 alone; an absent value has no weight: (1 + ¼ · 9) / 1.25
    close(windowed_mean(tensor([[1.0, 4.0, 7.0]]), 0.5, 2), [[2.0, 5.0, 7.0]])
    close(windowed_mean(tensor([[1.0, NAN, 9.0, NAN]]), 0.5, 3), [[2.6, NAN, 9.0, NAN]])
    values = tensor(reference.random_gains(0))
    close(windowed_mean(values, 1.0, 1), values)
    close(windowed_mean(values, 0.0, 3), values)


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_belief_progress_telescopes(seed):
    beliefs = -torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 9
    progress = belief_progress(beliefs, offset=0.3)
    close(progress.sum(1), ((0.3 - beliefs[:, 0]) / (0.3 - beliefs[:, -1])).log())
    close(progress[:, 0], ((0.3 - beliefs[:, 0]) / (0.3 - beliefs[:, 1])).log())


def test_the_outcome_among_the_turn_rewards_by_hand():
    turn_rewards = tensor([[-0.1, NAN, NAN], [NAN, 0.5, NAN], [1.0, 1.0, NAN], [1.0, NAN, NAN]])
    given = with_outcome(turn_rewards, tensor([1.0, 2.0, NAN, 1.0]), torch.tensor([2, 2, 2, 0]))
    close(given, [[-0.1, 1.0, NAN], [0.0, 2.5, NAN], [NAN] * 3, [NAN] * 3])


# Identities


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_gains_telescope(seed):
    rng = random.Random(seed)
    turns = [rng.randint(0, 6) for _ in range(8)]
    beliefs = tensor([[rng.gauss(-3, 1) if k <= n else NAN for k in range(8)] for n in turns])
    sums = accumulate(information_gain(beliefs), gamma=1.0, rescale=False)
    last = beliefs.gather(1, torch.tensor(turns).unsqueeze(1))  # s(c_n)
    expected = (last - beliefs[:, :-1]).where(torch.arange(7) < torch.tensor(turns).unsqueeze(1), NAN)
    close(sums, expected)


@pytest.mark.parametrize("tool_turns", range(1, 7))
def test_rescaling_divides_by_the_root_of_the_tool_turns_left(tool_turns):
    row = torch.randn(1, tool_turns, dtype=torch.float64, generator=torch.Generator().manual_seed(tool_turns))
    row = torch.cat([row, tensor([[NAN, NAN]])], dim=1)
    left = tensor([[float(max(tool_turns - k, 1)) for k in range(tool_turns + 2)]])  # n - k
    close(accumulate(row, 0.9) * left.sqrt(), accumulate(row, 0.9, rescale=False))


def test_a_sum_of_independent_terms_of_unit_variance_keeps_unit_variance():
    weights = accumulate(torch.eye(5, dtype=torch.float64))  # D is linear: row j holds the weight of term j in each D
    close(weights.square().sum(0), torch.ones(5, dtype=torch.float64))


def test_neutral_options_leave_the_outcome_alone():
    gains, outcome = tensor(reference.random_gains(0)), torch.linspace(-1, 1, 12, dtype=torch.float64)
    assert torch.equal(turn_advantages(outcome, gains, coef=0.0), outcome.unsqueeze(1).expand(-1, 6))
    assert torch.equal(adaptive_clip_scale(gains, strength=0.0), torch.ones(12, 6, dtype=torch.float64))
    assert torch.equal(discounted_outcome(outcome, gains, gamma=1.0), outcome.unsqueeze(1).expand(-1, 6))


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_normalised_turn_groups_have_mean_0_and_deviation_1(seed):
    gains = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    normalized = normalize_turn_groups(gains, 4, eps=0.0).unflatten(0, (3, 4))
    close(normalized.mean(1), torch.zeros(3, 5, dtype=torch.float64))
    close(normalized.std(1, correction=0), torch.ones(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.99])
def test_clip_scale_is_bounded_and_grows_with_the_gain(strength):
    scale = adaptive_clip_scale(torch.linspace(-8, 8, 101, dtype=torch.float64).unsqueeze(0), strength)
    assert (scale > 1 - strength).all()
    assert (scale < 1 + strength).all()
    assert (scale.diff() > 0).all()
    close(scale + scale.flip(1), torch.full((1, 101), 2.0, dtype=torch.float64))  # symmetric about 1
    far = adaptive_clip_scale(tensor([[-1e4, 1e4]]), strength)
    close(far, [[1 - strength, 1 + strength]])


# Invariances


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_normalisation_follows_the_rows(seed, normalize):
    gains = tensor(reference.random_gains(seed))
    rng = random.Random(seed)
    groups = [[4 * group + i for i in rng.sample(range(4), 4)] for group in rng.sample(range(3), 3)]
    order = torch.tensor(groups).flatten()  # groups in another order, and rows inside each
    close(normalize(gains[order], 4), normalize(gains, 4)[order])


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_groups_do_not_touch_each_other(normalize):
    gains = tensor(reference.random_gains(1))
    changed = gains.clone()
    changed[4:8] = changed[4:8] * 3 + 1
    changed[7] = NAN
    before, after = normalize(gains, 4), normalize(changed, 4)
    close(after[[0, 1, 2, 3, 8, 9, 10, 11]], before[[0, 1, 2, 3, 8, 9, 10, 11]])


def test_turn_groups_do_not_touch_each_other():
    gains = tensor(reference.random_gains(2))
    changed = gains.clone()
    changed[:, 1] = 5 * changed[:, 1] - 2
    close(normalize_turn_groups(changed, 4)[:, [0, 2, 3, 4, 5]], normalize_turn_groups(gains, 4)[:, [0, 2, 3, 4, 5]])


@pytest.mark.parametrize("seed", SEEDS)
def test_padding_turns_changes_nothing(seed):
    gains, outcome = tensor(reference.random_gains(seed)), torch.linspace(-1, 1, 12, dtype=torch.float64)
    wide = torch.cat([gains, torch.full((12, 2), NAN, dtype=torch.float64)], dim=1)
    for function in (
        lambda x: normalize_turn_groups(x, 4),
        lambda x: normalize_groups(x, 4),
        lambda x: accumulate(x, 0.9),
        lambda x: adaptive_clip_scale(x, 0.3),
        lambda x: turn_advantages(outcome, x, 0.3),
        lambda x: discounted_outcome(outcome, x, 0.9),
        lambda x: windowed_mean(x, 0.9, 2),
        lambda x: with_outcome(x, outcome, torch.full((12,), 6)),
    ):
        close(function(wide)[:, :-2], function(gains))


@pytest.mark.parametrize("seed", SEEDS[:5])
@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_shift_and_scale_of_the_gains_cancel(seed, normalize):
    gains = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    normalized = normalize(gains, 4, eps=0.0)
    close(normalize(2.5 * gains + 0.7, 4, eps=0.0), normalized)
    close(normalize(-gains, 4, eps=0.0), -normalized)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_nan_stays_where_it_is(normalize):
    gains = tensor(reference.random_gains(3))
    assert torch.equal(normalize(gains, 4).isnan(), gains.isnan())
    assert torch.equal(accumulate(gains).isnan(), gains.isnan())
    assert not turn_advantages(torch.zeros(12, dtype=torch.float64), gains, 0.3).isnan().any()
    assert not adaptive_clip_scale(gains, 0.3).isnan().any()
    assert normalize(torch.full((4, 2), NAN), 4).isnan().all()  # a group without a scored turn


# Types and rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalize", NORMALIZERS)
@pytest.mark.parametrize("members", [1, 3, 7, 16])
@pytest.mark.parametrize("value", [0.1, -3.3, 0.0])
def test_equal_gains_give_exactly_0(dtype, normalize, members, value):
    # In float32 the mean of seven 0.1 is not 0.1, and the difference over ε is not small
    gains = torch.full((members, 1), value, dtype=dtype)
    assert torch.equal(normalize(gains, members), torch.zeros_like(gains))
    with_absent = torch.cat([gains, torch.full((members, 1), NAN, dtype=dtype)])
    assert torch.equal(normalize(with_absent, 2 * members)[:members], torch.zeros_like(gains))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_are_kept(dtype):
    gains = torch.tensor([[1.0, 2.0, NAN], [3.0, NAN, NAN]], dtype=dtype)
    outcome = gains[:, 0]
    for out in (
        information_gain(gains),
        normalize_turn_groups(gains, 2),
        normalize_groups(gains, 2),
        accumulate(gains, 0.9),
        turn_advantages(outcome, gains, 0.3),
        discounted_outcome(outcome, gains, 0.9),
        adaptive_clip_scale(gains, 0.3),
        windowed_mean(gains, 0.9, 2),
        belief_progress(-gains),
        with_outcome(gains, outcome, torch.tensor([3, 1])),
        set_sizes(gains, torch.zeros(2, 3, dtype=torch.long)),
    ):
        assert out.dtype == dtype


@pytest.mark.parametrize("seed", SEEDS[:5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_short_types_stay_near_the_loop(seed, dtype, tolerance):
    gains = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)
    expected = reference.accumulate(reference.normalize_turn_groups(gains.double().tolist(), 4), 0.9)
    actual = accumulate(normalize_turn_groups(gains, 4), 0.9).double()
    assert_close(actual, tensor(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("normalize", NORMALIZERS)
def test_groups_that_are_not_whole_are_refused(normalize):
    with pytest.raises(ValueError, match="num_generations=4"):
        normalize(torch.zeros(6, 2), 4)
