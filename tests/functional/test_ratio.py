"""Turn-level importance ratio (equation 7), and the whole way from masks to the loss (equation 8)."""

import math
import random

import pytest
import reference
import torch
from torch.testing import assert_close

from a2tgpo_trl.functional import (
    accumulate,
    adaptive_clip_scale,
    information_gain,
    normalize_turn_groups,
    spread_turns,
    turn_advantages,
    turn_ids,
    turn_level_old_logps,
    turn_log_ratio,
)

NAN = math.nan
SEEDS = range(20)
RECIPE = {"alpha": 0.3, "gamma": 1.0, "beta": 0.3, "eps_low": 3e-3, "eps_high": 4e-3}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected):
    expected = expected if isinstance(expected, torch.Tensor) else tensor(expected)
    assert_close(actual, expected, rtol=1e-10, atol=1e-10, equal_nan=True)


def masks(*rows):
    completion_mask, tool_mask = reference.masks(*rows)
    return torch.tensor(completion_mask), torch.tensor(tool_mask)


def clipped_loss(logps, old_logps, mask, advantages, low, high):
    """Equation 8 as TRL computes it: token-level, from old log-probabilities, for `loss_type="grpo"`."""
    ratio = torch.exp(logps - old_logps)
    loss = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
    return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def loss_and_gradient(batch, alpha, gamma, beta, eps_low, eps_high):
    """Equations 2 to 8 with the package's functions."""
    ids = turn_ids(torch.tensor(batch["completion_mask"]), torch.tensor(batch["tool_mask"]))
    normalized = normalize_turn_groups(information_gain(tensor(batch["beliefs"])), batch["num_generations"])
    advantages = turn_advantages(tensor(batch["outcome"]), accumulate(normalized, gamma), alpha)
    scale = spread_turns(adaptive_clip_scale(normalized, beta), ids, fill=1.0)
    logps = tensor(batch["logps"]).requires_grad_()
    loss = clipped_loss(
        logps,
        turn_level_old_logps(logps, tensor(batch["old_logps"]), ids),
        (ids >= 0).double(),
        spread_turns(advantages, ids, fill=0.0),
        1 - scale * eps_low,
        1 + scale * eps_high,
    )
    loss.backward()
    return loss.detach(), logps.grad


# The ratio


@pytest.mark.parametrize("seed", SEEDS)
def test_ratio_matches_the_loop(seed):
    batch = reference.random_batch(seed)
    ids = reference.turn_ids(batch["completion_mask"], batch["tool_mask"])
    logps, old_logps = batch["logps"], batch["old_logps"]
    close(turn_log_ratio(tensor(logps), torch.tensor(ids)), reference.turn_log_ratio(logps, ids))
    old = turn_level_old_logps(tensor(logps), tensor(old_logps), torch.tensor(ids))
    close(old, reference.turn_level_old_logps(logps, old_logps, ids))


