"""Generalised advantages over turns, whitening, and the loss of a critic."""

import math
import random
import statistics

import pytest
import torch
from torch.testing import assert_close

from a2tgpo_trl.functional import (
    explained_variance,
    generalized_advantages,
    turn_level_old_logps,
    turn_log_ratio,
    turn_starts,
    value_loss,
    whiten,
)

NAN = math.nan
SEEDS = range(10)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected):
    assert_close(actual, tensor(expected), rtol=1e-10, atol=1e-10, equal_nan=True)


def random_rows(seed):
    """Rewards, values and lengths of ragged rows, padded with NaN; some end with a bootstrapped value."""
    rng = random.Random(seed)
    lengths = [rng.randint(0, 5) for _ in range(8)] + [5]
    rewards = [[rng.gauss(0, 1) if k < n else NAN for k in range(5)] for n in lengths]
    values = [[rng.gauss(0, 1) if k < n else NAN for k in range(6)] for n in lengths]
    for row, n in zip(values, lengths, strict=True):
        row[n] = rng.choice([0.0, rng.gauss(0, 1)])
    return rewards, values, lengths


@pytest.mark.parametrize("seed", SEEDS)
def test_it_matches_the_recursion(seed):
    rewards, values, lengths = random_rows(seed)
    gamma, lam = random.Random(seed).choice([(0.99, 0.9), (1.0, 1.0), (0.5, 0.0), (0.0, 0.7)])
    expected = [[NAN] * 5 for _ in lengths]
    for i, n in enumerate(lengths):
        later = 0.0
        for k in reversed(range(n)):
            later = rewards[i][k] + gamma * values[i][k + 1] - values[i][k] + gamma * lam * later
            expected[i][k] = later
    close(generalized_advantages(tensor(rewards), tensor(values), gamma, lam), expected)


