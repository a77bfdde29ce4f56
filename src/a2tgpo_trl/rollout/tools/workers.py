"""Worker threads that a hung task cannot hold up, nor the end of the interpreter: executors of the standard library
join their threads at exit."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


class WorkerPool:
    """
    Runs tasks in the order they come, on daemon threads that are started when needed and then reused.

    Args:
        size (`int`): Tasks that run at once at most; abandoned ones do not count.
        initializer (`Callable`): Called in each thread before its first task.

    Raises:
        ValueError: If no task could ever run.
    """

    def __init__(self, size: int, initializer: Callable[[], None]):
        if size < 1:
            raise ValueError(f"A pool needs at least one worker, got {size}.")
        self._size = size
        self.initializer = initializer
        self._lock = threading.RLock()  # re-entrant, as garbage collection may call `close` anywhere
        self._queue: deque[tuple[Callable[[Any], None], Hashable]] = deque()
        self._busy: set[Hashable] = set()
        self._idle: list[_Worker] = []
        self._is_closed = False

    def submit(self, run: Callable[[Any], None], task: Hashable) -> None:
        """Have a worker call `run(task)`."""
        with self._lock:
            self._queue.append((run, task))
            self._assign()

    def abandon(self, task: Hashable) -> None:
        """Give the place of a running task to another worker. Its own thread ends when the task returns."""
        with self._lock:
            self._busy.discard(task)
            self._assign()

    def close(self) -> None:
        """Let the workers go, those that are busy after their task."""
        with self._lock:
            self._is_closed = True
            for worker in self._idle:
                worker.dismiss()

    def _assign(self) -> None:
        while self._queue and (self._idle or len(self._busy) < self._size):
            worker = self._idle.pop() if self._idle else self._hire()
            run, task = self._queue.popleft()
            self._busy.add(task)
            worker.assign(run, task)

    def _hire(self) -> "_Worker":
        worker = _Worker(self)
        worker.start()
        return worker

    def take_back(self, worker: "_Worker", task: Hashable) -> None:
        """A worker is done with its task."""
        with self._lock:
            if self._is_closed or task not in self._busy:
                worker.dismiss()
                return
            self._busy.remove(task)
            self._idle.append(worker)
            self._assign()


class _Worker(threading.Thread):
    def __init__(self, pool: WorkerPool):
        super().__init__(name="a2tgpo-tool", daemon=True)
        self._pool = pool
        self._job: tuple[Callable[[Any], None], Hashable] | None = None
        self._is_employed = True
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def assign(self, run: Callable[[Any], None], task: Hashable) -> None:
        self._job = run, task
        self._bell.put(None)

    def dismiss(self) -> None:
        self._is_employed = False
        self._bell.put(None)

    def run(self) -> None:
        self._pool.initializer()
        while self._is_employed:
            try:
                self._work()
            except BaseException:
                # Of an exception that was meant for a tool and came late; the job, if there is one, is still to be done
                logger.warning("A worker thread was interrupted.", exc_info=True)

    def _work(self) -> None:
        if self._job is None:
            self._bell.get()
        if self._job is not None:
            (run, task), self._job = self._job, None
            try:
                run(task)
            finally:
                self._pool.take_back(self, task)
