"""Turn ids, observation ends and values spread over tokens."""

import random

import pytest
import reference
import torch

from a2tgpo_trl.functional import observation_ends, spread_turns, turn_ends, turn_ids

SEEDS = range(20)


def masks(*rows, width=None):
    completion_mask, tool_mask = reference.masks(*rows, width=width)
    return torch.tensor(completion_mask), torch.tensor(tool_mask)


@pytest.mark.parametrize(
    ("completion", "ids", "ends"),
    [
        # A tool turn of 2 tokens, its observation, an answer turn
        ("mmttm", [0, 0, -1, -1, 1], [4, -1]),
        # Cut inside the second observation, or the third turn got no token: both turns are tool turns
        ("mtmmt", [0, -1, 1, 1, -1], [2, 5]),
        # An observation before the first turn belongs to no turn
        ("tmtm", [-1, 0, -1, 1], [3, -1]),
        ("mmm", [0, 0, 0], [-1]),
        ("ttt", [-1, -1, -1], [-1]),
        ("mtmtmtmtmtmtm", [0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1, 6], [2, 4, 6, 8, 10, 12, -1]),
    ],
)
def test_drawn_completions(completion, ids, ends):
    assert turn_ids(*masks(completion)).tolist() == [ids]
    assert observation_ends(*masks(completion)).tolist() == [ends]


def test_rows_of_a_batch_are_padded_to_the_most_turns():
    #         m  m  t  m  .  .      tool_mask is 1 on the padding, completion_mask is 0
    #         m  t  m  t  m  t
    #         .  .  .  .  .  .
    batch = masks("mmtm", "mtmtmt", "")
    assert turn_ids(*batch).tolist() == [[0, 0, -1, 1, -1, -1], [0, -1, 1, -1, 2, -1], [-1] * 6]
    assert observation_ends(*batch).tolist() == [[3, -1, -1], [2, 4, 6], [-1, -1, -1]]
    assert turn_ends(turn_ids(*batch)).tolist() == [[2, 4, -1], [1, 3, 5], [-1, -1, -1]]


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_match_the_loop(seed):
    rows = reference.random_completions(seed, rows=12)
    expected = reference.masks(*rows)
    ids, ends = turn_ids(*masks(*rows)), observation_ends(*masks(*rows))
    assert ids.dtype == ends.dtype == turn_ends(ids).dtype == torch.long
    assert turn_ends(ids).tolist() == reference.turn_ends(*expected)
    assert ids.tolist() == reference.turn_ids(*expected)
    assert ends.tolist() == reference.observation_ends(*expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_spread_matches_the_loop(seed):
    rng = random.Random(seed)
    ids = turn_ids(*masks(*reference.random_completions(seed, rows=8)))
    width = int(ids.max()) + 1 + rng.randint(0, 2)
    values = [[rng.gauss(0, 1) for _ in range(width)] for _ in ids]
    spread = spread_turns(torch.tensor(values, dtype=torch.float64), ids, fill=-7.0)
    assert spread.tolist() == reference.spread_turns(values, ids.tolist(), -7.0)


@pytest.mark.parametrize("seed", SEEDS[:5])
def test_spread_is_linear_in_the_tokens_of_a_turn(seed):
    ids = turn_ids(*masks(*reference.random_completions(seed, rows=8)))
    values = torch.zeros(8, int(ids.max()) + 1, requires_grad=True)
    spread_turns(values, ids, fill=1.0).sum().backward()
    sizes = torch.stack([(ids == k).sum(1) for k in range(values.size(1))], dim=1)
    assert torch.equal(values.grad, sizes.float())  # a turn's gradient gathers its own tokens, and no others


def test_without_a_tool_mask_the_completion_is_one_turn():
    completion_mask, _ = masks("mmm", "m", "")
    assert turn_ids(completion_mask).tolist() == [[0, 0, 0], [0, -1, -1], [-1, -1, -1]]
    assert observation_ends(completion_mask).tolist() == [[-1], [-1], [-1]]


@pytest.mark.parametrize("seed", SEEDS[:5])
@pytest.mark.parametrize("tool_padding", [0, 1])
def test_padding_changes_nothing(seed, tool_padding):
    rows = reference.random_completions(seed, rows=8)
    completion_mask, tool_mask = masks(*rows)
    wide_completion_mask, wide_tool_mask = masks(*rows, width=completion_mask.size(1) + 3)
    wide_tool_mask = wide_tool_mask.where(wide_completion_mask.bool(), tool_padding)
    ids = turn_ids(wide_completion_mask, wide_tool_mask)
    assert torch.equal(ids[:, :-3], turn_ids(completion_mask, tool_mask))
    assert (ids[:, -3:] == -1).all()
    ends = observation_ends(wide_completion_mask, wide_tool_mask)
    assert torch.equal(ends, observation_ends(completion_mask, tool_mask))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_masks_of_any_type(dtype):
    completion_mask, tool_mask = masks("mtmm", "tm")
    typed = completion_mask.to(dtype), tool_mask.to(dtype)
    assert torch.equal(turn_ids(*typed), turn_ids(completion_mask, tool_mask))
    assert torch.equal(observation_ends(*typed), observation_ends(completion_mask, tool_mask))
    assert torch.equal(typed[0], completion_mask.to(dtype))  # not written to


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.long])
def test_spread_keeps_the_type(dtype):
    ids = torch.tensor([[0, -1, 1]])
    assert spread_turns(torch.tensor([[3, 5]], dtype=dtype), ids, fill=0).dtype == dtype


def test_nan_of_an_unscored_turn_reaches_its_tokens_only():
    spread = spread_turns(torch.tensor([[1.0, torch.nan]]), torch.tensor([[0, -1, 1]]), fill=0.0)
    assert spread.isnan().tolist() == [[False, False, True]]


def test_batches_without_tokens():
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert turn_ids(empty, empty).shape == (2, 0)
    assert observation_ends(empty, empty).tolist() == [[-1], [-1]]
    assert spread_turns(torch.zeros(2, 1), empty, fill=0.0).shape == (2, 0)
