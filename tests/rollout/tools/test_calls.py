"""Arguments of calls against the tools' schemas: what is refused, in which words, and what is not looked at."""

import enum
from typing import Any, Literal, Optional, Union

import pytest

from a2tgpo_trl.rollout.tools.calls import argument_error, with_integers


class Unit(enum.Enum):
    METRE = "m"
    MILE = "mi"


def weather(
    city: str,
    days: int = 1,
    height: float = 0.0,
    hourly: bool = False,
    fields: list[str] = (),
    limits: dict[str, float] | None = None,
    place: int | str = 0,
    area: list[int] | str = "",
    span: tuple[int, str] = (1, "day"),
    grid: list[list[int]] = (),
    unit: Unit = Unit.METRE,
    mode: Literal["fast", 2, None] = "fast",
    note: Optional[str] = "",  # noqa: UP045
    either: Union[bool, list[str]] = False,  # noqa: UP007
    hint: str = None,  # noqa: RUF013
    extra: Any = None,
    items: list = (),
    options: dict = (),
    level: str = "low",
    flag: Literal[1, False] = 1,
):
    """
    Tell the weather.

    Args:
        city: Where.
        days: How long.
        height: How high.
        hourly: How often.
        fields: What.
        limits: Bounds by name.
        place: A number or a name.
        area: Corners or a name.
        span: A number and its unit.
        grid: Rows.
        unit: Of lengths.
        mode: How.
        note: For later.
        either: This or those.
        hint: If there is one.
        extra: Whatever.
        items: Some.
        options: Some more.
        level: How much (choices: ["low", "high"])
        flag: A number or not.
    """


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("city", "Lyon", None),
        ("city", "", None),
        ("city", 5, "a string, got 5 (integer)"),
        ("city", None, "a string, got null"),
        ("city", True, "a string, got true (boolean)"),
        ("city", ["Lyon"], 'a string, got ["Lyon"] (array)'),
        ("city", {"name": "東京"}, 'a string, got {"name": "東京"} (object)'),
        ("city", 1.5, "a string, got 1.5 (number)"),
        ("city", 3.0, "a string, got 3.0 (number)"),
        ("days", 3, None),
        ("days", 3.0, None),  # an integer to JSON Schema
        ("days", -0.0, None),
        ("days", -(10**30), None),
        ("days", 3.5, "an integer, got 3.5 (number)"),
        ("days", True, "an integer, got true (boolean)"),
        ("days", "3", 'an integer, got "3" (string)'),
        ("days", float("inf"), "an integer, got Infinity (number)"),
        ("days", float("nan"), "an integer, got NaN (number)"),
        ("height", 3, None),
        ("height", 3.5, None),
        ("height", False, "a number, got false (boolean)"),
        ("height", "3.5", 'a number, got "3.5" (string)'),
        ("hourly", True, None),
        ("hourly", 1, "a boolean, got 1 (integer)"),
        ("hourly", "true", 'a boolean, got "true" (string)'),
        ("fields", [], None),
        ("fields", ["wind", "rain"], None),
        ("fields", "wind", 'an array (each element a string), got "wind" (string)'),
        ("fields[1]", ["wind", 2], "a string, got 2 (integer)"),
        ("limits", {"wind": 1, "rain": 0.5}, None),
        ("limits", {}, None),
        ("limits", None, None),
        ("limits", [1], "an object or null, got [1] (array)"),
        ("limits.rain", {"wind": 1, "rain": "much"}, 'a number, got "much" (string)'),
        ("place", 5, None),
        ("place", "Lyon", None),
        ("place", 5.0, None),
        ("place", 5.5, "an integer or a string, got 5.5 (number)"),
        ("place", None, "an integer or a string, got null"),
        ("area", "Lyon", None),
        ("area", [1, 2], None),
        ("area", [1, "b"], 'an array (each element an integer) or a string, got [1, "b"] (array)'),
        ("area", 5, "an array (each element an integer) or a string, got 5 (integer)"),
        ("span", [1, "day"], None),
        ("span", [1], None),  # a length is not in the schema
        ("span[1]", [1, 2], "a string, got 2 (integer)"),
        ("grid", [[1, 2], [3]], None),
        ("grid", [[1.0, 2], [3]], None),
        ("grid[0][1]", [[1.0, 2.5]], "an integer, got 2.5 (number)"),
        ("grid[1][0]", [[1, 2], ["3"]], 'an integer, got "3" (string)'),
        ("grid[1]", [[1, 2], 3], "an array (each element an integer), got 3 (integer)"),
        ("unit", "mi", None),
        ("unit", "km", 'one of "m", "mi", got "km" (string)'),
        ("mode", "fast", None),
        ("mode", 2, None),
        ("mode", None, None),
        ("mode", True, 'one of "fast", 2, null, got true (boolean)'),
        ("mode", "slow", 'one of "fast", 2, null, got "slow" (string)'),
        ("note", None, None),
        ("note", 5, "a string or null, got 5 (integer)"),
        ("either", [], None),
        ("either", True, None),
        ("either", 1, "a boolean or an array (each element a string), got 1 (integer)"),
        ("hint", None, None),  # its own default
        ("hint", 5, "a string or null, got 5 (integer)"),
        ("extra", {"a": [None, {1: 2}]}, None),
        ("items", [1, "a", None], None),
        ("items", {}, "an array, got {} (object)"),
        ("options", {"a": [1]}, None),
        ("options", [], "an object, got [] (array)"),
        ("level", "high", None),
        ("level", "medium", 'one of "low", "high", got "medium" (string)'),
        ("flag", 1, None),
        ("flag", 1.0, None),
        ("flag", 2.0, "one of 1, false, got 2.0 (number)"),
        ("flag", False, None),
        ("flag", True, "one of 1, false, got true (boolean)"),
        ("flag", 0, "one of 1, false, got 0 (integer)"),
        ("unheard_of", 5, None),  # Python's own error names it
    ],
)
def test_types(name, value, expected):
    argument = name.split("[")[0].split(".")[0]
    error = argument_error(weather, {argument: value})
    assert error == (None if expected is None else f"Argument '{name}' must be {expected}.")


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("days", 3.0, 3),
        ("days", 230.0, 230),
        ("days", 1e300, int(1e300)),
        ("place", 5.0, 5),
        ("area", [1.0, 2], [1, 2]),
        ("span", [1.0, "day", 7.0], [1, "day", 7.0]),
        ("grid", [[1.0], [2.0, 3]], [[1], [2, 3]]),
        ("flag", 1.0, 1),
        ("height", 3.0, 3.0),
        ("limits", {"wind": 1.0}, {"wind": 1.0}),
        ("extra", [1.0], [1.0]),
        ("items", [1.0], [1.0]),
        ("city", "3.0", "3.0"),
        ("unheard_of", 3.0, 3.0),
    ],
)
def test_integers_reach_the_tool_as_integers(name, given, taken):
    assert argument_error(weather, {name: given}) is None
    found = with_integers(weather, {name: given})
    assert repr(found) == repr({name: taken})  # to == 3.0 is 3


