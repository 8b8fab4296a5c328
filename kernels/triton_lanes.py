"""Sums over the 32 lanes of a warp on the tensor cores, without shuffles and without shared memory.

A tile [N, 32] lies with channel d in lane d, all its rows in that lane's registers. Registers of a lane are the second
operand of ``mma.m16n8k8`` as they stand: element (k, n) of an 8 x 8 operand sits in lane 4 n + k % 4, register k // 4.
A product with a matrix that has ones in row r for k < 4 and in row r + 1 for k >= 4 adds up registers r and r + 1 over
every four lanes; four such products leave sums [8, 8] in two registers in the layout of a result, which but for the
order of k is that of a first operand: they are added, and one more product with a column of ones adds up the rest. In
bfloat16 (``mma.m16n8k16``) a register holds two terms, and two products do. (PTX ISA, matrix fragments of ``mma``.)

``exact`` sums take the 24 bits of a term in two parts of 11, the most that tf32 products read.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE, ZERO = "0x3f800000", "0x00000000"
HALVES = ("0x00003f80", "0x3f800000")  # two bfloat16 numbers in a register: (1, 0) and (0, 1)
HIGH_BITS = "0xffffe000"  # of a float32: what a tf32 has


def _product(kind: str, result: str, first: list[str], second: list[str]) -> str:
    """A line for result += first x second, a 16 x 8 result in four registers of a lane."""
    added = ", ".join(f"{result}{i}" for i in range(4))
    return f"mma.sync.aligned.{kind}.f32 {{{added}}}, {{{', '.join(first)}}}, {{{', '.join(second)}}}, {{{added}}};"


def _tf32(result: str, first: list[str], second: list[str]) -> str:
    return _product("m16n8k8.row.col.f32.tf32.tf32", result, first, second)


def _select(name: str, row: int, value: str) -> str:
    """A line that sets a register to ``value`` in the four lanes of a row of a first operand, else to 0."""
    return f"setp.eq.u32 p, lane, {row}; selp.b32 {name}, {value}, {ZERO}, p;"


def _split(name: str, value: str) -> str:
    """A line that cuts a float32 into a part the tensor cores read and what is left."""
    return f"and.b32 {name}h, {value}, {HIGH_BITS}; sub.f32 {name}l, {value}, {name}h;"


def _exact_sums(term: list[str], accumulator: str) -> list[str]:
    """Sums of 8 registers over every four lanes: products of both parts of each term."""
    lines = []
    for pair in range(4):
        lines.append(_split("x", term[2 * pair]) + " " + _split("y", term[2 * pair + 1]))
        ones = [f"one{2 * pair}", "zero", f"one{2 * pair + 1}", "zero"]
        lines += [_tf32(accumulator, ones, [f"x{part}", f"y{part}"]) for part in "hl"]
    return lines


def _rounded_sums(term: list[str], accumulator: str) -> list[str]:
    """The same with terms rounded to bfloat16, two in a register."""
    lines = []
    for four in range(2):
        a, b, c, d = term[4 * four : 4 * four + 4]
        lines.append(f"cvt.rn.bf16x2.f32 xh, {b}, {a}; cvt.rn.bf16x2.f32 yh, {d}, {c};")
        ones = [f"one{2 * four}", "zero", f"one{2 * four + 1}", "zero"]
        lines.append(_product("m16n8k16.row.col.f32.bf16.bf16", accumulator, ones, ["xh", "yh"]))
    return lines


def _assembly(rows: int, exact: bool) -> str:
    """Program over the ``rows`` (8 or 16) registers of a tile, the sums so far, and the column they belong to.

    Registers 8 to 15 have an accumulator of their own, so that the same few first operands serve all products.
    """
    term, column = [f"${rows + i}" for i in range(rows)], f"${3 * rows}"
    halves = ("low", "high")[: rows // 8]
    lines = [
        ".reg .pred p; .reg .b32 lane, zero, column, part, xh, xl, yh, yl, sumh, suml, othersh, othersl;",
        ".reg .b32 one<8>; .reg .f32 low<4>, high<4>, d<4>, sum, others;",
        f"mov.u32 lane, %laneid; shr.u32 lane, lane, 2; mov.b32 zero, {ZERO}; " + _select("column", column, ONE),
    ]
    if exact:
        lines += [_select(f"one{row}", row, ONE) for row in range(8)]
    else:
        for pair in range(4):
            lines += [_select(f"one{pair}", 2 * pair, HALVES[0]), _select("part", 2 * pair + 1, HALVES[1])]
            lines.append(f"or.b32 one{pair}, one{pair}, part;")
    for half, name in enumerate(halves):
        lines += [f"mov.b32 {name}{i}, {ZERO};" for i in range(4)]
        lines += (_exact_sums if exact else _rounded_sums)(term[8 * half : 8 * half + 8], name)
    lines += ["add.f32 sum, low0, low1;", "add.f32 others, high0, high1;" if rows == 16 else f"mov.b32 others, {ZERO};"]
    lines += [_split("sum", "sum"), _split("others", "others")]
    lines += [f"mov.f32 d{i}, ${2 * rows + i};" for i in range(rows // 4)]
    lines += [f"mov.b32 d{i}, {ZERO};" for i in range(rows // 4, 4)]
    for part in "hl" if exact else "h":
        lines.append(_tf32("d", [f"sum{part}", f"others{part}", "zero", "zero"], ["column", "zero"]))
    lines += [f"mov.f32 ${i}, d{i};" for i in range(rows // 4)]
    return "{ " + " ".join(lines) + " }"


def _constraints(rows: int) -> str:
    return ",".join(["=f"] * rows + ["f"] * 2 * rows + ["r"] * rows)


EIGHT = tl.constexpr(_assembly(8, exact=False))
EIGHT_EXACT = tl.constexpr(_assembly(8, exact=True))
EIGHT_OPERANDS = tl.constexpr(_constraints(8))
SIXTEEN = tl.constexpr(_assembly(16, exact=False))
SIXTEEN_EXACT = tl.constexpr(_assembly(16, exact=True))
SIXTEEN_OPERANDS = tl.constexpr(_constraints(16))


@triton.jit
def add_lane_sums(total, tile, column: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr):
    """``total`` with the sums of a tile [N, 32] over its lanes added to one of 8 columns.

    Args:
        total: [N, 32], of which ROWS / 4 registers of every ROWS hold numbers: see :func:`lane_sum_places`.
        tile: Terms, float32; a lane holds a column, ROWS or 2 ROWS numbers of it.
        column: 0 to 7.
        EXACT: Whether terms keep 22 bits, not bfloat16's 8.
        ROWS: 8 or 16, the registers that one program takes.
    """
    if ROWS == 8:
        return tl.inline_asm_elementwise(
            EIGHT_EXACT if EXACT else EIGHT, EIGHT_OPERANDS, [tile, total, column],
            dtype=tl.float32, is_pure=True, pack=8,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            SIXTEEN_EXACT if EXACT else SIXTEEN, SIXTEEN_OPERANDS, [tile, total, column],
            dtype=tl.float32, is_pure=True, pack=16,
        )  # fmt: skip


@triton.jit
def lane_sum_places(NP: tl.constexpr, WARPS: tl.constexpr, ROWS: tl.constexpr):
    """Where a total of :func:`add_lane_sums` keeps what, as tiles [NP, 32]: row, column, and whether anything.

    Rows of the tile are dealt out to the warps in turn: register r of warp w is row r WARPS + w.
    """
    n, lane = tl.arange(0, NP)[:, None], tl.arange(0, 32)[None, :]
    register, own = n // WARPS, n // WARPS % ROWS
    row = (register // ROWS * ROWS + lane // 4 + own // 2 * 8) * WARPS + n % WARPS
    return row, lane % 4 * 2 + own % 2 + n * 0, (own < ROWS // 4) & (lane >= 0)
