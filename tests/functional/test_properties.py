"""What holds of every pure function, whatever masks, counts and values: hypothesis looks for what breaks it."""

import ast
import math
from pathlib import Path

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import strategies as drawn
from a2tgpo_trl import functional as F

NAN = math.nan


def close(actual, expected):
    if not isinstance(expected, torch.Tensor):
        expected = torch.tensor(expected, dtype=torch.float64)
    assert_close(actual, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def wider(table, columns=2, fill=NAN):
    return torch.nn.functional.pad(table, (0, columns), value=fill)


completions = drawn.completions().map(
    lambda rows_and_width: reference.masks(*rows_and_width[0], width=rows_and_width[1])
)
"""Completion and tool masks."""


def tensors(masks):
    return [torch.tensor(mask) for mask in masks]


# ---- masks and turns


@given(completions)
def test_turns_are_those_of_the_loop(masks):
    both = tensors(masks)
    ids = F.turn_ids(*both)
    assert ids.tolist() == reference.turn_ids(*masks)
    assert F.observation_ends(*both).tolist() == reference.observation_ends(*masks)
    assert F.turn_ends(ids).tolist() == reference.turn_ends(*masks)


@given(completions)
def test_a_turn_lies_between_its_start_and_its_end(masks):
    ids = F.turn_ids(*tensors(masks))
    starts, ends, place = F.turn_starts(ids), F.turn_ends(ids), torch.arange(ids.size(1))
    for k in range(starts.size(1)):
        within = (starts[:, k : k + 1] <= place) & (place < ends[:, k : k + 1])
        assert torch.equal(within, ids == k)


@given(completions, st.integers(1, 3), st.sampled_from([0, 1]))
def test_padding_adds_no_turn(masks, columns, on_padding):
    both = tensors(masks)
    padded = wider(both[0], columns, 0), wider(both[1], columns, on_padding)
    assert torch.equal(F.turn_ids(*padded), wider(F.turn_ids(*both), columns, -1))
    assert torch.equal(F.observation_ends(*padded), F.observation_ends(*both))


@given(completions, st.randoms(use_true_random=False))
def test_rows_have_nothing_to_do_with_each_other(masks, rng):
    both = tensors(masks)
    order = rng.sample(range(len(both[0])), len(both[0]))
    for function in (F.turn_ids, F.observation_ends):
        assert torch.equal(function(*(mask[order] for mask in both)), function(*both)[order])


@given(completions, drawn.eighths)
def test_spreading_their_numbers_gives_the_turns(masks, fill):
    ids = F.turn_ids(*tensors(masks))
    turns = torch.arange(int(ids.max()) + 1 if ids.max() >= 0 else 1).double().expand(len(ids), -1)
    assert torch.equal(F.spread_turns(turns, ids, fill), ids.double().where(ids >= 0, fill))


# ---- gains and what comes of them


@given(drawn.ragged(), drawn.eighths)
def test_gains_telescope_and_do_not_see_a_shift(table, shift):
    beliefs, lengths = table
    gains = F.information_gain(beliefs)
    for row, length, gained in zip(beliefs, lengths, gains, strict=True):
        if length > 0:
            close(gained.nansum(), row[length - 1] - row[0])
    close(F.information_gain(beliefs + shift), gains)
    close(F.information_gain(-beliefs), -gains)
    close(F.information_gain(beliefs, beliefs[:, :-1]), gains)


@given(drawn.groups(), drawn.gammas, st.booleans())
def test_sums_to_come_are_those_of_the_loop(table, gamma, rescale):
    values, _ = table
    sums = F.accumulate(values, gamma, rescale)
    close(sums, reference.accumulate(values.tolist(), gamma, rescale))
    close(F.accumulate(wider(values), gamma, rescale), wider(sums))
    close(F.accumulate(-2 * values, gamma, rescale), -2 * sums)
    close(F.accumulate(values, 0.0, rescale=False), values)


@given(drawn.groups(gaps=False), drawn.gammas)
def test_a_sum_is_a_value_and_the_discounted_sum_after_it(table, gamma):
    values, _ = table
    sums = F.accumulate(values, gamma, rescale=False)
    close(sums, values + gamma * wider(sums, 1, 0.0)[:, 1:])


@given(drawn.groups(), st.sampled_from([0.5, 1.0]), st.integers(1, 6))
def test_a_mean_of_the_next_values_lies_among_them(table, gamma, window):
    values, _ = table
    means = F.windowed_mean(values, gamma, window)
    for k in range(values.size(1)):
        ahead = values[:, k : k + window]
        there = ~values[:, k].isnan()
        assert torch.equal(means[:, k].isnan(), ~there)
        assert (means[there, k] >= ahead[there].nan_to_num(nan=math.inf).amin(1) - 1e-9).all()
        assert (means[there, k] <= ahead[there].nan_to_num(nan=-math.inf).amax(1) + 1e-9).all()
    close(F.windowed_mean(values, gamma, 1), values)
    close(F.windowed_mean(wider(values), gamma, window), wider(means))
    close(F.windowed_mean(3.0 * values + 1.0, gamma, window), 3.0 * means + 1.0)


@given(drawn.ragged())
def test_progress_telescopes_and_has_the_sign_of_the_gain(table):
    beliefs, lengths = table
    beliefs = -beliefs.abs()
    progress = F.belief_progress(beliefs)
    assert torch.equal(progress.sign().nan_to_num(9), F.information_gain(beliefs).sign().nan_to_num(9))
    for row, length, made in zip(beliefs, lengths, progress, strict=True):
        if length > 0:
            close(made.nansum(), ((0.1 - row[0]) / (0.1 - row[length - 1])).log())


@given(drawn.ragged(), st.data())
def test_the_outcome_is_added_once(table, data):
    own, lengths = table
    rewards = data.draw(drawn.tables(len(own), 1)).squeeze(1)
    whole = F.with_outcome(own, rewards, lengths)
    scored = ~rewards.isnan() & (lengths > 0)
    close(whole.nansum(1)[scored], (own.nansum(1) + rewards)[scored])
    assert whole[~scored].isnan().all()
    assert torch.equal((~whole[scored].isnan()).sum(1), lengths[scored])


@given(drawn.groups(), drawn.eighths, st.data())
def test_advantages_are_the_outcome_and_a_multiple_of_the_sum(table, coef, data):
    sums, _ = table
    outcome = data.draw(drawn.tables(len(sums), 1, gaps=False)).squeeze(1)
    close(F.turn_advantages(outcome, sums, coef), reference.turn_advantages(outcome.tolist(), sums.tolist(), coef))
    assert torch.equal(F.turn_advantages(outcome, sums, 0.0), outcome.unsqueeze(1).expand_as(sums))


@given(drawn.ragged(), drawn.gammas, st.data())
def test_the_outcome_is_discounted_by_the_tool_turns_before_it(table, gamma, data):
    values, _ = table
    outcome = data.draw(drawn.tables(len(values), 1, gaps=False)).squeeze(1)
    given_outcome = F.discounted_outcome(outcome, values, gamma)
    close(given_outcome, reference.discounted_outcome(outcome.tolist(), values.tolist(), gamma))
    assert torch.equal(F.discounted_outcome(outcome, values, 1.0), outcome.unsqueeze(1).expand_as(values))


@given(drawn.groups(), st.sampled_from([0.0, 0.3, 0.9]))
def test_clip_ranges_are_bounded_and_those_of_opposite_gains_add_up_to_2(table, strength):
    gains, _ = table
    scale = F.adaptive_clip_scale(gains, strength)
    assert ((scale >= 1 - strength) & (scale <= 1 + strength)).all()
    close(scale + F.adaptive_clip_scale(-gains, strength), torch.full_like(gains, 2.0))
    assert (scale[gains.isnan()] == 1).all()


# ---- comparison


@given(drawn.groups(), st.sampled_from(F.COMPARISONS), st.data())
def test_turns_are_in_one_set_where_the_definition_says_so(table, within, data):
    values, size = table
    states = data.draw(drawn.tables(*values.shape, values=st.sampled_from([-3.0, 5.0, 2.0**40]), gaps=False)).long()
    ids = F.comparison_sets(within, size, values, states).tolist()
    cells = [(i, k) for i in range(values.size(0)) for k in range(values.size(1))]
    named = {
        "prompt": lambda i, k: i // size,
        "turn": lambda i, k: (i // size, k),
        "state": lambda i, k: (i // size, states[i, k].item()),
        "origin": lambda i, k: (i // size, k, states[i, k].item()),
        "batch": lambda i, k: 0,
    }[within]
    pairs = {(ids[i][k], named(i, k)) for i, k in cells}
    assert len(pairs) == len({number for number, _ in pairs}) == len({name for _, name in pairs})


SWITCHES = [
    {},
    dict(scale=False),
    dict(center=False),
    dict(leave_one_out=True),
    dict(scale=False, leave_one_out=True),
    dict(floor=0.5),
]


@given(drawn.groups(), st.sampled_from(SWITCHES), st.data())
def test_standard_scores_are_those_of_the_loop_whatever_sets_are_called(table, switches, data):
    values, _ = table
    sets = data.draw(drawn.tables(*values.shape, values=st.integers(0, 3), gaps=False)).long()
    scores = F.standardize(values, sets, **switches)
    close(scores, reference.standardize(values.tolist(), sets.tolist(), **switches))
    close(F.standardize(values, -7 * sets + 2**40, **switches), scores)
    present = ~values.isnan()
    sizes = F.set_sizes(values, sets)
    counted = [[int(((sets == s) & present).sum()) for s in row] for row in sets]
    assert torch.equal(sizes.nan_to_num(-1), torch.tensor(counted).double().where(present, -1))
    if switches.get("center", True):  # scores of a set add up to 0
        for number in sets.unique():
            close(scores[(sets == number) & present].sum(), 0.0)


@pytest.mark.parametrize("normalize", [F.normalize_turn_groups, F.normalize_groups])
@given(table=drawn.groups(), shift=drawn.eighths, factor=st.sampled_from([0.25, 2.0, 64.0]))
def test_scores_see_neither_a_shift_nor_a_factor(normalize, table, shift, factor):
    gains, size = table
    scores = normalize(gains, size)
    close(normalize(gains + shift, size), scores)
    close(normalize(factor * gains, size, eps=factor * 1e-6), scores)
    close(normalize(wider(gains), size), wider(scores))
    sets = F.comparison_sets("turn" if normalize is F.normalize_turn_groups else "prompt", size, gains)
    close(F.standardize(gains, sets), scores)


@pytest.mark.parametrize("normalize", [F.normalize_turn_groups, F.normalize_groups])
@given(table=drawn.groups(), rng=st.randoms(use_true_random=False))
def test_scores_follow_their_rows(normalize, table, rng):
    gains, size = table
    starts = range(0, len(gains), size)
    order = [start + i for start in rng.sample(starts, len(starts)) for i in rng.sample(range(size), size)]
    close(normalize(gains[order], size), normalize(gains, size)[order])


# ---- critic


@given(drawn.ragged(), st.data(), drawn.gammas, st.sampled_from([0.0, 0.5, 1.0]))
def test_generalised_advantages_are_those_of_the_recursion(table, data, gamma, lam):
    rewards, lengths = table
    values = data.draw(drawn.tables(len(rewards), rewards.size(1) + 1, gaps=False))
    values = values.where(torch.arange(values.size(1)) <= lengths.unsqueeze(1), NAN)
    expected = torch.full_like(rewards, NAN)
    for i, length in enumerate(lengths.tolist()):
        ahead = 0.0
        for k in reversed(range(length)):
            ahead = rewards[i, k] + gamma * values[i, k + 1] - values[i, k] + gamma * lam * ahead
            expected[i, k] = ahead
    close(F.generalized_advantages(rewards, values, gamma, lam), expected)
    # λ = γ = 1: what is to come, the last value included, beyond what was expected
    last = values.gather(1, lengths.unsqueeze(1))
    to_come = F.accumulate(rewards, rescale=False) + last - values[:, :-1]
    close(F.generalized_advantages(rewards, values, 1.0, 1.0), to_come.where(~rewards.isnan(), NAN))


@given(drawn.groups(), drawn.eighths)
def test_whitened_values_have_mean_0_and_deviation_1(table, shift):
    values, _ = table
    white = F.whiten(values)
    there = white[~white.isnan()]
    if there.numel():
        close(there.mean(), 0.0)
        deviation = there.square().mean().sqrt()
        assert deviation == 0 or abs(deviation - 1) < 1e-4
    close(F.whiten(values + shift), white)
    close(F.whiten(wider(values)), wider(white))


@given(st.data(), st.integers(1, 6), st.sampled_from([0.25, 2.0, None]))
def test_the_error_of_a_critic_is_never_below_the_plain_one(data, number, clip):
    values, old, targets = (data.draw(drawn.tables(1, number, gaps=False)) for _ in range(3))
    plain, error = (values - targets) ** 2, F.value_loss(values, old, targets, clip)
    assert (error >= plain).all()
    if clip is not None:
        assert torch.equal(error[(values - old).abs() <= clip], plain[(values - old).abs() <= clip])
    close(F.value_loss(-values, -old, -targets, clip), error)


@given(drawn.groups(), drawn.eighths, st.data())
def test_explained_variance_is_1_for_the_targets_and_0_for_constants(table, constant, data):
    targets, _ = table
    values = data.draw(drawn.tables(*targets.shape, gaps=False))
    there = targets[~targets.isnan()]
    if there.numel() < 2 or there.min() == there.max():
        return
    close(F.explained_variance(targets + constant, targets), 1.0)
    close(F.explained_variance(torch.full_like(targets, constant), targets), 0.0)
    share = F.explained_variance(values, targets)
    assert share <= 1
    close(F.explained_variance(2 * values + constant, 2 * targets), share)


# ---- ratio


@given(completions, st.data())
def test_the_ratio_of_a_turn(masks, data):
    ids = F.turn_ids(*tensors(masks))
    new, old = (data.draw(drawn.tables(*ids.shape, gaps=False)) for _ in range(2))
    ratio = new - old
    mean, total = (F.turn_log_ratio(ratio, ids, reduction) for reduction in ("mean", "sum"))
    close(mean, reference.turn_log_ratio(ratio.tolist(), ids.tolist()))
    close(mean.sum(1), ratio.where(ids >= 0, 0.0).sum(1))  # over each turn, and so over all of them
    close(total, mean * F.turn_log_ratio(torch.ones_like(ratio), ids, "sum"))
    off_turn = ratio.where(ids >= 0, 1e9)  # what stands elsewhere does not matter
    close(F.turn_log_ratio(off_turn, ids), mean)
    close(new - F.turn_level_old_logps(new, old, ids), mean)
    close(new - F.turn_level_old_logps(new, old, ids, "sum"), total.clamp(-20, 20))
    close(F.turn_log_ratio(wider(ratio, fill=1.0), wider(ids, fill=-1)), wider(mean, fill=0.0))


# ---- trees


@st.composite
def trees(draw):
    """Nodes and surprisals of leaves that begin as earlier ones did, their outcomes, and how many a prompt has."""
    size, leaves = draw(st.integers(1, 4)), []
    fresh = iter(range(1000))
    for _ in range(size):
        source = draw(st.sampled_from(leaves)) if leaves else []
        kept = source[: draw(st.integers(0, max(len(source) - 1, 0)))]
        leaves.append(kept + [next(fresh) for _ in range(draw(st.integers(1, 4 - len(kept))))])
    width = max(map(len, leaves)) + draw(st.integers(0, 1))
    nodes = torch.tensor([leaf + [-1] * (width - len(leaf)) for leaf in leaves])
    of_node = draw(st.lists(st.integers(0, 16), min_size=40, max_size=40))
    surprisals = torch.tensor(of_node).double()[nodes.clamp(min=0)] / 8
    outcomes = draw(drawn.tables(size, 1)).squeeze(1)
    return nodes, surprisals.where(nodes >= 0, NAN), outcomes, size


@given(trees(), st.randoms(use_true_random=False))
def test_values_of_a_tree(tree, rng):
    nodes, surprisals, outcomes, size = tree
    values = F.tree_values(nodes, surprisals, outcomes, size)
    leaves = F.leaves_below(nodes, size)
    for i in range(size):
        for k in range(nodes.size(1)):
            below = [j for j in range(size) if nodes[i, k] >= 0 and nodes[j, k] == nodes[i, k]]
            assert leaves[i, k] == len(below)
            scored = outcomes[below][~outcomes[below].isnan()]
            assert values[i, k + 1].isnan() == (scored.numel() == 0)
            if scored.numel():  # a mean of the leaves below
                assert scored.min() - 1e-9 <= values[i, k + 1] <= scored.max() + 1e-9
    order = rng.sample(range(size), size)
    swapped = F.tree_values(nodes[order], surprisals[order], outcomes[order], size)
    close(swapped, values[order])
    renamed = torch.where(nodes >= 0, 3 * nodes + 11, nodes)
    close(F.tree_values(renamed, surprisals, outcomes, size), values)
    close(F.tree_values(nodes, surprisals, 2 * outcomes + 1, size), 2 * values + 1)
    twice = [torch.cat([tensor, tensor]) for tensor in (nodes, surprisals, outcomes)]
    close(F.tree_values(*twice, size), torch.cat([values, values]))  # prompts do not meet


@given(trees())
def test_without_shared_turns_a_value_is_the_outcome(tree):
    nodes, surprisals, outcomes, size = tree
    alone = torch.arange(nodes.numel()).view_as(nodes).where(nodes >= 0, -1)
    expected = outcomes.unsqueeze(1).expand(nodes.shape).where(nodes >= 0, NAN)
    values = F.tree_values(alone, surprisals, outcomes, size)[:, 1:]
    assert torch.equal(values.nan_to_num(99), expected.nan_to_num(99))


def test_all_functions_are_tried():
    attributes = [word for word in ast.walk(ast.parse(Path(__file__).read_text())) if isinstance(word, ast.Attribute)]
    tried = {word.attr for word in attributes if isinstance(word.value, ast.Name) and word.value.id == "F"}
    assert {name for name in F.__all__ if callable(getattr(F, name))} <= tried
