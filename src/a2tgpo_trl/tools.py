"""Two tools as examples: one that computes, and one that ends the rollout.

The rewards of this package take the argument of [`finish`] for the answer. With text tags give it the tag of answers,
`tool_tags={"finish": "answer"}`: beliefs are measured in that form.
"""

import ast
import operator
from collections.abc import Callable

from .rollout import EndRollout

MOST_DIGITS = 1000
"""Of a power's result, about: a model can write `9**9**9`."""
MOST_CHARACTERS = 500
"""Of an expression: nested deeper than Python's stack, it could not be evaluated."""


def calculator(expression: str) -> str:
    """
    Computes an arithmetic expression.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, such as "(3 + 4) * 2".

    Returns:
        The value.
    """
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"The expression has {len(expression)} characters; at most {MOST_CHARACTERS} are read.")
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{expression!r} is no arithmetic expression.") from error
    return str(_value(tree))


def finish(answer: str) -> str:
    """
    Gives the final answer and ends the conversation.

    Args:
        answer: The answer, in as few words as possible.

    Returns:
        Nothing: the conversation is over.
    """
    raise EndRollout


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    raise ValueError("An expression has numbers, + - * / // % ** and parentheses only.")


def _power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and isinstance(exponent, int) and exponent * base.bit_length() > 3.33 * MOST_DIGITS:
        raise ValueError(f"{base}**{exponent} has more than {MOST_DIGITS} digits.")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError(f"{base}**{exponent} is no real number.")
    return value


_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: dict[type, Callable] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
