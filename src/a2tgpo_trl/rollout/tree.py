"""Trees of rollouts: which turns are written anew, and rollouts that begin as another one did."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from .rollout import Rollout


@dataclass(frozen=True)
class TreePlan:
    """
    How the rollouts of each prompt become the leaves of a tree, whose nodes are turns.

    Attributes:
        leaves (`int`): Rollouts of a prompt, in consecutive rows.
        chains (`int`): How many of them are played first, each from the prompt.
        expansions (`int`): Turns of a prompt that are written anew in each round after that; the last one has what is missing.
        by_surprisal (`bool`): Whether turns of high surprisal are chosen; else any.
        sibling_penalty (`float`): Nats that each other turn written in the same place takes from a turn's surprisal.
        rng (`random.Random`): Breaks ties, and chooses if nothing else does.
    """

    leaves: int
    chains: int
    expansions: int
    by_surprisal: bool
    sibling_penalty: float
    rng: Random

    @property
    def rounds(self) -> list[range]:
        """The leaves of a prompt that each round adds."""
        starts = range(self.chains, self.leaves, self.expansions)
        return [range(start, min(start + self.expansions, self.leaves)) for start in starts]

    def chain_rows(self, num_rows: int) -> list[int]:
        """The rows of a batch that hold the chains."""
        return [row for row in range(num_rows) if row % self.leaves < self.chains]


@dataclass(frozen=True)
class Branch:
    """
    Where a rollout leaves another one.

    Attributes:
        leaf (`int`): Index of the other rollout among the leaves of its prompt.
        num_turns (`int`): Turns that it takes from it.
    """

    leaf: int
    num_turns: int


@dataclass(frozen=True)
class _Candidate:
    branch: Branch
    parent: int | None  # a node; None: the root
    surprisal: float


def number_nodes(leaves: Sequence[Rollout]) -> None:
    """
    Number the turns of a tree that have no number; a turn that leaves have in common has one already.

    Args:
        leaves (`Sequence[Rollout]`): Of one prompt, changed in place.
    """
    turns = [turn for leaf in leaves for turn in leaf.turns]
    numbers = count(max((turn.node for turn in turns if turn.node is not None), default=-1) + 1)
    for turn in turns:
        if turn.node is None:
            turn.node = next(numbers)


def choose(leaves: Sequence[Rollout], number: int, plan: TreePlan) -> list[Branch]:
    """
    Choose the turns of a tree that are written anew: those of the highest surprisal less the penalty.

    A turn is chosen once at most. Turns without a call are left as they are: answers, and what a limit cut; so are those after a
    call that timed out. The prompt is
    always a candidate, with surprisal 0 and any number of times: it begins a new chain.

    Args:
        leaves (`Sequence[Rollout]`): Of one prompt, with numbered turns.
        number (`int`): How many to choose.
        plan ([`TreePlan`]): How.

    Returns:
        `list[Branch]`: where the new rollouts leave those there are, in the order of choice.

    Raises:
        ValueError: If log-probabilities are missing by which to choose.
    """
    prompt, candidates = _Candidate(Branch(0, 0), None, 0.0), _candidates(leaves, plan)
    parents = {turn.node: _parent(leaf, k) for leaf in leaves for k, turn in enumerate(leaf.turns)}
    siblings = Counter(parents.values())  # a turn itself included

    def score(candidate: _Candidate) -> tuple[float, float]:
        others = 0 if candidate is prompt else siblings[candidate.parent] - 1
        value = candidate.surprisal - plan.sibling_penalty * others if plan.by_surprisal else 0.0
        return value, plan.rng.random()

    branches = []
    for _ in range(number):
        best = max([prompt, *candidates], key=score)
        if best is not prompt:
            candidates.remove(best)
        siblings[best.parent] += 1
        branches.append(best.branch)
    return branches


def _candidates(leaves: Sequence[Rollout], plan: TreePlan) -> list[_Candidate]:
    found: dict[int, _Candidate] = {}
    for i, leaf in enumerate(leaves):
        for k, turn in enumerate(leaf.turns):
            if any(result.timed_out for earlier in leaf.turns[:k] for result in earlier.results):
                break  # an environment cannot be brought back into the midst of that call
            if not turn.calls or turn.node in found:
                continue
            if plan.by_surprisal and turn.surprisal is None:
                raise ValueError(
                    "tree_choice='surprisal' chooses turns by the log-probabilities of their tokens, which the generation "
                    "backend did not tell: set tree_choice='random', or generate with transformers or vLLM."
                )
            found[turn.node] = _Candidate(Branch(i, k), _parent(leaf, k), turn.surprisal or 0.0)
    return list(found.values())


def _parent(leaf: Rollout, turn: int) -> int | None:
    return leaf.turns[turn - 1].node if turn else None


def fork(rollout: Rollout, num_turns: int) -> Rollout:
    """
    A rollout as it was before one of its turns was written. They have no object in common that is changed later.

    Args:
        rollout (`Rollout`): One that has been played.
        num_turns (`int`): Turns that are kept, each with what was read after it.

    Returns:
        [`Rollout`]: to be played on.
    """
    turns = [
        replace(
            turn,
            message=deepcopy(turn.message),
            calls=[*turn.calls],
            results=[*turn.results],
            observed=deepcopy(turn.observed),
            images=[*turn.images],
            rewards={},
            credit={},
        )
        for turn in rollout.turns[:num_turns]
    ]
    forked = Rollout(
        rollout.prompt_ids, turns, images=[*rollout.images], state=rollout.state, num_shared_turns=num_turns
    )
    if rollout.logprobs is not None:
        forked.logprobs = rollout.logprobs[: forked.completion_length]
    return forked
