"""Environments of rollouts that begin as another one did: the calls of that one are made again."""

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from .loop import Toolbox
from .rollout import Rollout
from .tools.calls import ToolCall, ToolResult
from .tools.executor import ToolExecutor


def rebuild_environments(
    rollouts: Mapping[int, Rollout], toolboxes: Sequence[Toolbox], executor: ToolExecutor, tree_chains: int
) -> None:
    """
    Bring freshly reset environments into the state of their rollouts. Tools that are no methods of theirs are not called.

    Args:
        rollouts (`Mapping[int, Rollout]`): By their rows, each ending with what the model reads before a turn.
        toolboxes (`Sequence[Toolbox]`): By row.
        executor ([`ToolExecutor`]): Runs the calls; nothing else is pending in it.
        tree_chains (`int`): The option, for the error.

    Raises:
        RuntimeError: If a call does not give what it gave before.
    """
    recorded = {row: _environment_calls(rollout, toolboxes[row]) for row, rollout in rollouts.items()}
    for row, pairs in recorded.items():
        if pairs:
            box = toolboxes[row]
            executor.submit(row, [call for call, _ in pairs], box.tools, box.environment)
    replayed: dict[Any, list[ToolResult]] = {}
    while executor.pending:
        replayed |= dict(executor.collect())
    for row, results in replayed.items():
        for (call, before), now in zip(recorded[row], results, strict=True):
            if (before.content, before.failed) != (now.content, now.failed):
                name = f"{type(toolboxes[row].environment).__name__}.{call.name}"
                raise RuntimeError(
                    f"tree_chains={tree_chains} lets rollouts begin as others did, whose calls their environment is to answer alike, "
                    f"and {name}({_shown(call.arguments)}) gave {_shown(now.content)} after {_shown(before.content)} in the first "
                    "rollout: make what it gives depend on the row and on the calls before it alone, or leave tree_chains out."
                )


def _environment_calls(rollout: Rollout, toolbox: Toolbox) -> list[tuple[ToolCall, ToolResult]]:
    """The calls of methods of the environment, each with what it gave."""
    if toolbox.environment is None:
        return []
    own = {name for name, tool in toolbox.tools.items() if getattr(tool, "__self__", None) is toolbox.environment}
    pairs = [pair for turn in rollout.turns for pair in zip(turn.calls, turn.results, strict=True)]
    return [(call, result) for call, result in pairs if call.name in own]


def _shown(value: Any) -> str:
    return shorten(repr(value), 200)
