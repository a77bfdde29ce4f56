"""A database that a model may read: what comes back, and what hostile SQL comes to."""

import doctest
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from a2tgpo_trl.sql import Database, QueryError, database


@pytest.fixture
def file(tmp_path):
    """With characters that a URI would take for its own parts."""
    path = tmp_path / "100 % real?#.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE city (name TEXT, inhabitants INTEGER)")
        connection.executemany("INSERT INTO city VALUES (?, ?)", [(f"c{i}", i) for i in range(2000)])
    connection.close()
    return path


def test_the_example():
    assert doctest.testmod(database) == (0, 4)


def test_rows_are_shown_as_sql_writes_them(file):
    assert Database(file).query("SELECT 'it''s', 1, 1.5, NULL, X'00ff'") == "'it''s', 1, 1.5, NULL, X'00FF'"
    assert Database(file).query("SELECT name FROM city WHERE 0") == "no rows"
    shown = Database(file, shown_rows=2).query("SELECT inhabitants FROM city LIMIT 5")
    assert shown == "0\n1\nand 3 more rows"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DROP TABLE city", "not authorized"),
        ("DELETE FROM city", "not authorized"),
        ("INSERT INTO city VALUES ('x', 1)", "not authorized"),
        ("CREATE TEMP TABLE mine (x)", "not authorized"),
        ("ATTACH 'new.db' AS other", "not authorized"),
        ("VACUUM INTO 'new.db'", "authoriz"),
        ("PRAGMA journal_mode = WAL", "not authorized"),
        ("BEGIN", "not authorized"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT printf('%.*c', 2000000000, 'x')", "not authorized"),
        ("SELECT zeroblob(1000000000)", "too big"),
        ("SELECT zeroblob(19000) FROM city", "more than 1000000 characters"),
        ("SELECT * FROM city", "more than 1000 rows"),
        ("SELECT RTRIM(name, 'c') FROM city", "one argument only"),
        (f"SELECT {', '.join(['+'.join(['inhabitants'] * 8)] * 99)} FROM city", "too complex"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELEC 1", "syntax error"),
        ("SELECT missing FROM city", "no such column: missing"),
        ("SELECT ?", "bindings"),
        ("SELECT 1\0", "null character"),
        ("SELECT '\ud800'", "surrogates"),
        ("SELECT CAST(X'ff' AS TEXT)", "UTF-8"),
        ("-- nothing", "no SELECT"),
        ("", "no SELECT"),
    ],
)
def test_what_is_no_small_select_is_an_error(file, sql, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = file.read_bytes()
    with pytest.raises(QueryError, match=said):
        Database(file).query(sql)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT COUNT(*) FROM r",
        "SELECT COUNT(*) FROM city a, city b, city c",
        "SELECT MAX(LENGTH(x)) FROM (SELECT zeroblob(19000) x FROM city a, city b ORDER BY random())",
    ],
)
def test_endless_queries_end(file, sql):
    start = time.monotonic()
    with pytest.raises(QueryError, match=r"more than 0\.1 s"):
        Database(file, seconds=0.1).query(sql)
    assert time.monotonic() - start < 5


TEXTS = "FROM (SELECT hex(zeroblob({length})) a, hex(zeroblob({half})) || '1' b FROM city LIMIT 1)"
GLOB = "a GLOB '*[0-0][0-0][0-0][0-0][0-0][0-0][0-0][0-0]1'"
TRIM = "{side}(replace(hex(zeroblob({length})), '0', 'a'), replace(hex(zeroblob(4000)), '0', 'b') || 'a')"


@pytest.mark.parametrize("length", [4_900, 9_900, 49_000])
@pytest.mark.parametrize(
    "columns",
    [TRIM.format(side=side, length="{length}") for side in ("trim", "ltrim", "rtrim")]
    + ["instr(a, b), " * 98 + "instr(a, b)", "replace(a, b, ''), " * 98 + "1", f"{GLOB}, " * 98 + GLOB],
)
def test_queries_without_a_loop_are_short(file, columns, length):
    start = time.thread_time()
    with suppress(QueryError):
        Database(file, seconds=0.1).query(f"SELECT {columns} {TEXTS}".format(length=length, half=length // 2))
    assert time.thread_time() - start < 2


def test_one_argument_is_enough_to_trim(file):
    assert Database(file).rows("SELECT trim(' a '), ltrim(' a '), rtrim(' a ')") == [("a", "a ", " a")]


def test_the_file_stays_read_only_without_the_authorizer(file, monkeypatch):
    monkeypatch.setattr(database, "_authorize", lambda *action: sqlite3.SQLITE_OK)
    with pytest.raises(QueryError, match="readonly"):
        Database(file).query("DELETE FROM city")


def test_recursion_that_ends_is_allowed(file):
    numbers = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 3) SELECT x FROM r"
    assert Database(file).rows(numbers) == [(1,), (2,), (3,)]


def test_threads_ask_at_once(file):
    asked = Database(file)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(asked.rows, [f"SELECT name FROM city WHERE inhabitants = {i}" for i in range(200)]))
    assert found == [[(f"c{i}",)] for i in range(200)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no database 'none\.db'"):
        Database("none.db")