def test_ratio_by_hand():
    # m m t m m m: (0.1 + 0.3) / 2 = 0.2 and (0.5 + 0 - 0.2) / 3 = 0.1; the tool token's 9 counts nowhere
    log_ratio, ids = tensor([[0.1, 0.3, 9.0, 0.5, 0.0, -0.2]]), torch.tensor([[0, 0, -1, 1, 1, 1]])
    close(turn_log_ratio(log_ratio, ids), [[0.2, 0.2, 0.0, 0.1, 0.1, 0.1]])
    # log π is -1 throughout: old' = -1 - mean on a turn, and log π itself on the tool token, a ratio of 1
    logps = torch.full_like(log_ratio, -1.0)
    expected = [[-1.2, -1.2, -1.0, -1.1, -1.1, -1.1]]
    close(turn_level_old_logps(logps, logps - log_ratio, ids), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_sum_of_the_log_ratio_over_a_turn_is_unchanged(seed):
    batch = reference.random_batch(seed)
    ids = turn_ids(torch.tensor(batch["completion_mask"]), torch.tensor(batch["tool_mask"]))
    logps, old_logps = tensor(batch["logps"]), tensor(batch["old_logps"])
    log_ratio = logps - turn_level_old_logps(logps, old_logps, ids)
    for k in range(int(ids.max()) + 1):
        close((log_ratio * (ids == k)).sum(1), ((logps - old_logps) * (ids == k)).sum(1))


def test_turns_of_one_token_are_the_token_level():
    ids = turn_ids(*masks("mtmtm"))
    logps, old_logps = tensor([[-1.0, -2.0, -0.5, -3.0, -0.1]]), tensor([[-1.1, -2.2, -0.4, -1.0, -0.3]])
    close(turn_level_old_logps(logps, old_logps, ids)[ids >= 0], old_logps[ids >= 0])


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_on_policy_the_ratio_is_exactly_1(seed):
    batch = reference.random_batch(seed)
    ids = turn_ids(torch.tensor(batch["completion_mask"]), torch.tensor(batch["tool_mask"]))
    logps = torch.tensor(batch["logps"])
    assert torch.equal(turn_level_old_logps(logps, logps, ids), logps)


def test_what_off_turn_tokens_hold_does_not_matter():
    ids = torch.tensor([[0, -1, 1, -1]])
    junk = torch.tensor([[1.0, NAN, 2.0, -math.inf]])
    assert turn_log_ratio(junk, ids).tolist() == [[1.0, 0.0, 2.0, 0.0]]
    log_ratio = junk.clone().requires_grad_()
    turn_log_ratio(log_ratio, ids).sum().backward()
    assert log_ratio.grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_padding_tokens_changes_nothing():
    ids = torch.tensor([[0, 0, -1, 1, 1, 1]])
    log_ratio = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide_ids, wide = (
        torch.cat([ids, torch.full((1, 3), -1)], dim=1),
        torch.cat([log_ratio, tensor([[5.0] * 3])], dim=1),
    )
    close(turn_log_ratio(wide, wide_ids)[:, :6], turn_log_ratio(log_ratio, ids))
    assert turn_log_ratio(wide, wide_ids)[:, 6:].eq(0).all()


def test_the_ratio_of_a_long_turn_does_not_overflow():
    ids, logps = torch.zeros(1, 50, dtype=torch.long), torch.zeros(1, 50)
    old = turn_level_old_logps(logps, logps - 2.0, ids, reduction="sum")  # a log ratio of 100
    assert (logps - old).exp().isfinite().all() and ((logps - old) == 20).all()
    old = turn_level_old_logps(logps, logps - 0.1, ids, reduction="sum")
    torch.testing.assert_close(logps - old, torch.full((1, 50), 5.0))


def test_old_logps_carry_no_gradient():
    logps = torch.zeros(1, 3, requires_grad=True)
    assert not turn_level_old_logps(logps, torch.ones(1, 3), torch.tensor([[0, 0, 1]])).requires_grad


def test_old_logps_carry_no_gradient_of_what_the_caller_did_not_detach():
    logps = torch.zeros(1, 3, requires_grad=True)
    assert not turn_level_old_logps(logps, logps, torch.tensor([[0, 0, 1]])).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_are_kept(dtype):
    logps, ids = torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=torch.long)
    assert turn_log_ratio(logps, ids).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_old_logps_keep_the_type(dtype):
    logps = torch.zeros(1, 3, dtype=dtype)
    assert turn_level_old_logps(logps, logps, torch.tensor([[0, 0, 1]])).dtype == dtype


def test_ratio_of_bfloat16_logps_keeps_the_mean():
    # One token of four moved by 2⁻⁷: a mean of 2⁻⁹. Steps of bfloat16 are 2⁻⁷ beyond -1 and 2⁻⁸ inside
    old_logps = torch.full((1, 4), -1.0, dtype=torch.bfloat16)
    logps = old_logps.clone()
    logps[0, 0] += 2**-7
    ids = torch.zeros(1, 4, dtype=torch.long)
    ratio = torch.exp(logps - turn_level_old_logps(logps, old_logps, ids)).double()
    assert_close(ratio, torch.full((1, 4), math.exp(2**-9), dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-5), (torch.bfloat16, 1e-4)],
)
def test_mean_of_a_long_turn(dtype, tolerance):
    # 4096 tokens, the second half at 2⁻⁷: the mean is 2⁻⁸. A count kept in bfloat16 stops at 256
    log_ratio = torch.zeros(1, 4096, dtype=dtype)
    log_ratio[:, 2048:] = 2**-7
    mean = turn_log_ratio(log_ratio, torch.zeros(1, 4096, dtype=torch.long))
    assert_close(mean.double(), torch.full((1, 4096), 2**-8, dtype=torch.float64), rtol=0, atol=tolerance)


# The loss


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options", [RECIPE, RECIPE | {"gamma": 0.7, "alpha": 1.0, "beta": 0.9}], ids=["recipe", "far"]
)
def test_loss_and_gradient_match_the_loop(seed, options):
    batch = reference.random_batch(seed)
    loss, gradient = loss_and_gradient(batch, **options)
    expected_loss, expected_gradient, _ = reference.loss(batch, batch["logps"], **options)
    close(loss, expected_loss)
    close(gradient, expected_gradient)


