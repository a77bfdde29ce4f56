"""Rewards by execution."""

import doctest
import sqlite3

import pytest

from a2tgpo_trl.rollout import ToolCall, ToolResult, Turn
from a2tgpo_trl.sql import Database, SQLRewards, is_ordered, rewards, rows_f1, same_rows

CITIES = "SELECT name FROM city WHERE country = 'France'"
ORDERED = f"{CITIES} ORDER BY name"


@pytest.fixture
def scored(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("CREATE TABLE city (name, country)")
        rows = [("Nice", "France"), ("Lyon", "France"), ("Bern", "Switzerland"), ("Basel", "Switzerland")]
        connection.executemany("INSERT INTO city VALUES (?, ?)", rows)
    connection.close()
    return SQLRewards(Database(tmp_path / "a.db"))


def answers(text):
    return Turn([1], {"content": text})


def calls(name, *arguments):
    """A turn whose calls were executed; what they gave does not matter."""
    results = [ToolResult(name, "")] * len(arguments)
    return Turn([1], {"content": ""}, calls=[ToolCall(name, given) for given in arguments], results=results)


def asks(*queries):
    return calls("query", *({"sql": sql} for sql in queries))


def test_the_examples():
    assert doctest.testmod(rewards) == (0, 2)


@pytest.mark.parametrize(
    ("written", "reference", "reward"),
    [
        (ORDERED, CITIES, 1),  # in any order
        (f"{CITIES} ORDER BY name DESC", CITIES, 1),
        (ORDERED, ORDERED, 1),
        (f"{CITIES} ORDER BY name DESC", ORDERED, 0),
        (f"{CITIES} UNION ALL {CITIES}", CITIES, 0),  # each row as often
        (f"{CITIES} LIMIT 1", CITIES, 0),
        (CITIES.replace("name", "name, country"), CITIES, 0),
        ("SELECT missing FROM city", CITIES, 0),
        ("DELETE FROM city", CITIES, 0),
        (CITIES, ["SELECT 1", CITIES], 1),  # the best of several
        ("SELECT 2.0", "SELECT 2", 1),
    ],
)
def test_execution_match(scored, written, reference, reward):
    assert scored.execution_match([[asks(CITIES), answers(f"<answer>{written}</answer>")]], [reference]) == [reward]


def test_rollouts_without_a_final_query_have_no_match(scored):
    cut = [answers("<answer>SELECT")]
    tool_last = [answers(f"<answer>{CITIES}</answer>"), asks(CITIES)]
    assert scored.execution_match([cut, tool_last, []], [CITIES] * 3) == [0, 0, 0]


def test_turns_earn_what_they_came_nearer(scored):
    half = f"{CITIES} LIMIT 1"  # F1 of 1 of 1 and 1 of 2 is 2/3
    rollout = [
        asks("SELECT missing FROM city"),
        asks(half),
        asks(half),
        asks(CITIES, half),
        asks("SELECT name FROM city"),
        answers(f"<answer>{CITIES}</answer>"),
    ]
    (row,) = scored.query_reward([rollout], [[CITIES]])
    assert row == [-0.1, pytest.approx(2 / 3), 0, pytest.approx(1 / 3), 0, None]


@pytest.mark.parametrize("arguments", [{}, {"sql": 3}])
def test_a_call_without_a_query_has_failed(scored, arguments):
    turn = calls("query", arguments)
    assert scored.query_reward([[turn]], [CITIES]) == [[-0.1]]
    assert SQLRewards(scored.database, penalty=-1.0).query_reward([[turn]], [CITIES]) == [[-1.0]]


def test_other_tools_earn_nothing(scored):
    assert scored.query_reward([[calls("search", {"query": "x"})]], [CITIES]) == [[None]]


def test_queries_that_were_not_executed_earn_nothing(scored):
    refused = [Turn([1], {}, calls=asks(sql).calls) for sql in (CITIES, "SELECT missing FROM city")]
    assert scored.query_reward([[asks(f"{CITIES} LIMIT 1"), *refused]], [CITIES]) == [
        [pytest.approx(2 / 3), None, None]
    ]


def test_a_reference_that_fails_is_named(scored):
    for reward in (scored.execution_match, scored.query_reward):
        with pytest.raises(ValueError, match="'SELECT missing' in 'answer' fails: no such column: missing"):
            reward(turns=[[asks(CITIES)]], answer=["SELECT missing"])


def test_references_have_more_rows_and_time_than_the_model(scored):
    numbers = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 2000) SELECT x FROM r"
    scored = SQLRewards(Database(scored.database.path, seconds=1e-6))
    assert scored.query_reward([[asks(numbers)]], [numbers]) == [[-0.1]]
    assert scored.execution_match([[answers(f"<answer>{numbers}</answer>")]], [numbers]) == [0]


def test_references_are_checked_at_the_start(scored):
    scored.check([CITIES, [CITIES, ORDERED]])
    with pytest.raises(ValueError, match="'SELECT missing' in 'answer' fails: no such column: missing"):
        scored.check([CITIES, [CITIES, "SELECT missing"]])


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t order  by a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT (1))", False),
        ("SELECT RANK() OVER (ORDER BY a) FROM t", False),
        ("SELECT RANK() OVER (ORDER BY a) FROM t ORDER BY ABS(a)", True),
        ("SELECT 'it''s (', \"order by\" FROM t -- order by a", False),
        ("SELECT border, bylaw FROM t", False),
    ],
)
def test_order_is_asked_for_by_the_whole_query_only(sql, ordered):
    assert is_ordered(sql) == ordered


def test_results_are_compared_as_multisets():
    assert same_rows([(1,), (2,)], [(2,), (1,)]) and not same_rows([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert not same_rows([(1,), (1,), (2,)], [(1,), (2,), (2,)])
    assert rows_f1([], []) == 1 and rows_f1([(1,)], []) == 0 and rows_f1([(1,), (1,)], [(1,)]) == pytest.approx(2 / 3)
