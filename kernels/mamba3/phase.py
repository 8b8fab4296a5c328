"""Angles as fixed point, and rotations of state pairs by them.

An angle is held as an integer fraction of a turn that wraps by itself. Sums of integers are exact and associative: any
cut of a sequence gives the same bits, and a million steps lose nothing but the rounding of each increment. 32 bits of
a turn are 1.5e-9 rad; float64 operands get 44 bits.

Legend: N states, M rotated pairs (M <= N / 2); leading dimensions are free.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqkit.kernels.numbers import softplus

PAIRINGS = ("adjacent", "halves")


def phase_bits(dtype: torch.dtype) -> int:
    """Bits of a turn for operands accumulated in ``dtype``."""
    return 44 if dtype == torch.float64 else 32


def to_phase(turns: Tensor, bits: int) -> Tensor:
    """Nearest fraction of a turn as int64 in [0, 2^bits); takes float64."""
    fraction = turns - turns.round()
    return (fraction * float(1 << bits)).round().to(torch.int64).bitwise_and((1 << bits) - 1)


def wrap(phase: Tensor, bits: int) -> Tensor:
    """A sum of phases as a phase again."""
    return phase.bitwise_and((1 << bits) - 1)


def to_radians(phase: Tensor, bits: int) -> Tensor:
    """Angle in [-pi, pi) of a phase, float64."""
    half = 1 << (bits - 1)
    return (wrap(phase + half, bits) - half).double() * (2 * math.pi / (1 << bits))


def turns_of(radians: Tensor) -> Tensor:
    """Radians in turns, float64."""
    return radians.double() / (2 * math.pi)


def increments(raw_dt: Tensor, dt_bias: Tensor | None, angles: Tensor) -> Tensor:
    """Turns (..., H, M) that each token adds: softplus(dt + bias) * tanh(angles) / 2, in float64.

    A float32 step size is off by the same factor at every token of a steady input, which would add up.

    Args:
        raw_dt: Step sizes before bias and softplus (..., H).
        dt_bias: (H,).
        angles: (..., M).
    """
    raw = raw_dt.double() if dt_bias is None else raw_dt.double() + dt_bias.double()
    return softplus(raw).unsqueeze(-1) * torch.tanh(angles.double()).unsqueeze(-2) * 0.5


def pair_slices(states: int, pairs: int, pairing: str) -> tuple[slice, slice]:
    """Where the first and the second members of the rotated pairs stand among N states."""
    if pairing == "adjacent":
        return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    return slice(0, pairs), slice(states // 2, states // 2 + pairs)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, pairing: str) -> Tensor:
    """Rotate the pairs of (..., N) by angles whose cosine and sine are (..., M); other states stay."""
    first, second = pair_slices(x.shape[-1], cos.shape[-1], pairing)
    a, b = x[..., first], x[..., second]
    rotated = x.clone()
    rotated[..., first] = a * cos - b * sin
    rotated[..., second] = a * sin + b * cos
    return rotated


def angle_gradient(drotated: Tensor, rotated: Tensor, pairs: int, pairing: str) -> Tensor:
    """Gradient (..., M) of the angles from that of what :func:`rotate` returned."""
    first, second = pair_slices(rotated.shape[-1], pairs, pairing)
    return drotated[..., second] * rotated[..., first] - drotated[..., first] * rotated[..., second]
