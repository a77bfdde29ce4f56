"""An event loop that outlives what its tasks raise, and that is known to be blocked."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


class EventLoop:
    """
    An asyncio event loop in a daemon thread.

    Args:
        initializer (`Callable`): Called in the thread first.
    """

    PATIENCE = 1.0
    """Seconds that the loop has to answer a ping, and a cancelled task to end."""

    def __init__(self, initializer: Callable[[], None]):
        self._initializer = initializer
        self._loop = asyncio.new_event_loop()
        self._pinged: float | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="a2tgpo-event-loop", daemon=True)
        self._thread.start()

    def start(self, function: Callable[..., Coroutine], *args: Any) -> None:
        """Run a coroutine function as a task."""
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(function(*args)))

    def cancel(self, task: asyncio.Task) -> None:
        """Ask a task to end, and see whether the loop still answers."""
        self._loop.call_soon_threadsafe(task.cancel)
        self._ping()

    def stop(self) -> None:
        """Ask the loop to end, and all tasks in it."""
        if not self._is_stopped:
            self._is_stopped = True
            self._loop.call_soon_threadsafe(self._loop.stop)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def is_blocked(self) -> bool:
        """Whether a ping went unanswered."""
        pinged = self._pinged
        return pinged is not None and time.perf_counter() - pinged > self.PATIENCE

    def _ping(self) -> None:
        if self._pinged is None:
            self._pinged = time.perf_counter()
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._pinged = None

    def _run(self) -> None:
        self._initializer()
        asyncio.set_event_loop(self._loop)
        while not self._is_stopped:
            try:
                self._loop.run_forever()
            except BaseException:
                # asyncio lets SystemExit and KeyboardInterrupt of a task end the loop, with all other tasks in it
                logger.warning("The event loop of the tools was interrupted and goes on.", exc_info=True)
        with contextlib.suppress(BaseException):
            self._loop.run_until_complete(self._cancel_all())
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