def test_the_clip_binds_on_some_of_the_random_turns():
    batches = [reference.random_batch(seed) for seed in SEEDS]
    turns = sum(max(row) + 1 for b in batches for row in reference.turn_ids(b["completion_mask"], b["tool_mask"]))
    clipped = sum(reference.loss(batch, batch["logps"], **RECIPE)[2] for batch in batches)
    assert 0.1 < clipped / turns < 0.9


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_gradient_is_the_slope_of_the_loops_loss(seed):
    # The gradient per token of the stop-gradient form is the derivative of the loss of equation 8 itself
    batch = reference.random_batch(seed)
    _, gradient = loss_and_gradient(batch, **RECIPE)
    rng, step = random.Random(seed), 1e-6
    for _ in range(20):
        i = rng.randrange(len(batch["logps"]))
        t = rng.randrange(len(batch["logps"][i]))
        sides = []
        for sign in (1, -1):
            moved = [list(row) for row in batch["logps"]]
            moved[i][t] += sign * step
            sides.append(reference.loss(batch, moved, **RECIPE)[0])
        assert gradient[i, t].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-8)


def test_loss_by_hand():
    # Two completions of one prompt, m m t m and m t m. Gains 3 and 1 -> μ = 2, σ = 1 -> ĝ = ±1 (less ε, 1e-6).
    batch = {"num_generations": 2, "beliefs": [[-4.0, -1.0, NAN], [-4.0, -3.0, NAN]], "outcome": [1.0, -1.0]}
    batch["completion_mask"], batch["tool_mask"] = reference.masks("mmtm", "mtm")
    # Log ratios of the tool turns: (0.006 + 0.002) / 2 = 0.004 and -0.0028. The answer turns have not moved.
    batch["old_logps"] = [[-1.0] * 4, [-1.0] * 4]
    batch["logps"] = [[-0.994, -0.998, -1.0, -1.0], [-1.0028, -1.0, -1.0, -1.0]]
    loss, gradient = loss_and_gradient(batch, **RECIPE)
    # A = 1 + 0.3·1 = 1.3 and -1 + 0.3·(-1) = -1.3 on the tool turns, 1 and -1 on the answer turns.
    # 2σ(1) - 1 = 0.46212 -> c = 1 ± 0.3·0.46212 = 1.13864 and 0.86136.
    # First:  ρ = e^0.004 = 1.004008, inside 1 + 1.13864·0.004 = 1.004555 (outside the unscaled 1.004): not clipped.
    # Second: ρ = e^-0.0028 = 0.997204, outside 1 - 0.86136·0.003 = 0.997416 (inside the unscaled 0.997): clipped.
    ratio, bound = math.exp(0.004), 1 - 0.8613648 * 0.003
    first = (-1.3 * ratio - 1.3 * ratio - 1.0) / 3
    second = (1.3 * bound + 1.0) / 2
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)
    # Per token -ρ A / tokens / completions, 0 on the tool token and where the clip binds
    by_token = [[-1.3 * ratio / 6, -1.3 * ratio / 6, 0.0, -1 / 6], [0.0, 0.0, 1 / 4, 0.0]]
    assert_close(gradient, tensor(by_token), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_one_turn_is_the_sequence_level(seed):
    generator = torch.Generator().manual_seed(seed)
    mask = masks("mmmmmm", "mm", "mmmm", "m")[0].double()
    logps = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    old_logps = logps.detach() + 0.005 * torch.randn(4, 6, dtype=torch.float64, generator=generator)
    advantages = torch.randn(4, 1, dtype=torch.float64, generator=generator)
    # TRL's importance_sampling_level="sequence": one ratio per completion, gradient through its mean
    sequence = (((logps - old_logps) * mask).sum(-1) / mask.sum(-1)).unsqueeze(-1)
    expected = clipped_loss(sequence.expand(-1, 6), torch.zeros(4, 6), mask, advantages, 0.997, 1.004)
    turn_old_logps = turn_level_old_logps(logps, old_logps, turn_ids(mask))
    actual = clipped_loss(logps, turn_old_logps, mask, advantages, 0.997, 1.004)
    close(actual, expected)
    close(*(torch.autograd.grad(loss, logps)[0] for loss in (actual, expected)))


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_tool_tokens_and_padding_have_no_gradient_and_no_effect(seed):
    batch = reference.random_batch(seed)
    off_turn = torch.tensor(reference.turn_ids(batch["completion_mask"], batch["tool_mask"])) < 0
    loss, gradient = loss_and_gradient(batch, **RECIPE)
    assert off_turn.any()
    assert gradient[off_turn].eq(0).all()
    batch["logps"] = tensor(batch["logps"]).masked_fill(off_turn, -9.0).tolist()
    moved_loss, moved_gradient = loss_and_gradient(batch, **RECIPE)
    assert torch.equal(moved_loss, loss)
    assert torch.equal(moved_gradient, gradient)


def test_each_turn_is_clipped_as_a_whole():
    batch = reference.random_batch(0)
    ids = torch.tensor(reference.turn_ids(batch["completion_mask"], batch["tool_mask"]))
    _, gradient = loss_and_gradient(batch, **RECIPE)
    for k in range(int(ids.max()) + 1):
        for row, in_turn in zip(gradient, ids == k, strict=True):
            close(row[in_turn], row[in_turn].mean().expand(int(in_turn.sum())))
