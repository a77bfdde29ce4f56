"""Execution: all calls at once, each with its time limit, and nothing that a tool does reaches beyond its own call."""

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from a2tgpo_trl.rollout.tools import executor
from a2tgpo_trl.rollout.tools.calls import EndRollout, ToolCall
from a2tgpo_trl.rollout.tools.event_loop import EventLoop
from a2tgpo_trl.rollout.tools.executor import ToolExecutor, not_thread_safe
from a2tgpo_trl.rollout.tools.results import returned

SHORT = 0.2
"""Time limit of calls that hang for good."""

LONG = 30
"""Longer than any test: what waits this long was forgotten."""


def eventually(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.fixture(autouse=True)
def threads():
    """The executors' threads that the test has started; other libraries' threads come and go. In the end none is left."""
    before = set(threading.enumerate())

    def started():
        return [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("a2tgpo")]

    yield started
    assert eventually(lambda: not started())


@pytest.fixture
def gate():
    """What hung tools wait for; open at the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(EventLoop, "PATIENCE", SHORT)


def call(name, **arguments):
    return ToolCall(name, arguments)


def by_name(*tools):
    return {tool.__name__: tool for tool in tools}


def sync(text: str) -> str:
    return f"sync {text}"


async def later(text: str) -> str:
    await asyncio.sleep(0)
    return f"async {text}"


def hands_out_an_awaitable(text: str):
    return later(text)


def broken(text: str) -> str:
    raise KeyError(text)


async def broken_later(text: str) -> str:
    await asyncio.sleep(0)
    raise RuntimeError(f"no {text}")


TOOLS = by_name(sync, later, hands_out_an_awaitable, broken, broken_later)


def run_all(executor, batch):
    """The results of the calls of one turn of several rollouts, row by row."""
    results = {}
    for i, (calls, tools) in enumerate(batch):
        executor.submit(i, calls, tools)
    while executor.pending:
        results.update(executor.collect())
    return [results[i] for i in range(len(batch))]


def run(*rows, tools=TOOLS, **options):
    return run_all(ToolExecutor(**options), [(list(calls), tools) for calls in rows])


def run_turn(executor, calls, tools, environment=None):
    executor.submit("turn", calls, tools, environment)
    ((_, results),) = executor.collect()
    return results


def run_tool(tool, **options):
    ((result,),) = run([ToolCall("tool")], tools={"tool": tool}, **options)
    return result


def contents(row):
    return [result.content for result in row]


def error(text):
    return str({"error": text})


def as_async(tool):
    async def wrapped(*args, **kwargs):
        return tool(*args, **kwargs)

    return wrapped


def as_awaitable(tool):
    return lambda *args, **kwargs: as_async(tool)(*args, **kwargs)


KINDS = pytest.mark.parametrize(
    "kind", [lambda tool: tool, as_async, as_awaitable], ids=["sync", "async", "awaitable"]
)


# Results and their order


@pytest.mark.parametrize(
    "names",
    [
        ["later", "sync"],
        ["sync", "later", "sync"],
        ["later", "hands_out_an_awaitable", "sync", "later"],
        ["sync", "sync"],
        ["later"],
    ],
)
def test_results_are_in_the_order_of_the_calls(names):
    calls = [call(name, text=str(i)) for i, name in enumerate(names)]
    (row,) = run(calls)
    expected = [f"{'sync' if name == 'sync' else 'async'} {i}" for i, name in enumerate(names)]
    assert contents(row) == expected
    assert [result.name for result in row] == names
    assert not any(result.failed for result in row)


def test_results_are_in_the_order_of_the_calls_whichever_ends_first():
    second_ended = threading.Event()

    def first():
        assert second_ended.wait(LONG)

    (row,) = run([call("first"), call("second")], tools={"first": first, "second": second_ended.set})
    assert [result.name for result in row] == ["first", "second"]


def test_results_are_in_the_order_of_the_rollouts():
    rows = run(
        [call("later", text="a"), call("sync", text="b")], [], [call("sync", text="c"), call("later", text="d")]
    )
    assert [contents(row) for row in rows] == [["async a", "sync b"], [], ["sync c", "async d"]]


def test_a_whole_number_is_an_integer_to_the_tool():
    """As JSON Schema has it: models and JSON libraries write 3 as 3.0, and `range(3.0)` is an error."""

    def count(number: int) -> str:
        """
        Count.

        Args:
            number: Up to.
        """
        return str(list(range(number)))

    ((result,),) = run([call("count", number=3.0)], tools=by_name(count))
    assert (result.content, result.failed) == ("[0, 1, 2]", False)


def test_nothing_to_run():
    executor = ToolExecutor()
    assert run_all(executor, []) == []
    assert executor.collect() == []
    assert executor.pending == 0


def test_each_rollout_has_its_own_tools():
    class Counter:
        def __init__(self):
            self.calls = 0

        def count(self) -> int:
            self.calls += 1
            return self.calls

    one, other = Counter(), Counter()
    executor = ToolExecutor()
    executor.submit("one", [call("count")] * 2, by_name(one.count), one)
    executor.submit("other", [call("count")], by_name(other.count), other)
    collected = executor.collect() + executor.collect()
    assert {key: contents(row) for key, row in collected} == {"one": ["1", "2"], "other": ["1"]}


@pytest.mark.parametrize("key", ["url", "path", "base64", "image"])
def test_blocks_that_name_a_picture_are_text(key):
    block = {"type": "image", key: "http://127.0.0.1:9/a.png"}
    content = returned("see", [block, {"type": "text", "text": "x\ud800", "url": "y"}]).content
    assert content == [{"type": "text", "text": str(block)}, {"type": "text", "text": "x\ufffd"}]


def test_pictures_in_a_list_or_a_tuple_are_blocks():
    picture = Image.new("RGB", (2, 2))
    executor = ToolExecutor()
    executor.submit(
        0, [call("draw"), call("see")], {"draw": lambda: [picture, picture], "see": lambda: ("look", picture)}
    )
    ((_, (drawn, seen)),) = executor.collect()
    assert [block["type"] for block in drawn.content] == ["image", "image"] and drawn.content[0][
        "image"
    ] is not picture
    assert seen.content[0] == {"type": "text", "text": "look"} and seen.content[1]["image"] == picture


@pytest.mark.parametrize(
    ("returned", "content"),
    [
        ("text", "text"),
        ("", ""),
        (3, "3"),
        (None, "None"),
        ({"k": "v"}, "{'k': 'v'}"),
        ("Ünï 😀".encode(), "Ünï 😀"),
        (b"a\xffb", "a\ufffdb"),
        ([{"type": "text", "text": "block"}], [{"type": "text", "text": "block"}]),
        (
            [{"type": "image", "image": 1}, {"type": "text"}],
            [{"type": "text", "text": "{'type': 'image', 'image': 1}"}, {"type": "text", "text": "{'type': 'text'}"}],
        ),
        ([], "[]"),
        ([{"type": "text"}, "loose"], "[{'type': 'text'}, 'loose']"),
        ([{"title": "a result"}], "[{'title': 'a result'}]"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ufeff😀", "\ufeff😀"),
        ([{"type": "text", "text": "\udfff"}], [{"type": "text", "text": "\ufffd"}]),
    ],
)
@KINDS
def test_content_of_a_result(returned, content, kind):
    result = run_tool(kind(lambda: returned))
    assert result.content == content
    assert not result.failed and not result.ends_rollout
    assert result.message() == {"role": "tool", "name": "tool", "content": content}


def test_seconds_are_the_time_that_the_tool_ran():
    def nap():
        time.sleep(0.1)

    async def nap_later():
        await asyncio.sleep(0.1)

    def nap_twice():
        nap()
        return nap_later()

    tools = by_name(nap, nap_later, nap_twice)
    (row,) = run([call("nap"), call("nap_later"), call("nap_twice"), call("nowhere")], tools=tools)
    assert 0.1 <= row[0].seconds < 5
    assert 0.1 <= row[1].seconds < 5
    assert 0.2 <= row[2].seconds < 5
    assert row[3].seconds is None


@pytest.mark.parametrize(("given", "content"), [("bye", "bye"), (None, ""), (7, "7"), ("\ud800", "\ufffd")])
@pytest.mark.parametrize("raises", [True, False])
@KINDS
def test_a_tool_ends_its_rollout(given, content, raises, kind):
    def leave():
        if raises:
            raise EndRollout(given)
        return EndRollout(given)

    result = run_tool(kind(leave))
    assert (result.content, result.ends_rollout, result.failed) == (content, True, False)
    assert result.seconds is not None


# Failures


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (call("nowhere", text="x"), "Tool nowhere not found."),
        (call("broken", text="x"), "'x'"),
        (call("broken_later", text="x"), "no x"),
        (call("sync"), "sync() missing 1 required positional argument: 'text'"),
        (call("later"), "later() missing 1 required positional argument: 'text'"),
        (call("sync", text="x", more="y"), "sync() got an unexpected keyword argument 'more'"),
        (ToolCall("sync", error="Not JSON."), "Not JSON."),
        (ToolCall("sync", "x"), "Arguments must be an object of named values, got str."),
    ],
)
def test_a_failure_stays_with_its_call(bad, text):
    first, second = run([call("later", text="a"), bad, call("sync", text="b")], [call("sync", text="c")])
    assert contents(first) == ["async a", error(text), "sync b"]
    assert [result.failed for result in first] == [False, True, False]
    assert contents(second) == ["sync c"]


@pytest.mark.parametrize("bad", [call("nowhere"), ToolCall("tool", error="no"), ToolCall("tool", [])])
def test_a_call_with_an_error_is_not_executed(bad, threads):
    executed = []
    executor = ToolExecutor()
    (result,) = run_turn(executor, [bad], {"tool": lambda: executed.append(1)})
    assert result.failed and result.seconds is None
    assert not executed
    assert not threads()


def test_a_check_of_arguments_that_raises_fails_the_call(monkeypatch):
    def argument_error(tool, arguments):
        raise RecursionError("too deep")

    monkeypatch.setattr(executor, "argument_error", argument_error)
    assert contents(run([call("sync", text="x")])[0]) == [error("too deep")]


class Unprintable(Exception):
    def __str__(self):
        raise SystemExit("never seen")


RAISED = [
    (ValueError, ("no luck today",), "no luck today"),
    (ValueError, (), "ValueError"),
    (TimeoutError, (), "TimeoutError"),
    (Unprintable, (), "Unprintable"),
    (ValueError, ("\ud800",), "\ufffd"),
    (SystemExit, (3,), "3"),
    (KeyboardInterrupt, (), "KeyboardInterrupt"),
    (GeneratorExit, (), "GeneratorExit"),
    (asyncio.CancelledError, (), "CancelledError"),
    (MemoryError, (), "MemoryError"),
    (BaseException, ("anything",), "anything"),
]


@pytest.mark.parametrize(("exception", "arguments", "text"), RAISED)
@KINDS
def test_whatever_is_raised_fails_the_call_and_no_other(exception, arguments, text, kind):
    def tool():
        raise exception(*arguments)

    executor = ToolExecutor(concurrency=1)
    tools = {"tool": kind(tool), "sync": sync, "later": later}
    calls = [call("later", text="a"), call("tool"), call("sync", text="b"), call("later", text="c")]
    for _ in range(2):
        row = run_turn(executor, calls, tools)
        assert contents(row) == ["async a", error(text), "sync b", "async c"]
        assert [result.failed for result in row] == [False, True, False, False]


@pytest.mark.parametrize(("kind", "text"), [(lambda tool: tool, "7"), (as_async, "coroutine raised StopIteration")])
def test_stop_iteration_fails_the_call(kind, text):
    def tool():
        raise StopIteration(7)

    assert run_tool(kind(tool)).content == error(text)


def test_endless_recursion_fails_the_call():
    def tool():
        return tool()

    result = run_tool(tool)
    assert result.failed and "recursion" in result.content


@KINDS
def test_a_result_that_cannot_be_text_fails_the_call(kind):
    class Odd:
        def __str__(self):
            raise ValueError("I have no words")

    assert run_tool(kind(Odd)).content == error("I have no words")


@KINDS
def test_the_time_of_a_result_to_become_text_counts(kind, gate, impatient):
    class Slow:
        def __str__(self):
            gate.wait(LONG)
            return "late"

    assert run_tool(kind(Slow), timeout=SHORT).content == error("tool timed out after 0.2 s.")


def test_names_can_be_encoded():
    ((unknown,),) = run([call("a\ud800")])
    assert unknown.name == "a\ufffd"
    assert unknown.content == error("Tool a\ufffd not found.")


def test_an_exception_thrown_into_the_thread_of_a_tool_fails_the_call():
    thread_ids = []

    def busy():
        thread_ids.append(threading.get_ident())
        while True:
            time.sleep(0.005)

    executor = ToolExecutor(concurrency=1, timeout=None)
    executor.submit("turn", [call("busy")], by_name(busy))
    assert eventually(lambda: thread_ids)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_ids[0]), ctypes.py_object(SystemExit))
    ((_, (result,)),) = executor.collect(LONG)
    assert result.content == error("SystemExit")
    assert contents(run_turn(executor, [call("sync", text="a")], TOOLS)) == ["sync a"]


def test_an_exception_that_leaves_the_event_loop_harms_no_other_call():
    exited = threading.Event()

    async def exit_beside():
        async def exit():
            exited.set()
            raise SystemExit

        asyncio.get_running_loop().create_task(exit())
        return "left a task behind"

    async def wait():
        while not exited.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        return "unharmed"

    executor = ToolExecutor(timeout=None)
    row = run_turn(executor, [call("wait"), call("exit_beside")], by_name(wait, exit_beside))
    assert contents(row) == ["unharmed", "left a task behind"]
    assert contents(run_turn(executor, [call("later", text="a")], TOOLS)) == ["async a"]


# Side by side


def test_no_synchronous_calls_no_threads(threads):
    executor = ToolExecutor()
    run_all(executor, [([], TOOLS)])
    assert not threads()
    run_all(executor, [([call("later", text="a")] * 3, TOOLS)])
    assert len(threads()) == 1  # the event loop's


def test_synchronous_calls_of_all_rollouts_run_at_once():
    barrier = threading.Barrier(8)

    def meet():
        barrier.wait(10)

    rows = run(*[[call("meet")] * 2] * 4, tools=by_name(meet), concurrency=8)
    assert not any(result.failed for row in rows for result in row)


def test_no_more_synchronous_calls_at_once_than_the_concurrency():
    lock, three, inside, most = threading.Lock(), threading.Barrier(3), [], []

    def enter():
        with lock:
            inside.append(1)
            most.append(len(inside))
        three.wait(10)
        time.sleep(0.01)  # for a fourth
        with lock:
            inside.pop()

    run([call("enter")] * 12, tools=by_name(enter), concurrency=3)
    assert max(most) == 3


def test_asynchronous_calls_of_all_rollouts_wait_side_by_side_whatever_the_concurrency():
    arrived, everyone = [], asyncio.Event()

    async def meet(who: str) -> str:
        arrived.append(who)
        if len(arrived) == 3:
            everyone.set()
        # One after another, the first would wait here in vain
        await asyncio.wait_for(everyone.wait(), timeout=10)
        return who

    calls = [call("meet", who="a"), call("meet", who="b")], [call("meet", who="c")]
    assert [contents(row) for row in run(*calls, tools=by_name(meet), concurrency=1)] == [["a", "b"], ["c"]]


def test_synchronous_and_asynchronous_calls_run_at_once():
    sync_is_in, async_is_in = threading.Event(), threading.Event()

    def meet():
        sync_is_in.set()
        assert async_is_in.wait(10)

    async def meet_later():
        async_is_in.set()
        while not sync_is_in.is_set():
            await asyncio.sleep(0.005)

    (row,) = run([call("meet"), call("meet_later")], tools=by_name(meet, meet_later))
    assert not any(result.failed for result in row)


def test_an_executor_keeps_its_threads_and_its_event_loop():
    local = threading.local()

    async def loop() -> int:
        return id(asyncio.get_running_loop())

    def count() -> int:
        local.calls = getattr(local, "calls", 0) + 1
        return local.calls

    executor = ToolExecutor(concurrency=1)
    first, second = (run_turn(executor, [call("loop"), call("count")], by_name(loop, count)) for _ in range(2))
    assert first[0].content == second[0].content
    assert (first[1].content, second[1].content) == ("1", "2")


def test_submit_returns_while_the_calls_run_and_collect_gives_each_rollout_when_it_is_finished(gate):
    def hang():
        gate.wait(LONG)
        return "late"

    executor = ToolExecutor()
    executor.submit(("slow", 1), [call("hang"), call("sync", text="a")], by_name(hang, sync))
    executor.submit(("quick", 2), [call("sync", text="b")], TOOLS)
    assert executor.pending == 2
    ((key, row),) = executor.collect()
    assert (key, contents(row)) == (("quick", 2), ["sync b"])
    assert executor.pending == 1
    assert executor.collect(timeout=0.01) == []
    assert executor.collect(timeout=0) == []
    gate.set()
    ((key, row),) = executor.collect()
    assert (key, contents(row)) == (("slow", 1), ["late", "sync a"])
    assert executor.collect() == []


def test_collect_gives_all_that_is_finished():
    executor = ToolExecutor()
    for key in range(5):
        executor.submit(key, [call("sync", text="a")], TOOLS)
    assert eventually(lambda: executor._finished.qsize() == 5)
    assert sorted(key for key, _ in executor.collect()) == list(range(5))
    assert executor.pending == 0


# Lanes


class World:
    """An environment that knows what is inside."""

    def __init__(self):
        self.inside, self.most, self.log = 0, 0, []

    def _enter(self, what):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.log.append(what)

    def step(self, i: int):
        self._enter(i)
        time.sleep(0.01)
        self.inside -= 1

    async def step_later(self, i: int):
        self._enter(i)
        await asyncio.sleep(0.01)
        self.inside -= 1

    def step_both(self, i: int):
        self.log.append(i)
        return self.step_later(f"{i} goes on")


def test_methods_of_an_environment_run_one_after_the_other_in_their_order():
    world = World()
    names = ["step", "step_later", "step", "step_both", "step", "step_later", "step_later", "step_both"]
    calls = [call(name, i=i) for i, name in enumerate(names)]
    executor = ToolExecutor()
    run_turn(executor, calls, by_name(world.step, world.step_later, world.step_both), world)
    assert world.log == [0, 1, 2, 3, "3 goes on", 4, 5, 6, 7, "7 goes on"]
    assert world.most == 1
    assert not executor.is_busy(world)


def test_other_calls_run_beside_those_of_the_environment():
    barrier = threading.Barrier(3)

    class Place:
        def meet_here(self):
            barrier.wait(10)

    def meet():
        barrier.wait(10)

    one, other = Place(), Place()
    executor = ToolExecutor()
    executor.submit("one", [call("meet_here"), call("meet")], by_name(one.meet_here, meet), one)
    executor.submit("other", [call("meet_here")], by_name(other.meet_here), other)
    collected = executor.collect() + executor.collect()
    assert not any(result.failed for _, row in collected for result in row)


def test_methods_of_other_objects_than_the_environment_run_at_once():
    barrier = threading.Barrier(2)

    class Place:
        def meet(self):
            barrier.wait(10)

    row = run_turn(ToolExecutor(), [call("meet")] * 2, by_name(Place().meet), Place())
    assert not any(result.failed for result in row)


def test_waiting_calls_occupy_no_thread_and_progress_without_anybody_waiting_for_them():
    opened, passed = threading.Event(), []

    class Place:
        def wait(self):
            passed.append(opened.wait(10))

    place = Place()
    executor = ToolExecutor(concurrency=2)
    executor.submit("a", [call("wait")] * 4 + [call("open")], {"wait": place.wait, "open": opened.set}, place)
    assert eventually(lambda: len(passed) == 4)
    assert all(passed)
    executor.collect()


@KINDS
def test_a_tool_that_is_not_thread_safe_runs_one_call_at_a_time_in_the_order_of_submission(kind):
    log, inside, most = [], [], []

    def enter(i):
        inside.append(i)
        most.append(len(inside))
        log.append(i)
        time.sleep(0.005)
        inside.pop()

    tool = not_thread_safe(kind(enter))
    run(*[[call("tool", i=2 * i), call("tool", i=2 * i + 1)] for i in range(4)], tools={"tool": tool})
    assert log == list(range(8))
    assert max(most) == 1


def test_a_method_that_is_not_thread_safe_is_one_tool_in_all_its_instances():
    log, barrier = [], threading.Barrier(2)

    class Room:
        @not_thread_safe
        def enter(self, i: int):
            log.append(f"in {i}")
            time.sleep(0.005)
            log.append(f"out {i}")

        def meet(self):
            barrier.wait(10)

    executor = ToolExecutor()
    rooms = [Room(), Room()]
    for i, room in enumerate(rooms):
        # Lanes cross: the environment's own, and the one of the tool
        calls = [call("meet"), call("enter", i=i), call("enter", i=i)]
        executor.submit(i, calls, by_name(room.enter, room.meet), room)
    collected = executor.collect() + executor.collect()
    assert not any(result.failed for _, row in collected for result in row)
    assert log == ["in 0", "out 0", "in 0", "out 0", "in 1", "out 1", "in 1", "out 1"]


def test_the_decorator_returns_its_function():
    def tool(): ...

    assert not_thread_safe(tool) is tool
    assert tool.thread_safe is False


# Time limits


@KINDS
def test_a_call_that_hangs_times_out_and_no_other(kind, gate, impatient):
    def hang():
        gate.wait(LONG)

    executor = ToolExecutor(timeout=SHORT)
    row = run_turn(executor, [call("hang"), call("sync", text="a")], {"hang": kind(hang), "sync": sync})
    assert contents(row) == [error("hang timed out after 0.2 s."), "sync a"]
    assert row[0].failed and SHORT <= row[0].seconds < LONG / 2
    assert [result.timed_out for result in row] == [True, False]
    assert eventually(lambda: executor.num_abandoned == 1)
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)


def test_without_a_limit_nobody_gives_up(gate):
    def hang():
        gate.wait(LONG)
        return "at last"

    executor = ToolExecutor(timeout=None)
    executor.submit("a", [call("hang")], by_name(hang))
    assert executor.collect(timeout=0.1) == []
    gate.set()
    assert contents(executor.collect()[0][1]) == ["at last"]


def test_a_call_that_took_too_long_has_failed_though_nobody_watched():
    ended = threading.Event()

    def slow():
        time.sleep(0.3)
        ended.set()
        return "late"

    executor = ToolExecutor(timeout=SHORT)
    executor.submit("a", [call("slow")], by_name(slow))
    assert ended.wait(10)
    assert eventually(lambda: not executor._running)
    ((_, (result,)),) = executor.collect()
    assert result.content == error("slow timed out after 0.2 s.")
    assert result.seconds >= 0.3


@pytest.fixture
def nap(monkeypatch):
    """A tool whose calls take 20 seconds each, as the executor sees it."""
    now = [0.0]
    monkeypatch.setattr(executor, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def nap():
        now[0] += 20
        return "rested"

    return nap


def test_waiting_for_a_thread_does_not_count(nap):
    rows = run(*[[call("nap")]] * 3, tools=by_name(nap), concurrency=1, timeout=LONG)
    assert [contents(row) for row in rows] == [["rested"]] * 3


@pytest.mark.parametrize("kind", [lambda tool: tool, as_async], ids=["sync", "async"])
def test_waiting_in_a_lane_does_not_count(kind, nap):
    rows = run(*[[call("nap")]] * 3, tools={"nap": not_thread_safe(kind(nap))}, timeout=LONG)
    assert [contents(row) for row in rows] == [["rested"]] * 3


def test_hung_calls_free_their_threads(gate):
    def hang():
        gate.wait(LONG)

    executor = ToolExecutor(concurrency=2, timeout=SHORT)
    calls = [call("hang")] * 4 + [call("sync", text="a")]
    row = run_turn(executor, calls, by_name(hang, sync))
    assert contents(row) == [error("hang timed out after 0.2 s.")] * 4 + ["sync a"]
    assert executor.num_abandoned == 4
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)


def test_late_results_are_ignored(gate):
    def hang():
        gate.wait(LONG)
        return "late"

    executor = ToolExecutor(timeout=SHORT)
    row = run_turn(executor, [call("hang")], by_name(hang))
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)
    assert contents(row) == [error("hang timed out after 0.2 s.")]
    assert executor.collect() == []
    assert contents(run_turn(executor, [call("sync", text="a")], TOOLS)) == ["sync a"]


@KINDS
def test_an_environment_that_a_call_does_not_leave_takes_no_further_call(kind, gate, impatient):
    class Cave:
        def hang(self):
            return inner()

        def look(self):
            return "dark"

    inner = kind(lambda: gate.wait(LONG))
    cave, other = Cave(), Cave()
    executor = ToolExecutor(timeout=SHORT)
    tools = by_name(cave.hang, cave.look)
    busy = error("look was not run: the environment is still busy with a call that timed out.")
    row = run_turn(executor, [call("hang"), call("look"), call("look")], tools, cave)
    assert contents(row) == [error("hang timed out after 0.2 s."), busy, busy]
    assert row[1].failed and row[1].seconds is None
    assert executor.is_busy(cave)
    assert not executor.is_busy(other) and not executor.is_busy(None)
    assert contents(run_turn(executor, [call("look")], tools, cave)) == [busy]
    assert contents(run_turn(executor, [call("look")], by_name(other.look), other)) == ["dark"]
    gate.set()
    assert eventually(lambda: not executor.is_busy(cave))
    assert contents(run_turn(executor, [call("look")], tools, cave)) == ["dark"]


def test_a_tool_that_is_not_thread_safe_and_hangs_takes_no_further_call(gate):
    @not_thread_safe
    def search(hang: bool):
        return gate.wait(LONG) if hang else "found"

    executor = ToolExecutor(timeout=SHORT)
    (first,), (second,) = run_all(executor, [([call("search", hang=hang)], by_name(search)) for hang in (True, False)])
    assert first.content == error("search timed out after 0.2 s.")
    assert second.content == error("search was not run: the tool is still busy with a call that timed out.")
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)
    assert contents(run_turn(executor, [call("search", hang=False)], by_name(search))) == ["found"]


def test_a_failed_wait_in_one_lane_lets_the_other_lane_go_on(gate):
    class Room:
        def hang(self):
            gate.wait(LONG)

        @not_thread_safe
        def look(self):
            return "seen"

    blocked, free = Room(), Room()
    executor = ToolExecutor(timeout=SHORT)
    executor.submit("blocked", [call("hang"), call("look")], by_name(blocked.hang, blocked.look), blocked)
    executor.submit("free", [call("look")], by_name(free.look), free)
    collected = dict(executor.collect() + executor.collect())
    assert [result.failed for result in collected["blocked"]] == [True, True]
    assert contents(collected["free"]) == ["seen"]


def test_a_failed_wait_does_not_start_again_what_runs_before_it(gate):
    looks, seen = [], threading.Event()

    class Room:
        def hang(self):
            gate.wait(LONG)

        @not_thread_safe
        def look(self):
            looks.append(1)
            seen.wait(LONG)

    blocked, free = Room(), Room()
    executor = ToolExecutor(timeout=LONG)
    executor.submit("free", [call("look")], by_name(free.look), free)
    executor.submit("blocked", [call("hang"), call("look")], by_name(blocked.hang, blocked.look), blocked)
    assert eventually(lambda: len(executor._running) == 2)
    (hung,) = (execution for execution in executor._running if execution.call.name == "hang")
    hung.started -= LONG
    ((key, row),) = executor.collect()
    assert (key, [result.failed for result in row]) == ("blocked", [True, True])
    time.sleep(0.05)
    assert looks == [1]
    seen.set()
    assert [key for key, _ in executor.collect()] == ["free"]
    gate.set()
    assert eventually(lambda: not executor._running)
    assert not executor._lanes._queues


def test_an_environment_whose_running_call_is_not_abandoned_is_busy_too(gate):
    class Cave:
        def hang(self):
            gate.wait(LONG)

    cave = Cave()
    executor = ToolExecutor()
    executor.submit("a", [call("hang")], by_name(cave.hang), cave)
    assert eventually(lambda: executor.is_busy(cave))
    gate.set()
    executor.collect()
    assert not executor.is_busy(cave)


def test_too_many_abandoned_calls_end_the_run(gate):
    def hang():
        gate.wait(LONG)

    executor = ToolExecutor(concurrency=4, timeout=SHORT, max_abandoned=3)
    executor.submit("a", [call("hang")] * 3, by_name(hang))
    executor.collect()
    executor.submit("b", [call("hang"), call("sync", text="a")], by_name(hang, sync))
    with pytest.raises(RuntimeError, match=r"4 calls of hang timed out.*max_abandoned_calls=3.*tool_timeout=0\.2"):
        while True:
            assert executor.collect()
    assert executor.pending == 0
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)
    assert contents(run_turn(executor, [call("sync", text="a")], TOOLS)) == ["sync a"]


# Time limits of asynchronous calls


async def forever():
    await asyncio.sleep(LONG)


def test_a_task_that_times_out_is_cancelled_and_not_counted():
    ended = []

    async def sleep(i: int):
        try:
            await asyncio.sleep(LONG)
        finally:
            ended.append(i)

    executor = ToolExecutor(timeout=SHORT, max_abandoned=0)
    row = run_turn(executor, [call("sleep", i=i) for i in range(4)], by_name(sleep))
    assert contents(row) == [error("sleep timed out after 0.2 s.")] * 4
    assert eventually(lambda: sorted(ended) == list(range(4)))
    assert eventually(lambda: not executor._running)
    assert executor.num_abandoned == 0


def test_a_task_that_swallows_its_cancellation_is_abandoned_until_it_is_done(gate, monkeypatch):
    monkeypatch.setattr(EventLoop, "PATIENCE", LONG)

    async def stubborn():
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    executor = ToolExecutor(timeout=SHORT)
    assert run_turn(executor, [call("stubborn")], by_name(stubborn))[0].failed
    assert executor.num_abandoned == 0
    (execution,) = executor._running
    execution.cancelled -= LONG
    assert executor.num_abandoned == 1
    # The event loop is as good as before
    loop = executor._loop
    assert contents(run_turn(executor, [call("later", text="a")], TOOLS)) == ["async a"]
    assert executor._loop is loop
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)


def test_an_environment_goes_on_when_a_cancelled_task_has_left_it():
    class World:
        async def wait(self):
            try:
                await asyncio.sleep(LONG)
            finally:
                await asyncio.sleep(0.05)
                self.is_tidy = True

        def look(self):
            return self.is_tidy

    world = World()
    executor = ToolExecutor(timeout=SHORT)
    row = run_turn(executor, [call("wait"), call("look")], by_name(world.wait, world.look), world)
    assert contents(row) == [error("wait timed out after 0.2 s."), "True"]


def test_calls_behind_a_blocked_event_loop_are_moved_to_a_new_one(gate, impatient):
    begun, blocked = [], threading.Event()

    async def block():
        blocked.set()
        gate.wait(LONG)

    async def begin():
        begun.append(1)
        return "unharmed"

    executor = ToolExecutor(timeout=LONG)
    calls = [call("block"), call("begin"), call("hand_out"), call("begin")]
    executor.submit("turn", calls, {"block": block, "begin": begin, "hand_out": lambda: begin()})
    assert blocked.wait(10) and eventually(lambda: len(executor._handed_over) == 3)
    (execution,) = executor._running
    execution.started -= LONG
    ((_, row),) = executor.collect()
    assert contents(row) == [error("block timed out after 30 s."), "unharmed", "unharmed", "unharmed"]
    assert executor.num_abandoned == 1
    (lost,) = executor._lost_loops
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)
    assert not lost.is_alive()
    assert len(begun) == 3


def test_calls_that_wait_in_a_blocked_event_loop_count_once_and_go_on_when_it_does(gate, monkeypatch):
    monkeypatch.setattr(EventLoop, "PATIENCE", 0.05)
    waiting, blocked = [], threading.Event()

    async def block():
        while len(waiting) < 3:
            await asyncio.sleep(0.005)
        blocked.set()
        gate.wait(LONG)

    async def wait(i: int):
        waiting.append(i)
        while not blocked.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)

    executor = ToolExecutor(timeout=0.5, max_abandoned=1)
    row = run_turn(executor, [call("block")] + [call("wait", i=i) for i in range(3)], by_name(block, wait))
    assert [result.failed for result in row] == [True] * 4
    time.sleep(0.1)
    assert contents(run_turn(executor, [call("later", text="a")], TOOLS)) == ["async a"]
    assert executor.num_abandoned == 1
    gate.set()
    assert eventually(lambda: not executor._running and executor.num_abandoned == 0)


def test_a_call_that_has_begun_in_a_lost_event_loop_goes_on_when_it_does(gate, impatient):
    begun, blocked = threading.Event(), threading.Event()

    async def patient():
        begun.set()
        while not gate.is_set():
            await asyncio.sleep(0.005)
        return "unharmed"

    async def block():
        while not begun.is_set():
            await asyncio.sleep(0.005)
        blocked.set()
        gate.wait(LONG)

    executor = ToolExecutor(timeout=LONG)
    executor.submit("block", [call("block")], by_name(block))
    executor.submit("patient", [call("patient")], by_name(patient))
    assert blocked.wait(10)
    (long_ago,) = (execution for execution in executor._running if execution.call.name == "block")
    long_ago.started -= LONG
    assert contents(executor.collect()[0][1]) == [error("block timed out after 30 s.")]
    loop = executor._loop
    while executor._loop is loop:
        assert executor.collect(timeout=0.01) == []
    gate.set()
    ((key, row),) = executor.collect()
    assert (key, contents(row)) == ("patient", ["unharmed"])


def test_an_event_loop_that_a_finished_call_has_blocked_is_left_behind(gate, impatient):
    async def leave_a_block():
        asyncio.get_running_loop().call_later(0.02, gate.wait, LONG)
        return "done"

    executor = ToolExecutor(timeout=SHORT)
    assert contents(run_turn(executor, [call("leave_a_block")], by_name(leave_a_block))) == ["done"]
    time.sleep(0.1)
    assert contents(run_turn(executor, [call("later", text="a")], TOOLS)) == ["async a"]
    assert executor.num_abandoned == 1
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)


# Discarding


def test_discarded_calls_never_start_and_their_results_are_ignored(gate):
    begun = []

    class Cave:
        def hang(self, i: int):
            begun.append(i)
            gate.wait(LONG)
            return "late"

    cave = Cave()
    executor = ToolExecutor(concurrency=2, timeout=None)
    executor.submit("lane", [call("hang", i=1), call("hang", i=2)], by_name(cave.hang), cave)
    for i in (3, 4, 5):
        executor.submit(i, [call("hang", i=i), call("later", text="a")], {**by_name(Cave().hang), "later": later})
    assert eventually(lambda: len(begun) == 2)
    executor.discard()
    assert executor.pending == 0
    assert executor.collect() == []
    assert executor.is_busy(cave)
    assert executor.num_abandoned == 2
    # Both threads hang, yet there are two again
    assert contents(run_turn(executor, [call("sync", text="a")] * 3, TOOLS)) == ["sync a"] * 3
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)
    assert executor.collect() == []
    assert sorted(begun) == [1, 3]
    assert contents(run_turn(executor, [call("hang", i=6)], by_name(cave.hang), cave)) == ["late"]


def test_finished_rollouts_are_discarded_too():
    executor = ToolExecutor()
    executor.submit("a", [call("sync", text="a")], TOOLS)
    assert eventually(lambda: executor._finished.qsize() == 1)
    executor.discard()
    executor.discard()
    executor.submit("b", [call("sync", text="b")], TOOLS)
    assert [(key, contents(row)) for key, row in executor.collect()] == [("b", ["sync b"])]


@pytest.mark.parametrize("timeout", [None, LONG])
def test_discarded_coroutines_do_not_stand_in_the_way(timeout, gate, impatient):
    blocked, begun = threading.Event(), []

    async def block():
        blocked.set()
        gate.wait(LONG)

    async def begin():
        begun.append(1)

    executor = ToolExecutor(timeout=timeout)
    executor.submit("a", [call("block"), call("begin")], by_name(block, begin))
    assert blocked.wait(10)
    executor.discard()
    assert contents(run_turn(executor, [call("later", text="a")], TOOLS)) == ["async a"]
    gate.set()
    assert eventually(lambda: executor.num_abandoned == 0)
    assert not begun
    assert not executor._handed_over


@pytest.fixture
def interrupts():
    """Ctrl-C raises, even where the tests were started with SIGINT ignored, as shells do in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_heard_at_once_and_discards_everything(gate, interrupts):
    began = threading.Event()

    def hang():
        began.set()
        gate.wait(LONG)

    def interrupt():
        assert began.wait(10)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    executor = ToolExecutor(timeout=None)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_all(executor, [([call("hang")], by_name(hang))])
    assert not gate.is_set()
    assert executor.pending == 0
    assert contents(run_turn(executor, [call("sync", text="a")], TOOLS)) == ["sync a"]


def test_threads_are_initialized_before_any_tool():
    local = threading.local()

    def initialize():
        local.device = 1

    def device() -> int:
        return local.device

    async def device_later() -> int:
        return local.device

    (row,) = run([call("device"), call("device_later")], tools=by_name(device, device_later), initializer=initialize)
    assert contents(row) == ["1", "1"]


@pytest.mark.parametrize("name", ["sync", "later"])
def test_a_thread_that_cannot_be_set_up_is_an_error(name):
    def sync() -> str:
        return "done"

    async def later() -> str:
        return "done"

    def fail():
        raise ValueError("no such device")

    executor = ToolExecutor(timeout=None, initializer=fail)
    with pytest.raises(RuntimeError, match=r"A thread for tools could not be set up: ValueError\('no such device'\)"):
        for _ in range(2):  # the first call may be done before anybody looks
            run_turn(executor, [call(name)], by_name(sync, later))


def test_bound_methods_can_say_that_they_are_not_thread_safe():
    class Shelf:
        def look(self):
            return "book"

    shelf = Shelf()
    assert not_thread_safe(shelf.look) == shelf.look
    assert shelf.look.thread_safe is False


# The end


EXIT_WITH_HUNG_TOOLS = """
import asyncio, sys, time, types
for name, path in [("a2tgpo_trl", {root!r}), ("a2tgpo_trl.rollout", {root!r} + "/rollout")]:
    sys.modules[name] = types.ModuleType(name)  # without the imports of the package, which take long
    sys.modules[name].__path__ = [path]
from a2tgpo_trl.rollout.tools.calls import ToolCall
from a2tgpo_trl.rollout.tools.executor import ToolExecutor

def hang():
    time.sleep(1000)

async def sleep():
    await asyncio.sleep(1000)

async def block():
    time.sleep(1000)

executor = ToolExecutor(timeout=0.1)
tools = {{tool.__name__: tool for tool in (hang, sleep, block)}}
executor.submit(0, [ToolCall("sleep"), ToolCall("hang"), ToolCall("block")], tools)
((_, results),) = executor.collect()
print(len(results))
"""


def test_hung_tools_do_not_hold_up_the_end_of_the_interpreter():
    script = EXIT_WITH_HUNG_TOOLS.format(root=str(Path(executor.__file__).parents[2]))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "3\n", "")


def test_threads_end_with_the_executor(threads):
    executor = ToolExecutor()
    run_turn(executor, [call("sync", text="a"), call("later", text="b")], TOOLS)
    assert len(threads()) == 2
    del executor
    gc.collect()
    assert eventually(lambda: not threads())