def test_by_hand():
    rewards, values = tensor([[0.0, 2.0]]), tensor([[1.0, 3.0, 4.0]])  # cut off before a state of value 4
    # δ = 0 + ½·3 - 1 = ½ and 2 + ½·4 - 3 = 1
    close(generalized_advantages(rewards, values, 0.5, 0.0), [[0.5, 1.0]])
    close(generalized_advantages(rewards, values, 0.5, 1.0), [[1.0, 1.0]])
    close(generalized_advantages(rewards, values, 0.5, 0.5), [[0.75, 1.0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_padding_and_order_change_nothing(seed):
    rewards, values, _ = (tensor(part) for part in random_rows(seed))
    alone = generalized_advantages(rewards, values, 0.9, 0.8)
    wide = [torch.nn.functional.pad(part, (0, 2), value=NAN) for part in (rewards, values)]
    assert_close(generalized_advantages(*wide, 0.9, 0.8)[:, :-2], alone, equal_nan=True)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    assert_close(generalized_advantages(rewards[order], values[order], 0.9, 0.8), alone[order], equal_nan=True)


def test_whitening_counts_each_turn_once():
    values = [[1.0, NAN, NAN], [2.0, 4.0, 9.0]]
    present = [1.0, 2.0, 4.0, 9.0]
    mean, deviation = statistics.mean(present), statistics.pstdev(present) + 1e-6
    close(whiten(tensor(values)), [[(x - mean) / deviation for x in row] for row in values])
    close(whiten(tensor([[0.1, 0.1], [0.1, NAN]])), [[0.0, 0.0], [0.0, NAN]])
    close(whiten(tensor([[3.0]])), [[0.0]])
    close(whiten(tensor([[NAN]])), [[NAN]])


def test_loss_of_a_critic_by_hand():
    old, new, targets = tensor([0.0] * 5), tensor([0.1, 0.5, -0.5, 0.5, 0.5]), tensor([1.0, 1.0, 1.0, 0.0, 0.2])
    # Within the range; beyond it towards the target: as if at 0.2; away from it: the whole error
    close(value_loss(new, old, targets, 0.2), [0.81, 0.64, 2.25, 0.25, 0.09])
    close(value_loss(new, old, targets, None), [0.81, 0.25, 2.25, 0.25, 0.09])


def test_beyond_its_range_a_value_has_no_gradient():
    new = tensor([0.1, 0.5, -0.5]).requires_grad_()
    value_loss(new, tensor([0.0] * 3), tensor([1.0] * 3), 0.2).sum().backward()
    close(new.grad, [-1.8, 0.0, -3.0])


def test_explained_variance():
    targets = tensor([[1.0, NAN], [3.0, 5.0]])
    close(explained_variance(targets, targets), 1.0)
    close(explained_variance(targets + 2.0, targets), 1.0)  # the mean is none of its business
    close(explained_variance(tensor([[7.0, 8.0], [7.0, 7.0]]), targets), 0.0)
    close(explained_variance(-targets, targets), -3.0)
    assert explained_variance(targets, tensor([[2.0, NAN], [2.0, 2.0]])).isnan()
    assert explained_variance(targets, torch.full((2, 2), NAN)).isnan()


def test_where_turns_start():
    ids = torch.tensor([[0, 0, -1, 1, -1, 2], [-1, 0, 0, -1, -1, -1], [-1] * 6])
    assert turn_starts(ids).tolist() == [[0, 3, 5], [1, -1, -1], [-1, -1, -1]]


# The ratio of a whole turn


def random_turns(seed, length=9):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[0, 0, 0, -1, 1, -1, 2, 2, -1], [0, -1, -1, 1, 1, 1, 1, 1, 1]])
    old, new = (torch.randn(2, length, generator=generator, dtype=torch.float64) for _ in range(2))
    return ids, old, new


@pytest.mark.parametrize("seed", SEEDS)
def test_the_product_over_a_turn_and_its_gradient(seed):
    ids, old, new = random_turns(seed)
    new.requires_grad_()
    ratio = torch.exp(new - turn_level_old_logps(new, old, ids, "sum"))
    products = {}
    for row in range(2):
        for turn in range(3):
            of_turn = ids[row] == turn
            if of_turn.any():
                products[row, turn] = (new[row] - old[row])[of_turn].sum().exp()
                assert_close(ratio[row][of_turn], products[row, turn].expand(int(of_turn.sum())))
    assert (ratio[ids < 0] == 1).all()
    ours, theirs = (torch.autograd.grad(loss, new)[0] for loss in (ratio[ids >= 0].sum(), sum(products.values())))
    assert_close(ours.where(ids >= 0, 0.0), theirs)


def test_the_ratio_of_one_token_is_its_own():
    ids, old, new = random_turns(0)
    whole, mean = (turn_log_ratio(new - old, ids, reduction) for reduction in ("sum", "mean"))
    alone = (ids == 1) & (torch.arange(2).unsqueeze(1) == 0)
    assert_close(whole[alone], (new - old)[alone])
    assert_close(mean[alone], (new - old)[alone])


def test_a_clip_of_the_product_is_one_of_the_mean_that_is_narrower_by_the_length():
    """On logs exactly: the same turns leave (1 - ε, 1 + ε) and its L-th root."""
    ids, old, new = random_turns(3)
    new = old + 0.05 * (new - old)
    whole, mean = (turn_log_ratio(new - old, ids, reduction) for reduction in ("sum", "mean"))
    lengths = turn_log_ratio(torch.ones_like(old), ids, "sum").clamp(min=1)
    for log_bound in (math.log(1.2), math.log(1.1), math.log(1.02)):
        assert torch.equal(whole > log_bound, mean > log_bound / lengths)
        assert (whole > log_bound).any() or log_bound > 0.15
    assert_close(torch.tensor(1.2 ** (1 / 50) - 1), torch.tensor(0.2 / 50), rtol=0.1, atol=0)  # to first order