def test_the_first_wrong_argument_is_named_and_missing_ones_are_not():
    assert argument_error(weather, {}) is None
    assert argument_error(weather, {"days": 2, "hourly": 2, "height": "x"}).startswith("Argument 'hourly' must be")


@pytest.mark.parametrize(
    ("arguments", "kind"), [("Lyon", "str"), (["Lyon"], "list"), (None, "NoneType"), (5, "int"), (True, "bool")]
)
def test_arguments_must_be_an_object(arguments, kind):
    expected = f"Arguments must be an object of named values, got {kind}."
    assert argument_error(weather, arguments) == expected
    assert argument_error(print, arguments) == expected  # a tool without a schema too


@pytest.mark.parametrize("value", ["x" * 10_000_000, ["x"] * 100_000, {"x" * 100_000: 1}])
def test_long_values_are_shortened(value):
    error = argument_error(weather, {"days": value})
    assert len(error) < 150 and "xxx" in error.replace('", "', "") and "…" in error


def test_long_keys_are_shortened():
    error = argument_error(weather, {"limits": {"k" * 10_000: "x"}})
    assert error.startswith("Argument 'limits.kkkk") and len(error) < 150


def test_values_that_cannot_be_shown():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert argument_error(weather, {"city": deep}) == "Argument 'city' must be a string, got something of type array."
    assert argument_error(weather, {"city": 10**5000}).endswith("got something of type integer.")
    assert argument_error(weather, {"city": {1, 2}}).endswith("got something of type set.")
    assert argument_error(weather, {"extra": deep}) is None
    while deep:  # or its destruction recurses
        deep = deep.pop()


