"""Calculations as text: made of a problem's equation, and worth a number."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping

__all__ = ["calculation", "value"]

NUMBER = r"\d+(?:\.\d+)?"
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculation(equation: str, problem: str) -> str:
    """Return an equation in prefix form, whose numbers are counted as they stand in the problem, as infix.

    Raise `IndexError` where the problem has no such number.

    Examples:
        >>> calculation("- number1 number0", "Arthur baked 35 muffins . How many more to have 83 ?")
        '83 - 35'
    """
    text = _infix(iter(equation.split()), re.findall(NUMBER, problem))
    return text[1:-1] if text.startswith("(") else text


def _infix(symbols: Iterator[str], numbers: list[str]) -> str:
    symbol = next(symbols)
    if symbol in "+-*/":
        return f"({_infix(symbols, numbers)} {symbol} {_infix(symbols, numbers)})"
    return numbers[int(symbol.removeprefix("number"))] if symbol.startswith("number") else symbol


def value(text: str) -> float | None:
    """Return what a calculation is worth; None where the text is none, or divides by zero.

    Examples:
        >>> value("(3 + 4) * 2"), value("about 14")
        (14.0, None)
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return None


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=number) if type(number) in (int, float):  # a bool is an int, too
            return float(number)
        case ast.BinOp(left=left, op=kind, right=right) if type(kind) in OPERATORS:
            return OPERATORS[type(kind)](_value(left), _value(right))
    raise ValueError("no calculation")
