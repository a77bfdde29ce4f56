"""Execution: results in the order of the calls, failures kept to their call, asynchronous calls side by side."""

import asyncio

import pytest

from a2tgpo_trl.rollout import ToolExecutor


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


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


TOOLS = {tool.__name__: tool for tool in (sync, later, hands_out_an_awaitable, broken, broken_later)}


def run(*rows, tools=TOOLS):
    return ToolExecutor().run([(list(calls), tools) for calls in rows])


def contents(row):
    return [result.content for result in row]


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


def test_results_are_in_the_order_of_the_rollouts():
    rows = run(
        [call("later", text="a"), call("sync", text="b")], [], [call("sync", text="c"), call("later", text="d")]
    )
    assert [contents(row) for row in rows] == [["async a", "sync b"], [], ["sync c", "async d"]]


def test_nothing_to_run():
    assert run() == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (call("nowhere", text="x"), "Tool nowhere not found."),
        (call("broken", text="x"), "'x'"),
        (call("broken_later", text="x"), "no x"),
        (call("sync"), "sync() missing 1 required positional argument: 'text'"),
        (call("later"), "later() missing 1 required positional argument: 'text'"),
        (call("sync", text="x", more="y"), "sync() got an unexpected keyword argument 'more'"),
        ({"type": "retrieval", "name": "vault"}, "Unsupported tool call type: retrieval"),
    ],
)
def test_a_failure_stays_with_its_call(bad, error):
    first, second = run([call("later", text="a"), bad, call("sync", text="b")], [call("sync", text="c")])
    assert contents(first) == ["async a", {"error": error}, "sync b"]
    assert [result.failed for result in first] == [False, True, False]
    assert contents(second) == ["sync c"]


def test_each_rollout_has_its_own_tools():
    class Counter:
        def __init__(self):
            self.calls = 0

        def count(self) -> int:
            self.calls += 1
            return self.calls

    one, other = Counter(), Counter()
    rows = ToolExecutor().run([([call("count")] * 2, {"count": one.count}), ([call("count")], {"count": other.count})])
    assert [contents(row) for row in rows] == [[1, 2], [1]]


def test_asynchronous_calls_of_all_rollouts_wait_side_by_side():
    arrived, everyone = [], asyncio.Event()

    async def meet(who: str) -> str:
        arrived.append(who)
        if len(arrived) == 3:
            everyone.set()
        # One after another, the first would wait here in vain
        await asyncio.wait_for(everyone.wait(), timeout=5)
        return who

    rows = run([call("meet", who="a"), call("meet", who="b")], [call("meet", who="c")], tools={"meet": meet})
    assert [contents(row) for row in rows] == [["a", "b"], ["c"]]


def test_an_executor_keeps_its_event_loop():
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    executor = ToolExecutor()
    first, second = (executor.run([([call("loop")], {"loop": loop})])[0][0].content for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("returned", "content"),
    [
        ("text", "text"),
        (3, "3"),
        (None, "None"),
        ({"k": "v"}, "{'k': 'v'}"),
        ([{"type": "text", "text": "block"}], [{"type": "text", "text": "block"}]),
    ],
)
def test_message_of_a_result(returned, content):
    ((result,),) = run([call("give")], tools={"give": lambda: returned})
    assert result.message() == {"role": "tool", "name": "give", "content": content}


def test_message_of_a_failure():
    ((result,),) = run([call("broken", text="x")])
    assert result.message() == {"role": "tool", "name": "broken", "content": str({"error": "'x'"})}


def test_a_cancelled_call_is_a_failure():
    async def cancelled() -> str:
        raise asyncio.CancelledError

    ((result,),) = run([call("cancelled")], tools={"cancelled": cancelled})
    assert result.failed
