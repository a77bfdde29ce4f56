"""Questions that threads ask at the same time, answered together."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

GATHER_SECONDS = 0.005
"""How long a batch waits for further questions after its first."""


class Batcher(Generic[Answer]):
    """Gathers questions into batches, answers each once, and remembers answers.

    A question that is being answered, or was lately, is not asked again; failures are not remembered. Each batch is
    answered on a daemon thread of its own, so batches do not wait for each other, and none holds up the end of the
    interpreter.

    Args:
        answer (`Callable[[list[str]], list[Answer | Exception]]`):
            Answers different questions, each with what to return or what to raise. What it raises itself is raised
            for all of them.
        max_batch (`int`):
            Greatest number of questions it is given.
        cache_size (`int`):
            Answers that are remembered, those longest unused forgotten first.
    """

    def __init__(self, answer: Callable[[list[str]], list[Answer | Exception]], max_batch: int, cache_size: int):
        self._answer = answer
        self._max_batch = max_batch
        self._cache_size = cache_size
        self._lock = threading.Lock()
        self._gathering: dict[str, Future[Answer]] | None = None
        self._in_flight: dict[str, Future[Answer]] = {}
        self._answered: OrderedDict[str, Future[Answer]] = OrderedDict()

    def ask(self, questions: Sequence[str], timeout: float) -> list[Answer]:
        """Get the answers.

        Args:
            questions (`Sequence[str]`):
                The questions.
            timeout (`float`):
                Seconds to wait for all answers together.

        Returns:
            `list[Answer]`: in the order of the questions. Callers share them.

        Raises:
            `TimeoutError`: the time is over.
            `Exception`: whatever an answer failed with.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            futures = [self._future(question) for question in questions]
        return [future.result(max(deadline - time.monotonic(), 0.0)) for future in futures]

    def _future(self, question: str) -> "Future[Answer]":
        if question in self._answered:
            self._answered.move_to_end(question)
            return self._answered[question]
        if question not in self._in_flight:
            if self._gathering is None or len(self._gathering) == self._max_batch:
                batch = {}
                threading.Thread(target=self._run, args=(batch,), name="search-batch", daemon=True).start()
                self._gathering = batch
            self._gathering[question] = self._in_flight[question] = Future()
        return self._in_flight[question]

    def _run(self, batch: "dict[str, Future[Answer]]") -> None:
        time.sleep(GATHER_SECONDS)
        with self._lock:
            if self._gathering is batch:
                self._gathering = None
        try:
            answers = self._answer(list(batch))
        except Exception as error:
            answers = [error] * len(batch)
        for (question, future), answer in zip(batch.items(), answers, strict=True):
            failed = isinstance(answer, Exception)
            with self._lock:
                del self._in_flight[question]
                if not failed:
                    self._remember(question, future)
            future.set_exception(answer) if failed else future.set_result(answer)

    def _remember(self, question: str, future: "Future[Answer]") -> None:
        self._answered[question] = future
        if len(self._answered) > self._cache_size:
            self._answered.popitem(last=False)
