"""Exact arithmetic on tensor lengths: Python integers, or integer expressions in a model's symbolic lengths.

Every expression is held in one normal form (an expanded polynomial whose atoms are symbols, floors, minima and maxima),
so that two lengths are known to be equal exactly where they compare equal. Symbols stand for integers of at least zero:
an ONNX dimension may be empty. Integers never reach sympy, which is a thousand times slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import lcm
from typing import TypeAlias

import sympy

Dim: TypeAlias = "int | sympy.Expr"
"""A length, or an element of an integer tensor that lengths were computed into."""


def symbol(name: str) -> sympy.Symbol:
    """The symbol of a length that is not known before the model runs: some integer, zero or more."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def add(a: Dim, b: Dim) -> Dim:
    """a + b."""
    return a + b if isinstance(a, int) and isinstance(b, int) else _add(a, b)


def subtract(a: Dim, b: Dim) -> Dim:
    """a - b."""
    return a - b if isinstance(a, int) and isinstance(b, int) else _add(a, multiply(b, -1))


def multiply(a: Dim, b: Dim) -> Dim:
    """a * b."""
    return a * b if isinstance(a, int) and isinstance(b, int) else _multiply(a, b)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = multiply(result, dim)
    return result


def floor_divide(a: Dim, b: Dim) -> Dim | None:
    """a / b rounded towards minus infinity, or None where that has no normal form: b symbolic and no divisor of a."""
    if isinstance(b, int):
        if b <= 0:
            return None
        return a // b if isinstance(a, int) else _floor_divide(a, b)
    return divide_exactly(a, b)


def divide_exactly(a: Dim, b: Dim) -> Dim | None:
    """The q with a = q * b as polynomials; None where there is none, and where b is zero."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    return None if b == 0 else _divide_exactly(a, b)


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller one: a or b where that is certain, else a symbolic minimum."""
    if at_most(a, b):
        return a
    return b if at_most(b, a) else _normal(sympy.Min(a, b))


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger one: a or b where that is certain, else a symbolic maximum."""
    if at_most(a, b):
        return b
    return a if at_most(b, a) else _normal(sympy.Max(a, b))


def at_least(dim: Dim, bound: int) -> bool:
    """Whether dim >= bound holds whatever the symbols are; False also where that is not known."""
    if isinstance(dim, int):
        return dim >= bound
    lowest = _lower_bound(dim)
    return lowest is not None and bool(lowest >= bound)


def at_most(a: Dim, b: Dim) -> bool:
    """Whether a <= b holds whatever the symbols are; False also where that is not known."""
    return at_least(subtract(b, a), 0)


def broadcast(a: Dim, b: Dim) -> Dim | None:
    """The length of two aligned axes after broadcasting, or None where it depends on what the symbols are."""
    if b in (a, 1):
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        return a  # b is 1 or a, or the model fails
    if isinstance(b, int):
        return b
    if _is_bounded_by(a, b):
        return b
    return a if _is_bounded_by(b, a) else None


def evaluate(dim: Dim, lengths: Mapping[str, int]) -> int | None:
    """The number that dim is when each named symbol has the given length; None while a symbol is missing."""
    if isinstance(dim, int):
        return dim
    found = dim.subs({free: lengths[free.name] for free in dim.free_symbols if free.name in lengths})
    return int(found) if found.is_Integer else None


def symbols_of(dim: Dim) -> frozenset[str]:
    """Names of the symbols in dim."""
    return frozenset() if isinstance(dim, int) else frozenset(free.name for free in dim.free_symbols)


def _normal(expression: sympy.Expr) -> Dim:
    expanded = sympy.expand(expression)
    return int(expanded) if expanded.is_Integer else expanded


@lru_cache(maxsize=1 << 16)
def _add(a: Dim, b: Dim) -> Dim:
    return _normal(sympy.sympify(a) + b)


@lru_cache(maxsize=1 << 16)
def _multiply(a: Dim, b: Dim) -> Dim:
    return _normal(sympy.sympify(a) * b)


@lru_cache(maxsize=1 << 16)
def _floor_divide(a: sympy.Expr, b: int) -> Dim:
    """Splits a into b * whole + rest with coefficients of rest in [0, b), so that equal quotients look equal."""
    whole, rest = sympy.Integer(0), sympy.Integer(0)
    for term in sympy.Add.make_args(a):
        coefficient, factor = term.as_coeff_Mul()
        whole += (int(coefficient) // b) * factor
        rest += (int(coefficient) % b) * factor
    if rest.is_Integer:
        return _normal(whole)
    constant, variable = rest.as_coeff_Add()
    if isinstance(variable, sympy.floor):  # floor((floor(p / m) + c) / b) = floor((p + c m) / (m b))
        inner = variable.args[0]
        scale = lcm(*(int(term.as_coeff_Mul()[0].q) for term in sympy.Add.make_args(inner)))
        return _normal(whole + sympy.floor((inner * scale + constant * scale) / (scale * b)))
    return _normal(whole + sympy.floor(sympy.expand(rest / b)))


@lru_cache(maxsize=1 << 16)
def _divide_exactly(a: Dim, b: Dim) -> Dim | None:
    if a == 0:
        return 0
    divisor = sympy.sympify(b)
    terms = [term / divisor for term in sympy.Add.make_args(sympy.sympify(a))]
    if all(sympy.denom(term) == 1 for term in terms):
        return _normal(sympy.Add(*terms))
    if not isinstance(divisor, sympy.Add):
        return None
    quotient = sympy.cancel(sympy.sympify(a) / divisor)
    return _normal(quotient) if sympy.denom(sympy.together(quotient)) == 1 else None


@lru_cache(maxsize=1 << 16)
def _lower_bound(dim: sympy.Expr) -> sympy.Rational | None:
    """A number that dim never falls below, found by interval arithmetic over symbols in [0, infinity)."""
    if dim.is_Rational:
        return dim
    if dim.is_Symbol:
        return sympy.Integer(0)
    if isinstance(dim, sympy.floor):
        inner = _lower_bound(dim.args[0])
        return None if inner is None else sympy.floor(inner)
    if isinstance(dim, sympy.Max):
        return max((bound for part in dim.args if (bound := _lower_bound(part)) is not None), default=None)
    parts = [bound for part in dim.args if (bound := _lower_bound(part)) is not None]
    if len(parts) < len(dim.args):
        return None
    if isinstance(dim, sympy.Min):
        return min(parts)
    if isinstance(dim, sympy.Add):
        return sympy.Add(*parts)
    if isinstance(dim, sympy.Mul | sympy.Pow) and all(part >= 0 for part in parts):
        return dim.func(*parts)
    return None


def _is_bounded_by(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether a = min(n, b), n > 1: it broadcasts against b only while it is b."""
    return isinstance(a, sympy.Min) and b in a.args and all(part == b or at_least(part, 2) for part in _as_dims(a.args))


def _as_dims(parts: Iterable[sympy.Expr]) -> list[Dim]:
    return [int(part) if part.is_Integer else part for part in parts]
