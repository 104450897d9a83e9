"""The innermost loops in vector registers, for compiled code: products, exponentials and sums of rows of scores.

BLAS is not used: its threads would fight with the tasks that run side by side. On a busy machine OpenBLAS can take
hundreds of times as long for the small products of attention as one thread alone, and how many threads it uses is one
setting for the whole process, which is the user's. A tile of four rows by two vectors keeps a core as busy as BLAS
does, and the scores are then still in its nearest cache.

The functions are written in LLVM's own operations on vectors of sixteen float32 numbers, which it splits where the
registers of the machine are shorter. Arrays are float32 and contiguous, and rows are filled up to whole vectors.

numba keeps the compiled passes on disk and looks only at `numba_kernel.py` to see whether they are out of date: after a
change here, save that file too.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN201, ARG001

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as untyped_intrinsic

intrinsic: Any = untyped_intrinsic

LANES: Final = 16
"""Numbers in a vector."""

_WIDE: Final = llvmlite.binding.get_host_cpu_features().get("avx512f", False)

TILE_ROWS: Final = 4 if _WIDE else 6
"""Rows of a tile: with TILE_VECTORS as many sums as the registers hold, and enough not to wait for one another."""

TILE_VECTORS: Final = 2 if _WIDE else 1
"""Vectors of columns of a tile."""

_FLOAT: Final = ir.FloatType()
_INT32: Final = ir.IntType(32)
_INT64: Final = ir.IntType(64)
_VECTOR: Final = ir.VectorType(_FLOAT, LANES)
_INTEGERS: Final = ir.VectorType(_INT32, LANES)

_ROUND: Final = 12582912.0
"""1.5 * 2^23: added to a float32, it leaves the nearest integer in the low bits."""

_POLYNOMIAL: Final = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
"""Of (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, highest power first (Cephes)."""


@intrinsic
def multiply_tile(context, left, row, right, panel, product, at):
    """One tile of a product: `product[at + r, column] = sum over f of left[row + r, f] * right[panel, f, lane]`.

    The tile takes TILE_ROWS rows of `left` (row, depth) and TILE_VECTORS panels of `right` (panel, depth, LANES), all
    of which must be there, and column = panel * LANES + lane.
    """
    return types.void(left, row, right, panel, product, at), _tile_of_product(TILE_VECTORS)


@intrinsic
def multiply_narrow_tile(context, left, row, right, panel, product, at):
    """As `multiply_tile`, of a single panel."""
    return types.void(left, row, right, panel, product, at), _tile_of_product(1)


def _tile_of_product(vectors: int) -> Callable[..., Any]:
    def generate(code: _Code, left: Any, row: Any, right: Any, panel: Any, product: Any, at: Any) -> None:
        rows = [code.row(left, row, r, _FLOAT) for r in range(TILE_ROWS)]
        panels = [code.row(right, panel, v, _VECTOR) for v in range(vectors)]

        def add_products(place: Any, sums: Sequence[Any]) -> list[Any]:
            columns = [code.load(pointer, place) for pointer in panels]
            values = [code.everywhere(code.load(pointer, place)) for pointer in rows]
            products = [(value, column) for value in values for column in columns]
            return [code.fma(value, column, total) for (value, column), total in zip(products, sums, strict=True)]

        depth = code.length(left, 1)
        sums = code.loop(depth, add_products, [code.constant(0.0)] * (TILE_ROWS * vectors))
        for r in range(TILE_ROWS):
            start = code.row(product, at, r, _VECTOR)
            for v in range(vectors):
                code.store(sums[r * vectors + v], start, code.builder.add(panel, _INT64(v)))

    return _compiled(generate)


@intrinsic
def exponentiate(context, block, at, shift, count, weights):
    """Replaces the first `count` numbers of a row by exp(number - shift), the rest of its last vector by 0.

    The weighted sum of the exponentials. They are right to 1e-7 for arguments up to 88, 0 below -87, and NaN for NaN
    and above.
    """

    def generate(code: _Code, block: Any, at: Any, shift: Any, count: Any, weights: Any) -> Any:
        numbers, of_weights = code.row(block, at, 0, _VECTOR), code.start(weights)
        shifts = code.everywhere(shift)

        def add_exponentials(place: Any, sums: Sequence[Any], mask: Any = None) -> list[Any]:
            result = code.exp(code.builder.fsub(code.load(numbers, place), shifts))
            if mask is not None:
                result = code.builder.select(mask, result, code.constant(0.0))
            code.store(result, numbers, place)
            return [code.fma(result, code.load(of_weights, place), sums[0])]

        whole = code.builder.udiv(count, _INT64(LANES))
        sums = code.loop(whole, add_exponentials, [code.constant(0.0)])
        rest = code.builder.sub(count, code.builder.mul(whole, _INT64(LANES)))
        mask = code.lanes_below(rest)
        left_over = code.builder.zext(code.builder.icmp_unsigned(">", rest, _INT64(0)), _INT64)
        sums = code.loop(left_over, lambda _, sums: add_exponentials(whole, sums, mask), sums)
        return code.total(sums[0])

    return types.float32(block, at, shift, count, weights), _compiled(generate)


@intrinsic
def add_four_rows(context, block, at, shares, plain, weighted):
    """Adds four rows to `plain`, and their sum weighted by the four `shares` to `weighted`."""

    def generate(code: _Code, block: Any, at: Any, shares: Any, plain: Any, weighted: Any) -> None:
        rows = [code.row(block, at, r, _VECTOR) for r in range(4)]
        factors = [code.everywhere(code.load(code.start(shares, _FLOAT), _INT64(r))) for r in range(4)]
        of_plain, of_weighted = code.start(plain), code.start(weighted)

        def add(place: Any, _: Sequence[Any]) -> list[Any]:
            values = [code.load(pointer, place) for pointer in rows]
            total, used = code.load(of_plain, place), code.load(of_weighted, place)
            for value, factor in zip(values, factors, strict=True):
                total, used = code.builder.fadd(total, value), code.fma(value, factor, used)
            code.store(total, of_plain, place)
            code.store(used, of_weighted, place)
            return []

        code.loop(code.builder.udiv(code.length(plain, 0), _INT64(LANES)), add, [])

    return types.void(block, at, shares, plain, weighted), _compiled(generate)


@intrinsic
def dot_row(context, block, at, vector):
    """Sum of the products of a row with a vector of whole vectors' length."""

    def generate(code: _Code, block: Any, at: Any, vector: Any) -> Any:
        row, other = code.row(block, at, 0, _VECTOR), code.start(vector)

        def add(place: Any, sums: Sequence[Any]) -> list[Any]:
            return [code.fma(code.load(row, place), code.load(other, place), sums[0])]

        length = code.builder.udiv(code.length(vector, 0), _INT64(LANES))
        return code.total(code.loop(length, add, [code.constant(0.0)])[0])

    return types.float32(block, at, vector), _compiled(generate)


def _compiled(generate: Callable[..., Any]) -> Callable[..., Any]:
    """What numba calls for the code of an intrinsic: arrays become pointers with lengths and strides."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Sequence[Any]) -> Any:
        given = [
            context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        result = generate(_Code(builder), *given)
        return context.get_dummy_value() if result is None else result

    return codegen


class _Code:
    """Writes operations on vectors."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def row(self, array: Any, row: Any, offset: int, element: ir.Type) -> Any:
        """Pointer to the start of row `row + offset` along the first dimension."""
        place = self.builder.mul(self.builder.add(row, _INT64(offset)), self.builder.extract_value(array.strides, 0))
        first = self.builder.bitcast(array.data, ir.IntType(8).as_pointer())
        return self.builder.bitcast(self.builder.gep(first, [place]), element.as_pointer())

    def start(self, array: Any, element: ir.Type = _VECTOR) -> Any:
        """Pointer to the start of an array."""
        return self.builder.bitcast(array.data, element.as_pointer())

    def length(self, array: Any, dimension: int) -> Any:
        """Length along a dimension."""
        return self.builder.extract_value(array.shape, dimension)

    def load(self, pointer: Any, place: Any) -> Any:
        """The element at a place."""
        return self.builder.load(self.builder.gep(pointer, [place]), align=4)

    def store(self, value: Any, pointer: Any, place: Any) -> None:
        """Write the element at a place."""
        self.builder.store(value, self.builder.gep(pointer, [place]), align=4)

    def constant(self, value: float) -> Any:
        """A vector of one number."""
        return ir.Constant(_VECTOR, [value] * LANES)

    def everywhere(self, value: Any) -> Any:
        """A vector of a number that is only known when the code runs."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, value, _INT32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * LANES))

    def lanes_below(self, count: Any) -> Any:
        """Which lanes come before `count`."""
        undefined = ir.Constant(_INTEGERS, ir.Undefined)
        first = self.builder.insert_element(undefined, self.builder.trunc(count, _INT32), _INT32(0))
        counts = self.builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * LANES))
        return self.builder.icmp_unsigned("<", ir.Constant(_INTEGERS, list(range(LANES))), counts)

    def fma(self, first: Any, second: Any, third: Any) -> Any:
        """First * second + third, rounded once where the processor can."""
        function = self._function("fmuladd", _VECTOR, [_VECTOR] * 3)
        return self.builder.call(function, [first, second, third])

    def total(self, vector: Any) -> Any:
        """Sum of the lanes, in any order."""
        function = self._function("vector.reduce.fadd", _FLOAT, [_FLOAT, _VECTOR])
        return self.builder.call(function, [ir.Constant(_FLOAT, 0.0), vector], fastmath=("reassoc",))

    def exp(self, x: Any) -> Any:
        """exp(x): 2^n times a polynomial in the rest (Cody and Waite)."""
        builder = self.builder
        rounded = self.fma(x, self.constant(1.44269504), self.constant(_ROUND))
        n = builder.fsub(rounded, self.constant(_ROUND))
        rest = self.fma(n, self.constant(2.12194440e-4), self.fma(n, self.constant(-0.693359375), x))
        polynomial = self.constant(_POLYNOMIAL[0])
        for coefficient in _POLYNOMIAL[1:]:
            polynomial = self.fma(polynomial, rest, self.constant(coefficient))
        mantissa = builder.fadd(self.fma(polynomial, builder.fmul(rest, rest), rest), self.constant(1.0))
        power = builder.shl(builder.bitcast(rounded, _INTEGERS), ir.Constant(_INTEGERS, [23] * LANES))
        scaled = builder.bitcast(builder.add(builder.bitcast(mantissa, _INTEGERS), power), _VECTOR)
        in_range = builder.select(
            builder.fcmp_ordered("<=", x, self.constant(88.0)), scaled, self.constant(float("nan"))
        )
        return builder.select(builder.fcmp_ordered("<", x, self.constant(-87.0)), self.constant(0.0), in_range)

    def loop(
        self, count: Any, body: Callable[[Any, Sequence[Any]], Sequence[Any]], carried: Sequence[Any]
    ) -> list[Any]:
        """Runs a body `count` times with values that it carries along; the values after the last time."""
        builder = self.builder
        before, head = builder.block, builder.append_basic_block("head")
        inside, after = builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)
        place = builder.phi(_INT64)
        place.add_incoming(_INT64(0), before)
        values = [builder.phi(value.type) for value in carried]
        for value, first in zip(values, carried, strict=True):
            value.add_incoming(first, before)
        builder.cbranch(builder.icmp_unsigned("<", place, count), inside, after)
        builder.position_at_end(inside)
        following = body(place, values)
        place.add_incoming(builder.add(place, _INT64(1)), builder.block)
        for value, new in zip(values, following, strict=True):
            value.add_incoming(new, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values

    def _function(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> Any:
        """An operation that LLVM knows by name."""
        kind = ir.FunctionType(result, arguments)
        return cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.v{LANES}f32")
