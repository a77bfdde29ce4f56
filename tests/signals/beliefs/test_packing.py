"""Token trees: every distinct beginning once, and each token under exactly those it follows."""

import random

import pytest

from a2tgpo_trl.signals.beliefs.packing import TokenTree, batches_by_length, blocks, common_prefix, pack


def family(seed: int) -> list[list[int]]:
    """Sequences over three tokens, many of which begin alike, some of which are the beginning of another or the same."""
    rng = random.Random(seed)
    sequences = [[rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in range(12)]
    return [*sequences, sequences[0][: len(sequences[0]) // 2 + 1], sequences[1], [*sequences[2], 1, 2]]


def whole_tree(sequences, context_lengths=None):
    (tree,) = pack(sequences, context_lengths or list(map(len, sequences)), [0] * len(sequences), 10_000)
    return tree


def tokens_of(tree, key):
    return [token for start, stop in tree.branches[key].spans for token in tree.ids[start:stop]]


def places_of(tree, key):
    return [place for start, stop in tree.branches[key].spans for place in range(start, stop)]


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_holds_each_beginning_once(seed):
    sequences = family(seed)
    tree = whole_tree(sequences)
    assert len(tree.ids) == len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
    for key, sequence in enumerate(sequences):
        assert tokens_of(tree, key) == sequence
        places = places_of(tree, key)
        assert [tree.positions[place] for place in places] == list(range(len(sequence)))
        branch = tree.branches[key]
        assert [branch.place(depth) for depth in range(len(sequence))] == places
        assert branch.length == len(sequence)


@pytest.mark.parametrize("seed", range(20))
def test_a_token_sees_what_it_follows(seed):
    """Judge: the beginning that each token stands for, built from the sequences."""
    sequences = family(seed)
    tree = whole_tree(sequences)
    beginning = {}
    for key, sequence in enumerate(sequences):
        for depth, place in enumerate(places_of(tree, key)):
            beginning[place] = sequence[: depth + 1]
    for i in range(len(tree.ids)):
        for j in range(len(tree.ids)):
            follows = beginning[i][: len(beginning[j])] == beginning[j]
            assert (j <= i < tree.ends[j]) == follows


@pytest.mark.parametrize("seed", range(5))
def test_own_tokens_lie_together_in_the_order_of_the_branches(seed):
    sequences = family(seed)
    tree = whole_tree(sequences)
    own = [place for key, branch in tree.branches.items() for place in places_of(tree, key)[branch.shared :]]
    assert own == list(range(len(tree.ids)))


@pytest.mark.parametrize("num_owners", [1, 4, 15])
@pytest.mark.parametrize("budget", [1, 12, 25, 10_000])
def test_trees_keep_to_the_budget_and_owners_together_whatever_the_order(budget, num_owners):
    sequences = family(3)
    owners = [i % num_owners for i in range(len(sequences))]
    trees = pack(sequences, list(map(len, sequences)), owners, budget)
    homes = [{owners[key] for key in tree.branches} for tree in trees]
    assert sorted(owner for home in homes for owner in home) == list(range(num_owners))
    assert all(len(tree.ids) <= budget or len(home) == 1 for tree, home in zip(trees, homes, strict=True))
    assert sorted(key for tree in trees for key in tree.branches) == list(range(len(sequences)))
    order = list(range(len(sequences)))
    random.Random(0).shuffle(order)
    shuffled = [sequences[i] for i in order]
    again = pack(shuffled, list(map(len, shuffled)), [owners[i] for i in order], budget)
    assert [tree.ids for tree in again] == [tree.ids for tree in trees]


@pytest.mark.parametrize("picture", [0, 2**93])
def test_a_completion_lies_together_and_its_probes_after_it(picture):
    """Whatever the token ids, marked with a picture or not: here a probe would come before one turn and after the other."""
    context, probe = [5, 5, picture + 9, 9, 1, 1], [3, 4]
    sequences = [context[:2] + probe, context[:4] + probe, context + probe]
    tree = whole_tree(sequences, [2, 4, 6])
    assert tree.ids == [*context, *probe, *probe, *probe]
    assert tree.positions == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 2, 3]
    assert tree.ends == [12, 12, 10, 10, 8, 8, 8, 8, 10, 10, 12, 12]
    assert list(tree.branches) == [2, 1, 0]


@pytest.mark.parametrize("max_tokens", [1, 4, 9, 10_000])
@pytest.mark.parametrize("seed", range(10))
def test_blocks(seed, max_tokens):
    """All tokens, in order; what the first of a block sees before it is what the others see there at most."""
    tree = whole_tree(family(seed))
    found = blocks(tree, max_tokens)
    assert [place for block in found for place in range(block.start, block.stop)] == list(range(len(tree.ids)))
    assert any(not block.is_chain for block in found) == (max_tokens > 1)

    def seen(i):
        return {j for j in range(i + 1) if i < tree.ends[j]}

    for block in found:
        before = {place for start, stop in block.before for place in range(start, stop)}
        assert before == {j for j in seen(block.start) if j < block.start}
        for i in range(block.start, block.stop):
            own = set(range(block.start, i + 1))
            assert seen(i) <= before | own
            assert not block.is_chain or seen(i) == before | own
        assert block.is_chain or block.stop - block.start <= max_tokens


def test_padding_sees_itself_only():
    tree = TokenTree()
    tree.add(0, [4, 5, 6])
    tree.pad_to_multiple_of(4)
    tree.pad_to_multiple_of(4)
    assert (tree.ids, tree.positions, tree.ends) == ([4, 5, 6, 0], [0, 1, 2, 0], [3, 3, 3, 4])


@pytest.mark.parametrize(
    "left, right, expected", [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 4], [1, 2, 3], 2), ([2], [1], 0)]
)
def test_common_prefix(left, right, expected):
    assert common_prefix(left, right) == common_prefix(right, left) == expected


def test_batches_by_length():
    # 9 | 5 4 | 2 2 1: rows times the longest of them are at most 10; 20 is too long for any company
    assert batches_by_length([2, 5, 9, 1, 20, 4, 2], 10) == [[4], [2], [1, 5], [0, 6, 3]]
    assert batches_by_length([], 10) == []
    assert batches_by_length([2, 5, 2, 5, 2], 10, equal=True) == [[1, 3], [0, 2, 4]]
