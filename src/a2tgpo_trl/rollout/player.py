"""Plays the rollouts of a trainer: their first turns, the tool loop after these, and the rounds of trees."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from trl import GRPOTrainer

from ..integrations.progress import progress
from .generation.joining import play_in_engine
from .generation.turns import TurnGenerator
from .generation.writers import BatchWriter, TurnWriter
from .limits import RolloutLimits
from .loop import Toolbox, ToolLoop
from .pictures import Picture
from .protocols.base import ToolProtocol
from .protocols.chat import ChatProtocol
from .protocols.tags import TagProtocol
from .replay import rebuild_environments
from .rollout import Rollout
from .tools.environments import STATE_KEY, state_of
from .tools.executor import ToolExecutor
from .tree import TreePlan, choose, fork, number_nodes

Generate = Callable[..., tuple[list[list[int]], list[list[float]] | None]]
"""TRL's `_generate_single_turn`."""


def make_protocol(trainer: GRPOTrainer, kind: str, conversational: bool) -> ToolProtocol:
    """
    How the model of a trainer calls tools.

    Args:
        trainer ([`A2TGPOTrainer`]): With its tools.
        kind (`str`): `"chat"` or `"tags"`.
        conversational (`bool`): Whether prompts are lists of messages.
    """
    args, processing_class = trainer.args, trainer.processing_class
    if kind == "chat":
        return ChatProtocol(processing_class, trainer._get_tool_suffix_ids, trainer.eos_token_ids)
    return TagProtocol(
        processing_class,
        trainer.tools,
        args.tool_tags,
        args.result_tag,
        conversational,
        trainer.eos_token_ids,
        args.answer_stop_string,
    )


