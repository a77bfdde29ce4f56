"""The pool: threads on demand, reused, never more than its size, and never lost to what a task does."""

import ctypes
import sys
import threading
import time

import pytest

from a2tgpo_trl.rollout.tools.workers import WorkerPool


def workers(pool):
    return [thread for thread in threading.enumerate() if getattr(thread, "_pool", None) is pool]


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def throw(exception, thread_id):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))


@pytest.fixture
def pool():
    pools = []

    def make(size):
        pools.append(WorkerPool(size, lambda: None))
        return pools[-1]

    yield make
    for made in pools:
        made.close()
        assert eventually(lambda made=made: not workers(made))


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def run_one(pool, function=lambda: None):
    """Run a function to its end, and until its worker is idle again."""
    ended = threading.Event()
    results = []

    def run(task):
        results.append(function())
        ended.set()

    pool.submit(run, object())
    assert ended.wait(10)
    assert eventually(lambda: not pool._busy)
    return results[0]


def test_a_pool_needs_a_worker():
    with pytest.raises(ValueError, match="got 0"):
        WorkerPool(0, lambda: None)


def test_no_task_no_thread(pool):
    assert not workers(pool(8))


def test_threads_are_daemons_and_reused(pool):
    reused, local = pool(8), threading.local()

    def count():
        local.calls = getattr(local, "calls", 0) + 1
        return local.calls

    assert [run_one(reused, count) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert [thread.daemon for thread in workers(reused)] == [True]


def test_as_many_tasks_at_once_as_the_size_and_no_more(pool, gate):
    small, begun, ended = pool(3), [], []

    def run(task):
        begun.append(task)
        gate.wait(30)
        ended.append(task)

    for task in range(8):
        small.submit(run, task)
    assert eventually(lambda: len(begun) == 3)
    time.sleep(0.05)
    assert sorted(begun) == [0, 1, 2]
    assert len(workers(small)) == 3
    gate.set()
    assert eventually(lambda: len(ended) == 8)
    assert len(workers(small)) == 3


def test_tasks_begin_in_their_order(pool):
    begun = []
    one = pool(1)
    for task in range(20):
        one.submit(begun.append, task)
    assert eventually(lambda: len(begun) == 20)
    assert begun == list(range(20))


def test_an_abandoned_task_makes_room_and_its_thread_ends(pool, gate):
    one, ended = pool(1), threading.Event()
    one.submit(lambda task: gate.wait(30), "hung")
    one.submit(lambda task: ended.set(), "next")
    assert not ended.wait(0.05)
    one.abandon("hung")
    assert ended.wait(10)
    assert len(workers(one)) == 2
    gate.set()
    assert eventually(lambda: len(workers(one)) == 1)
    assert run_one(one, lambda: "still works") == "still works"


def test_abandoning_what_does_not_run_changes_nothing(pool):
    one = pool(1)
    run_one(one)
    one.abandon("unknown")
    assert run_one(one, lambda: "works") == "works"
    assert len(workers(one)) == 1


@pytest.mark.parametrize("exception", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_task_that_raises_does_not_end_its_worker(pool, exception):
    one = pool(1)
    run_one(one)
    (before,) = workers(one)

    def run(task):
        raise exception

    one.submit(run, "bad")
    assert run_one(one, lambda: "next") == "next"
    assert workers(one) == [before]


@pytest.mark.skipif(
    sys.gettrace() is not None, reason="traced, CPython 3.11 waits for an exception of another thread for ever"
)
def test_an_exception_thrown_into_an_idle_worker_costs_no_task(pool):
    one = pool(1)
    thread_id = run_one(one, threading.get_ident)
    time.sleep(0.05)  # until it waits
    throw(SystemExit, thread_id)
    assert run_one(one, threading.get_ident) == thread_id


def test_idle_workers_keep_no_cpu_busy(pool):
    idle = pool(1)
    run_one(idle)
    time.sleep(0.05)
    clock = time.pthread_getcpuclockid(workers(idle)[0].ident)
    before = time.clock_gettime(clock)
    time.sleep(0.3)
    assert time.clock_gettime(clock) - before < 0.01


def test_closing_ends_idle_workers_at_once_and_busy_ones_after_their_task(pool, gate):
    closed = pool(2)
    begun = threading.Event()
    closed.submit(lambda task: (begun.set(), gate.wait(30)), "busy")
    beside = threading.Event()
    closed.submit(lambda task: beside.set(), "quick")
    assert begun.wait(10) and beside.wait(10)
    assert eventually(lambda: len(closed._idle) == 1)
    closed.close()
    assert eventually(lambda: len(workers(closed)) == 1)
    gate.set()
    assert eventually(lambda: not workers(closed))
