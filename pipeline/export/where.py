"""Read the text of `--where` as an Arrow expression over the columns of the index: "height >= 480 and caption != None".

It is Python's syntax with names, numbers, texts, None, True, False, comparisons, `in [...]`, `and`, `or`, `not`,
brackets, and + - * /. Nothing is called or evaluated.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from pipeline.errors import ConfigError

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_JOINED: dict[type[ast.boolop], Callable[[Any, Any], Any]] = {ast.And: operator.and_, ast.Or: operator.or_}


def expression_of(text: str) -> pyarrow.dataset.Expression:
    """Return the expression.

    Raises:
        ConfigError: the text is no such expression. The message names the part that is not understood.
    """
    try:
        found = _translated(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ConfigError(f"--where {text!r}: {error.msg} at character {error.offset}") from None
    except ConfigError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError, pa.ArrowException) as error:
        raise ConfigError(f"--where {text[:200]!r} cannot be an expression: {error}") from None
    if not isinstance(found, pc.Expression):
        raise ConfigError(f"--where {text!r} names no column")
    return found


def _translated(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name):
            return pc.field(name)
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_expression(operand)
        case ast.BoolOp(op=op, values=values):
            return reduce(_JOINED[type(op)], map(_expression, values))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_translated(left), _translated(right))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = zip([left, *rights[:-1]], ops, rights, strict=True)
            return reduce(operator.and_, (_compared(one, op, other) for one, op, other in pairs))
    raise _not_understood(node)


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> pyarrow.dataset.Expression:
    column = _translated(left)
    if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.List | ast.Tuple):
        is_in = _expression(left).isin([_translated(value) for value in right.elts])
        return ~is_in if isinstance(op, ast.NotIn) else is_in
    if isinstance(right, ast.Constant) and right.value is None:
        is_null = _expression(left).is_null()
        return is_null if isinstance(op, ast.Eq | ast.Is) else ~is_null
    if type(op) not in _COMPARISONS:
        raise _not_understood(right)
    return _COMPARISONS[type(op)](column, _translated(right))


def _expression(node: ast.expr) -> pyarrow.dataset.Expression:
    found = _translated(node)
    if not isinstance(found, pc.Expression):
        raise _not_understood(node)
    return found


def _not_understood(node: ast.expr) -> ConfigError:
    return ConfigError(
        f"--where: {ast.unparse(node)!r} is not understood here; allowed are columns, values, comparisons, and, or, not"
    )
