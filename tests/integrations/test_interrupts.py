"""Ctrl-C waits for the end of what may not be left in its midst."""

import signal
import threading

import pytest

from a2tgpo_trl.integrations.interrupts import held_interrupts

pytestmark = pytest.mark.usefixtures("pythons_handler")


def test_an_interrupt_waits():
    done = []
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done == [True]
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_reaches_the_handler_that_was_there():
    received = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        with held_interrupts():
            signal.raise_signal(signal.SIGINT)
            assert received == []
        assert received == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_hold_nothing():
    handlers = []

    def run():
        with held_interrupts():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_nothing_comes_where_nothing_was_sent():
    with held_interrupts():
        pass
