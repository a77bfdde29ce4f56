"""Ctrl-C where it may not come at any moment."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def held_interrupts():
    """While Ctrl-C waits for the end of this: of something short that cannot be left in its midst."""
    before = signal.getsignal(signal.SIGINT)
    if (
        threading.current_thread() is not threading.main_thread() or before is None
    ):  # no handler of Python's to put back
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)