class Library:
    def __init__(self):
        self.calls = 0

    def search(self, query: str, number: int = 3) -> str:
        """
        Look something up.

        Args:
            query: What.
            number: How many.
        """

    async def browse(self, url: str) -> str:
        """
        Fetch a page.

        Args:
            url: Its address.
        """

    @classmethod
    def count(cls, number: int) -> int:
        """
        Count.

        Args:
            number: Up to.
        """

    @staticmethod
    def spell(word: str) -> str:
        """
        Spell.

        Args:
            word: What.
        """


def test_methods():
    library = Library()
    assert argument_error(library.search, {"query": "Lyon", "number": 2}) is None
    assert argument_error(library.search, {"query": 5}) == "Argument 'query' must be a string, got 5 (integer)."
    assert argument_error(library.browse, {"url": 5}) == "Argument 'url' must be a string, got 5 (integer)."
    assert argument_error(library.count, {"number": "x"}).startswith("Argument 'number' must be an integer")
    assert argument_error(library.spell, {"word": 1}).startswith("Argument 'word' must be a string")
    assert argument_error(library.search, {"self": 5}) is None


def test_a_schema_is_made_once_for_all_instances(monkeypatch):
    from a2tgpo_trl.rollout.tools import calls

    asked, make = [], calls.get_json_schema
    monkeypatch.setattr(calls, "get_json_schema", lambda function: asked.append(function) or make(function))

    class Shelf:
        def take(self, title: str) -> str:
            """
            Take a book.

            Args:
                title: Which.
            """

    for _ in range(3):
        assert argument_error(Shelf().take, {"title": 5})
    assert asked == [Shelf.take]


def test_nested_objects(monkeypatch):
    from a2tgpo_trl.rollout.tools import calls

    point = {"type": "object", "properties": {"x": {"type": "integer"}, "name": {"type": ["string", "null"]}}}
    properties = {"path": {"type": "array", "items": point}, "shape": {"oneOf": [point, {"type": "image"}]}}
    properties |= {"open": {"additionalProperties": True}, "any": {"type": "array", "items": {}}}
    schema = {"function": {"parameters": {"properties": properties}}}
    monkeypatch.setattr(calls, "get_json_schema", lambda function: schema)

    def draw(path, shape=(), open=(), any=()):
        pass

    assert argument_error(draw, {"path": [{"x": 1, "name": None}, {"y": "?"}, {}]}) is None
    assert argument_error(draw, {"path": [{}, {"x": "1"}]}).startswith("Argument 'path[1].x' must be an integer")
    assert argument_error(draw, {"path": [{"name": 1}]}).startswith("Argument 'path[0].name' must be a string or null")
    assert argument_error(draw, {"shape": "whatever an image is"}) is None
    assert argument_error(draw, {"open": {"a": [1]}, "any": [1, "a", [[]]]}) is None


# ---- what is not checked


def untyped(query, number: int = 1):
    """
    Says nothing of its first parameter.

    Args:
        query: What.
        number: How many.
    """


def undocumented(query: str):
    pass


def half_documented(query: str, number: int):
    """
    Forgets one.

    Args:
        query: What.
    """


def odd_type(query: pytest.MonkeyPatch):
    """
    Takes what no model can write.

    Args:
        query: What.
    """


def variadic(*args: str, number: int = 1, **options: str):
    """
    Takes anything.

    Args:
        args: Some.
        number: How many.
        options: Others.
    """


class Callable_:
    """A tool that is an object."""

    __hash__ = None

    def __call__(self, query: str):
        """
        Look something up.

        Args:
            query: What.
        """


@pytest.mark.parametrize(
    "tool", [untyped, undocumented, half_documented, odd_type, Callable_(), print, dict, lambda query: query]
)
def test_tools_without_a_schema_are_not_checked(tool):
    assert argument_error(tool, {"query": object(), "number": "x"}) is None


def test_variadic_parameters_are_not_checked():
    assert argument_error(variadic, {"options": 5, "args": 5, "more": 5}) is None
    assert argument_error(variadic, {"number": "x"}) == "Argument 'number' must be an integer, got \"x\" (string)."