class RolloutPlayer:
    """
    Plays rollouts with the tools, the backend and the limits of a trainer.

    Args:
        trainer ([`A2TGPOTrainer`]): With its generation set up.
        protocol ([`~rollout.ToolProtocol`]): How its model calls tools.
    """

    def __init__(self, trainer: GRPOTrainer, protocol: ToolProtocol):
        self.trainer = trainer
        self.protocol = protocol
        args = trainer.args
        self.turns = TurnGenerator(trainer, protocol)
        self.executor = ToolExecutor(
            args.tool_concurrency,
            args.tool_timeout,
            args.max_abandoned_calls,
            _thread_initializer(trainer.accelerator.device),
        )

    @property
    def limits(self) -> RolloutLimits:
        """When rollouts have to end."""
        trainer = self.trainer
        return RolloutLimits(
            trainer.max_tool_calling_iterations,
            trainer.max_completion_length,
            trainer.backend.max_model_length,
            trainer.args.max_turn_tokens,
            trainer.args.max_observation_tokens,
        )

    def first_turns(
        self,
        generate: Generate,
        prompt_ids: list[list[int]],
        images: Sequence[list[Picture]],
        num_generations: int,
        plan: TreePlan | None = None,
    ):
        """
        The first turn after each prompt, as `generate` returns turns. Rows whose first turn [`play`] writes get an end-of-sequence
        token in its place, since TRL knows no completion without any: all of them if rollouts join an engine.

        Args:
            generate (`Callable`): TRL's `_generate_single_turn`.
            prompt_ids (`list[list[int]]`, length `B`): The prompts.
            images (`Sequence[list]`, length `B`): Their pictures.
            num_generations (`int`): How often each prompt follows itself.
            plan ([`TreePlan`], *optional*): With one, only chains get a first turn here.
        """
        self.turns.keeps_logprobs = plan is not None
        every_row, nothing = range(len(prompt_ids)), [self.trainer._tokenizer.eos_token_id]
        if self.turns.joins:
            return [nothing for _ in every_row], [[0.0] for _ in every_row]
        if plan is None:
            return self._first_turns(generate, every_row, prompt_ids, images, num_generations)
        rows = plan.chain_rows(len(prompt_ids))
        chosen = [[values[row] for row in rows] for values in (prompt_ids, images)]
        ids, logprobs = self._first_turns(generate, rows, *chosen, plan.chains)
        written = dict(zip(rows, ids, strict=True))
        told = None if logprobs is None else dict(zip(rows, logprobs, strict=True))
        turns = [written.get(row, nothing) for row in every_row]
        return turns, None if told is None else [told.get(row, [0.0]) for row in every_row]

    def _first_turns(
        self,
        generate: Generate,
        rows: Sequence[int],
        prompt_ids: list[list[int]],
        images: Sequence[list[Picture]],
        num_generations: int,
    ):
        limits = replace(self.limits, max_completion_length=sys.maxsize)  # the backend's own limit
        # A prompt that fills the model's context gets one token: TRL knows no completion without any
        room = [max(limits.room(Rollout(ids)), 1) for ids in prompt_ids]
        return self.turns.write(generate, rows, prompt_ids, images, room, len(room), num_generations)

    def play(
        self,
        generate: Generate,
        prompt_ids: list[list[int]],
        completion_ids: list[list[int]],
        logprobs: list[list[float]] | None,
        images: Sequence[list[Picture]],
        plan: TreePlan | None = None,
    ) -> ToolLoop:
        """
        Play rollouts to their end.

        Args:
            generate (`Callable`): TRL's `_generate_single_turn`.
            prompt_ids (`list[list[int]]`, length `B`): The prompts.
            completion_ids (`list[list[int]]`, length `B`): What [`first_turns`] returned, or what a `rollout_func` wrote.
            logprobs (`list[list[float]]`, length `B`, *optional*): Their log-probabilities.
            images (`Sequence[list]`, length `B`): The pictures of the prompts.
            plan ([`TreePlan`], *optional*): With one, rollouts that are no chains begin as others did.

        Returns:
            [`ToolLoop`]: played, with its rollouts.
        """
        toolboxes = [self._toolbox(i) for i in range(len(prompt_ids))]
        rollouts = [
            Rollout(ids, images=pictures, state=state_of(toolbox.environment) if toolbox.tells_state else None)
            for ids, pictures, toolbox in zip(prompt_ids, images, toolboxes, strict=True)
        ]
        chains = range(len(rollouts)) if plan is None else plan.chain_rows(len(rollouts))
        for i in chains if self._has_first_turns else []:
            given = None if logprobs is None else logprobs[i]
            rollouts[i].add_turn(completion_ids[i], given, self.protocol, toolboxes[i].schemas)

        play = partial(self._play, rollouts, toolboxes, chains, plan)
        if self.turns.joins:
            return play_in_engine(self.trainer.backend.settings, generate, prompt_ids, self.protocol.cut_turn, play)
        return play(self._batches(generate, rollouts, plan))

    def _batches(self, generate: Generate, rollouts: list[Rollout], plan: TreePlan | None) -> BatchWriter:
        def write(rows, contexts, max_tokens, batch_size):
            if plan is None:  # of a tree others may go on from what they have read
                kept = (picture for rollout in rollouts if not rollout.stop_reason for picture in rollout.all_images)
                self.turns.forget((row for row, rollout in enumerate(rollouts) if rollout.stop_reason), kept)
            pictures = [rollouts[row].all_images for row in rows]
            return self.turns.write(generate, rows, contexts, pictures, max_tokens, batch_size)

        return BatchWriter(write, self.turns.seconds)

    @property
    def _has_first_turns(self) -> bool:
        """Whether the turns that TRL's loop would begin with are written, by [`first_turns`] or by a function of the user."""
        return not self.turns.joins or self.trainer.rollout_func is not None

    def _play(
        self,
        rollouts: list[Rollout],
        toolboxes: list[Toolbox],
        chains: Sequence[int],
        plan: TreePlan | None,
        writer: TurnWriter,
    ) -> ToolLoop:
        with progress("Rollouts", len(rollouts), "rollout", self.trainer.args.disable_tqdm) as bar:
            watch = partial(_show_finished, bar)
            loop = ToolLoop(rollouts, toolboxes, writer, self.protocol, self.executor, self.limits, watch)
            try:
                self._play_rows(loop, chains)
                if plan is not None:
                    self._grow(loop, plan)
            finally:
                self._replace_busy_environments()
        return loop

    def _play_rows(self, loop: ToolLoop, rows: Sequence[int]) -> None:
        if self.trainer.args.lockstep or self.turns.collective:
            loop.play_in_lockstep(self.turns.agree, rows)
        else:
            loop.play(rows)

    def _grow(self, loop: ToolLoop, plan: TreePlan) -> None:
        """Play the rounds after the chains. Each process plays as many, so that collective generations meet."""
        rollouts = loop.rollouts
        groups = range(0, len(rollouts), plan.leaves)
        for first in groups:
            _check_prompts(rollouts[first : first + plan.leaves], plan.chains)
        for added in plan.rounds:
            forks = []
            for first in groups:
                leaves = rollouts[first : first + added.start]
                number_nodes(leaves)
                for i, branch in zip(added, choose(leaves, len(added), plan), strict=True):
                    row = first + i
                    rollouts[row] = fork(leaves[branch.leaf], branch.num_turns)
                    # The last token is to be read, for the model to go on from
                    self.turns.fork(first + branch.leaf, row, len(rollouts[row].context_ids) - 1)
                    forks.append(row)
            rebuild_environments({row: rollouts[row] for row in forks}, loop.toolboxes, self.executor, plan.chains)
            self._play_rows(loop, forks)
        for first in groups:
            number_nodes(rollouts[first : first + plan.leaves])

    def _toolbox(self, row: int) -> Toolbox:
        trainer = self.trainer
        tools = {**trainer._sync_tool_dicts[row], **trainer._async_tool_dicts[row]}
        if not trainer.environments:
            return Toolbox(tools, trainer.tools)
        environment = trainer.environments[row]
        schemas = trainer._env_tools[trainer._batch_environments[row]]
        names = {tool.__name__ for tool in schemas}
        tells_state = "states" in trainer.signals and hasattr(environment, STATE_KEY)
        return Toolbox({name: tools[name] for name in tools if name in names}, schemas, environment, tells_state)

    def _replace_busy_environments(self) -> None:
        """TRL uses environments again; one that an abandoned call is still in is left to that call."""
        for pool in getattr(self.trainer, "_environment_pool", {}).values():
            pool[:] = [environment for environment in pool if not self.executor.is_busy(environment)]


def _check_prompts(group: Sequence[Rollout], tree_chains: int) -> None:
    """
    Refuse a tree whose leaves have different prompts.

    Raises:
        RuntimeError: As where `reset` of an environment wrote something else for each rollout.
    """
    if any((rollout.prompt_ids, rollout.images) != (group[0].prompt_ids, group[0].images) for rollout in group):
        raise RuntimeError(
            f"tree_chains={tree_chains} lets rollouts of a prompt begin as others did, and the prompts of a group differ: let reset of "
            "an environment say the same for the same row, or leave tree_chains out."
        )


def _thread_initializer(device: torch.device) -> Callable[[], None] | None:
    """Selects this thread's CUDA device in another thread; the accelerator's own device may have no index."""
    return partial(torch.cuda.set_device, torch.cuda.current_device()) if device.type == "cuda" else None


def _show_finished(bar, finished: int) -> None:
    bar.update(finished - bar.n)
