"""Sequences laid out so that nothing is computed twice and no padding at all.

Sequences that begin alike form a tree: a [`TokenTree`] holds each distinct beginning once, one branch after the other in
one row,

    prompt | turn, observation | turn, observation | probe 2 | probe 1 | probe 0

and a token sees the tokens on its way from the root. In depth-first order that is one inequality: token `i` sees token `j`
where `j <= i < ends[j]`, with `ends[j]` one past the last token below `j`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

Span = tuple[int, int]
"""First token, and one past the last, in the row of a tree."""


@dataclass(frozen=True)
class Branch:
    """
    One sequence of a tree.

    Attributes:
        spans (`list[Span]`): Where its tokens lie, from the root on.
        shared (`int`): How many of its first tokens belong to an earlier sequence as well; the others are its own and lie
            together.
        length (`int`): How many tokens it has.
    """

    spans: list[Span]
    shared: int
    length: int

    def place(self, depth: int) -> int:
        """Where in the row the token lies that `depth` tokens come before."""
        for start, stop in self.spans:
            if depth < stop - start:
                return start + depth
            depth -= stop - start
        raise IndexError(f"the sequence has {self.length} tokens")


class TokenTree:
    """
    Sequences in one row, each distinct beginning once.

    Attributes:
        ids (`list[int]`, length `N`): Token ids.
        positions (`list[int]`, length `N`): Tokens before each in its sequence.
        ends (`list[int]`, length `N`): One past the last token that sees it.
        branches (`dict[int, Branch]`): Each sequence by its key, in the order of the row.

    Example:
        >>> tree = TokenTree()
        >>> tree.add(0, [5, 6, 7])
        >>> tree.add(1, [5, 6, 8, 9])
        >>> tree.ids, tree.positions, tree.ends
        ([5, 6, 7, 8, 9], [0, 1, 2, 2, 3], [5, 5, 3, 5, 5])
        >>> tree.branches[1]
        Branch(spans=[(0, 2), (3, 5)], shared=2, length=4)
    """

    def __init__(self):
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.ends: list[int] = []
        self.branches: dict[int, Branch] = {}
        self._last: Sequence[int] = ()
        self._path: list[Span] = []

    def add(self, key: int, sequence: Sequence[int]) -> None:
        """Add a sequence, which shares what it has in common with the one before."""
        shared, start = common_prefix(sequence, self._last), len(self.ids)
        self.ids.extend(sequence[shared:])
        self.positions.extend(range(shared, len(sequence)))
        stop = len(self.ids)
        self.ends.extend([stop] * (stop - start))
        self._path, self._last = _beginning(self._path, shared) + [(start, stop)] * (stop > start), sequence
        for first, last in self._path:
            self.ends[first:last] = [stop] * (last - first)
        self.branches[key] = Branch(self._path, shared, len(sequence))

    def pad_to_multiple_of(self, multiple: int) -> None:
        """Lengthen the row by tokens that see themselves only."""
        start = len(self.ids)
        stop = -(-start // multiple) * multiple
        self.ids.extend([0] * (stop - start))
        self.positions.extend([0] * (stop - start))
        self.ends.extend(range(start + 1, stop + 1))


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _beginning(path: list[Span], length: int) -> list[Span]:
    """Where the first tokens of a path lie."""
    spans = []
    for start, stop in path:
        if length > 0:
            spans.append((start, min(start + length, stop)))
        length -= stop - start
    return spans


@dataclass(frozen=True)
class Block:
    """
    Tokens that lie together in the row of a tree, to be attended from at once.

    Whatever one of them sees, the first sees too, or it is one of them.

    Attributes:
        before (`list[Span]`): What the first of them sees before itself.
        start (`int`), stop (`int`): Which tokens they are.
        is_chain (`bool`): Whether each sees all that come before it.
    """

    before: list[Span]
    start: int
    stop: int
    is_chain: bool


def blocks(tree: TokenTree, max_tokens: int = 256) -> list[Block]:
    """Cut the row of a tree into blocks: branches together while they have at most so many tokens, longer ones alone."""
    found = []
    for branch in tree.branches.values():
        own = branch.length - branch.shared
        if own == 0:
            continue
        start, stop = branch.spans[-1]
        if found and stop - found[-1].start <= max_tokens:
            found[-1] = replace(found[-1], stop=stop, is_chain=False)
        else:
            found.append(Block(branch.spans[:-1], start, stop, is_chain=True))
    return found


def pack(
    sequences: Sequence[list[int]], context_lengths: Sequence[int], owners: Sequence[int], max_tokens: int
) -> list[TokenTree]:
    """
    Trees of at most so many tokens.

    Args:
        sequences (`Sequence[list[int]]`): Token ids. Their order makes no difference.
        context_lengths (`Sequence[int]`): How many tokens of each come before its probe. Probes come after all else that
            follows their context, so that a completion lies together and short branches do.
        owners (`Sequence[int]`): Whose each is. What has one owner is in one tree, for it has most of its tokens in common.
        max_tokens (`int`): Tokens of a tree; an owner with more has a tree of its own.

    Returns:
        `list[TokenTree]`: with the index in `sequences` as key of each branch.
    """
    ranks = [
        sequence[:length] + [token + _AFTER for token in sequence[length:]]
        for sequence, length in zip(sequences, context_lengths, strict=True)
    ]
    units = defaultdict(list)
    for index in sorted(range(len(sequences)), key=ranks.__getitem__):
        units[owners[index]].append(index)
    trees, chosen = [], []
    for unit in units.values():
        together = sorted(chosen + unit, key=ranks.__getitem__)
        tree = _grow(sequences, together)
        if chosen and len(tree.ids) > max_tokens:
            tree, together = _grow(sequences, unit), unit
        elif chosen:
            trees.pop()
        trees.append(tree)
        chosen = together
    return trees


_AFTER = 2**128
"""Above all token ids, those too that are marked with pictures."""


def _grow(sequences: Sequence[Sequence[int]], keys: Sequence[int]) -> TokenTree:
    tree = TokenTree()
    for key in keys:
        tree.add(key, sequences[key])
    return tree


def batches_by_length(lengths: Sequence[int], max_tokens: int, equal: bool = False) -> list[list[int]]:
    """
    Micro-batches of sequences of like length, of at most so many tokens with their padding.

    Args:
        lengths (`Sequence[int]`): Of the sequences.
        max_tokens (`int`): Rows of a micro-batch times the longest of them; a longer sequence is alone.
        equal (`bool`): Whether the sequences of a micro-batch are to have the same length.

    Returns:
        `list[list[int]]`: indices, the longest first.
    """
    batches = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        is_full = not batches or (len(batches[-1]) + 1) * longest > max_tokens
        if is_full or (equal and lengths[index] != longest):
            batches.append([])
        batches[-1].append(index)
    return batches
