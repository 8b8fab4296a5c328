"""Argument checks that the public ops share: shapes, dtypes, devices, layout."""

from __future__ import annotations

from itertools import pairwise

import torch

from seqkit.errors import ShapeError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WIDE_FLOATS = (torch.float32, torch.float64)


def check_tensor(
    name: str,
    x: torch.Tensor,
    shape: tuple[int, ...],
    letters: str,
    like: torch.Tensor,
    *,
    wide: bool = False,
    any_layout: bool = False,
) -> None:
    """Raise unless ``x`` has this shape, a float dtype, the device of ``like`` and a contiguous last dimension.

    Args:
        name: Argument name for the message.
        x: The tensor.
        shape: Expected sizes.
        letters: Their legend, for example ``"(B, L, D)"``.
        like: First operand of the op; decides the device.
        wide: Only float32 and float64 are accepted (parameters and states).
        any_layout: The last dimension may have any stride (parameters and states: they are small).

    Raises:
        ShapeError: One of these does not hold.
    """
    if tuple(x.shape) != shape:
        raise ShapeError(name, expected=f"shape {letters} = {shape}", got=f"{tuple(x.shape)}")
    allowed = WIDE_FLOATS if wide else FLOATS
    if x.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        remedy = "Parameters and states stay in float32 whatever the activations are." if wide else ""
        raise ShapeError(name, expected=f"dtype {names}", got=str(x.dtype).removeprefix("torch."), remedy=remedy)
    if x.device != like.device:
        raise ShapeError(name, expected=f"device {like.device}", got=str(x.device))
    if not any_layout and x.dim() > 0 and x.shape[-1] > 1 and x.numel() > 0 and x.stride(-1) != 1:
        raise ShapeError(
            name,
            expected="a contiguous last dimension (stride 1)",
            got=f"stride {x.stride(-1)}",
            remedy=f"Call {name}.contiguous(); splits of a projection along the last dimension are fine as they are.",
        )


def check_rank(name: str, x: torch.Tensor, rank: int, letters: str) -> None:
    """Raise unless ``x`` has ``rank`` dimensions."""
    if x.dim() != rank:
        raise ShapeError(name, expected=f"{rank} dimensions {letters}", got=f"{x.dim()}: {tuple(x.shape)}")


def check_groups(name: str, groups: int, whole: int, letters: str) -> None:
    """Raise unless ``groups`` divides ``whole`` channels or heads."""
    if groups < 1 or whole % groups:
        raise ShapeError(name, expected=f"a number of groups that divides {letters} = {whole}", got=str(groups))


def check_packing(cu_seqlens: torch.Tensor | None, x: torch.Tensor) -> int:
    """Check ``cu_seqlens`` against (B, L, ...) and return the number of segments S.

    Values are checked inside the op, on the CPU only: looking at them on a GPU would stall it.
    """
    if cu_seqlens is None:
        return x.shape[0]
    if x.shape[0] != 1:
        raise ShapeError("cu_seqlens", expected="batch size 1 with packed sequences", got=f"B = {x.shape[0]}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ShapeError("cu_seqlens", expected="shape (S + 1,) with S >= 1", got=f"{tuple(cu_seqlens.shape)}")
    if cu_seqlens.dtype != torch.int32:
        raise ShapeError("cu_seqlens", expected="dtype int32", got=str(cu_seqlens.dtype).removeprefix("torch."))
    if cu_seqlens.device != x.device:
        raise ShapeError("cu_seqlens", expected=f"device {x.device}", got=str(cu_seqlens.device))
    return cu_seqlens.shape[0] - 1


def check_boundaries(cu_seqlens: torch.Tensor | None, length: int) -> None:
    """Raise unless boundaries on the CPU start at 0, never fall and end at ``length``."""
    if cu_seqlens is None or cu_seqlens.device.type != "cpu":
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != length or any(b < a for a, b in pairwise(bounds)):
        raise ShapeError(
            "cu_seqlens",
            expected=f"boundaries that start at 0, never fall and end at L = {length}",
            got=str(bounds if len(bounds) <= 8 else [*bounds[:4], "...", *bounds[-3:]]),
        )
