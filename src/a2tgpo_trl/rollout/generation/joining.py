"""Rollouts that join vLLM's engine in this process while it writes the turns of others."""

from collections.abc import Callable
from typing import Any, TypeVar

from trl.generation.vllm_generation import VLLMGeneration, extract_logprobs

from ...integrations.interrupts import held_interrupts
from ...integrations.replaced import replaced
from .writers import TurnWriter, WrittenTurn

Played = TypeVar("Played")


def why_no_joining(generation: VLLMGeneration, with_pictures: bool = False) -> str | None:
    """Why rollouts, which may hold pictures, cannot join the engine while it writes others, or `None` if they can."""
    if with_pictures:
        return "pictures are passed to vLLM batch by batch, as TRL does"
    if generation.mode != "colocate":
        return f"with vllm_mode={generation.mode!r} the engine runs in another process"
    if generation.structured_outputs_regex is not None:
        return "vllm_structured_outputs_regex is set"
    for name in ("n", "max_tokens", "structured_outputs"):
        if name in generation.generation_kwargs:
            return f"generation_kwargs sets {name!r}"
    return None


def play_in_engine(
    generation: VLLMGeneration,
    generate: Callable[..., Any],
    prompt_ids: list[list[int]],
    cut_turn: Callable[[list[int]], int],
    play: Callable[[TurnWriter], Played],
) -> Played:
    """
    Play rollouts within one generation of TRL's, which loads new weights into the engine, wakes it up and puts it to sleep
    again, and makes its sampling parameters.

    Args:
        generation ([`~trl.generation.vllm_generation.VLLMGeneration`]): With its engine.
        generate (`Callable`): TRL's `_generate_single_turn`.
        prompt_ids (`list[list[int]]`): For TRL, which generates nothing after them.
        cut_turn (`Callable`): Number of tokens of a turn that count.
        play (`Callable`): Plays the rollouts with a writer.
    """
    played = []

    def play_instead(prompts: list, sampling_params: Any, use_tqdm: bool) -> list:
        played.append(play(EngineWriter(generation.llm.llm_engine, sampling_params, cut_turn)))
        return []

    with replaced(generation.llm, generate=play_instead):
        generate(prompt_ids, None, {}, 1)
    (result,) = played
    return result


class EngineWriter(TurnWriter):
    """
    Adds rollouts to a vLLM engine whenever they are ready, and steps it.

    Args:
        engine (`vllm.LLMEngine`): In this process, with nothing to do.
        params (`vllm.SamplingParams`): Of all turns, but for their limits.
        cut_turn (`Callable`): Number of tokens of a turn that count.
    """

    def __init__(self, engine: Any, params: Any, cut_turn: Callable[[list[int]], int]):
        self._engine = engine
        self._params = params
        self._cut_turn = cut_turn
        self._pending: set[int] = set()

    @property
    def pending(self) -> int:
        return len(self._pending)

    def submit(self, indices: list[int], contexts: list[list[int]], max_tokens: list[int], batch_size: int) -> None:
        for index, context, limit in zip(indices, contexts, max_tokens, strict=True):
            tokens = {"type": "token", "prompt_token_ids": context}  # vLLM's `TokensInput`
            with held_interrupts():
                self._pending.add(index)
                self._engine.add_request(str(index), tokens, self._limited_to(limit))

    def collect(self) -> list[WrittenTurn]:
        with held_interrupts():  # the engine could not go on after half a step
            turns = [self._read(output) for output in self._engine.step() if output.finished]
        return turns

    def discard(self) -> None:
        with held_interrupts():
            self._engine.abort_request(list(map(str, self._pending)))
            self._pending.clear()

    def _limited_to(self, limit: int) -> Any:
        params = self._params.clone()
        params.max_tokens = min(params.max_tokens, limit)
        params.min_tokens = min(params.min_tokens, params.max_tokens)
        params.output_kind = type(params.output_kind).FINAL_ONLY
        return params

    def _read(self, output: Any) -> WrittenTurn:
        index, (turn,) = int(output.request_id), output.outputs
        self._pending.remove(index)
        ids = list(turn.token_ids)
        end = self._cut_turn(ids)
        logprobs, _ = extract_logprobs([output])
        told = None if logprobs is None else [best for best, *_ in logprobs[0][:end]]  # as TRL's trainer reads them
        return WrittenTurn(index, ids[:end], told)
