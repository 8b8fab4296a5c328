"""Argument checks of the Mamba-3 scan and step.

Legend: B batch, L length, S segments, H heads, P head channels, N states, G groups, M rotated pairs, R rank.
"""

from __future__ import annotations

from torch import Tensor

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels.mamba3.phase import PAIRINGS
from seqkit.kernels.mamba3.state import Mamba3State
from seqkit.kernels.mamba3.steps import DECAYS
from seqkit.kernels.validate import check_groups, check_packing, check_rank, check_tensor

LARGEST_CHUNK = 1024  # longer products of decays would lose digits


def check_settings(decay: str, pairing: str, A_floor: float, chunk_size: int | None = None) -> None:
    """Raise unless the names are known and the numbers in range."""
    for name, value, known in (("decay", decay, DECAYS), ("pairing", pairing, PAIRINGS)):
        if value not in known:
            raise ConfigError(name, expected="one of " + ", ".join(known), got=repr(value))
    if not A_floor > 0:
        raise ConfigError("A_floor", expected="a rate > 0", got=str(A_floor))
    if chunk_size is not None and not 1 <= chunk_size <= LARGEST_CHUNK:
        raise ConfigError("chunk_size", expected=f"1 to {LARGEST_CHUNK} tokens", got=str(chunk_size))


def check_operands(
    x, dt, A, trap, B, C, angles, B_bias, C_bias, dt_bias, D, z, mimo_x, mimo_z, mimo_o, initial_state, cu_seqlens
) -> None:
    """Raise unless the operands of a scan fit together."""
    check_rank("x", x, 4, "(B, L, H, P)")
    check_tokens("L", x, dt, A, trap, B, C, angles, z, mimo_x is not None)
    check_parameters(x, B, B_bias, C_bias, dt_bias, D, mimo_x)
    check_ranks(x, B, z, mimo_x, mimo_z, mimo_o)
    segments = check_packing(cu_seqlens, x)
    if initial_state is not None:
        check_state("initial_state", initial_state, segments, x, B, angles)


def check_tokens(
    length: str, x: Tensor, dt: Tensor, A: Tensor, trap: Tensor, B: Tensor, C: Tensor, angles: Tensor,
    z: Tensor | None, ranked: bool,
) -> None:  # fmt: skip
    """Check operands that have a value per token.

    Args:
        length: ``"L"`` for sequences, empty for single tokens without that dimension.
        x: (B, L, H, P).
        dt: (B, L, H).
        A: (B, L, H).
        trap: (B, L, H).
        B: (B, L, G, N), with ``ranked`` (B, L, R, G, N).
        C: Shaped like ``B``.
        angles: (B, L, M).
        z: (B, L, H, P), or None.
        ranked: Whether the scan has a rank.

    Raises:
        ShapeError: One does not fit.
    """
    tokens = "B, L" if length else "B"
    (*lead, heads, head_channels), any_layout = x.shape, not length
    letters = f"({tokens}, {'R, ' if ranked else ''}G, N)"
    check_rank("B", B, len(lead) + 2 + ranked, letters)
    groups, states = B.shape[-2:]
    if heads < 1 or head_channels < 1 or states < 1 or (ranked and B.shape[-3] < 1):
        raise ShapeError("x, B", expected="at least one head, channel, rank and state", got=f"{x.shape}, {B.shape}")
    check_groups("B", groups, heads, "H")
    check_tensor("x", x, tuple(x.shape), f"({tokens}, H, P)", x, any_layout=any_layout)
    for name, operand in (("dt", dt), ("A", A), ("trap", trap)):
        check_tensor(name, operand, (*lead, heads), f"({tokens}, H)", x, any_layout=any_layout)
    weights = (*lead, *B.shape[len(lead) :])
    check_tensor("B", B, weights, letters, x, any_layout=any_layout)
    check_tensor("C", C, weights, letters, x, any_layout=any_layout)
    check_rank("angles", angles, len(lead) + 1, f"({tokens}, M)")
    pairs = angles.shape[-1]
    if 2 * pairs > states:
        raise ShapeError("angles", expected=f"at most N / 2 = {states // 2} pairs", got=str(pairs))
    check_tensor("angles", angles, (*lead, pairs), f"({tokens}, M)", x, any_layout=any_layout)
    if z is not None:
        check_tensor("z", z, tuple(x.shape), f"({tokens}, H, P)", x, any_layout=any_layout)


def check_parameters(
    x: Tensor, B: Tensor, B_bias: Tensor | None, C_bias: Tensor | None, dt_bias: Tensor | None, D: Tensor | None,
    mimo_x: Tensor | None,
) -> None:  # fmt: skip
    """Check biases and skip weights."""
    heads, head_channels = x.shape[-2:]
    shape, letters = ((heads, B.shape[-1]), "(H, N)")
    if mimo_x is not None:
        shape, letters = ((heads, B.shape[-3], B.shape[-1]), "(H, R, N)")
    parameters = [("B_bias", B_bias, shape, letters), ("C_bias", C_bias, shape, letters)]
    parameters.append(("dt_bias", dt_bias, (heads,), "(H,)"))
    if D is not None:
        parameters.append(("D", D, *(((heads,), "(H,)") if D.dim() == 1 else ((heads, head_channels), "(H, P)"))))
    for name, parameter, shape, letters in parameters:
        if parameter is not None:
            check_tensor(name, parameter, shape, letters, x, wide=True, any_layout=True)


def check_ranks(
    x: Tensor, B: Tensor, z: Tensor | None, mimo_x: Tensor | None, mimo_z: Tensor | None, mimo_o: Tensor | None
) -> None:
    """Check the weights of the ranks, and which of them are there."""
    heads, head_channels = x.shape[-2:]
    if mimo_x is None:
        for name, weight in (("mimo_z", mimo_z), ("mimo_o", mimo_o)):
            if weight is not None:
                raise ShapeError(name, expected="none without mimo_x", got=f"shape {tuple(weight.shape)}")
        return
    if (mimo_z is None) != (z is None):
        raise ShapeError("mimo_z", expected="both z and mimo_z, or neither", got="one of them")
    if z is not None and mimo_o is None:
        raise ShapeError(
            "z",
            expected="none where y keeps its ranks apart",
            got=f"shape {tuple(z.shape)}",
            remedy="Pass mimo_o, or gate the ranks yourself.",
        )
    for name, weight in (("mimo_x", mimo_x), ("mimo_z", mimo_z), ("mimo_o", mimo_o)):
        if weight is not None:
            shape = (heads, B.shape[-3], head_channels)
            check_tensor(name, weight, shape, "(H, R, P)", x, wide=True, any_layout=True)


def check_state(name: str, state: Mamba3State, segments: int, x: Tensor, B: Tensor, angles: Tensor) -> None:
    """Check the four tensors of a state of S rows."""
    (heads, head_channels), (_, states) = x.shape[-2:], B.shape[-2:]
    rank = B.shape[-3] if B.dim() == x.dim() + 1 else 1
    shapes = {
        "theta": ((segments, heads, angles.shape[-1]), "(S, H, M)"),
        "ssm": ((segments, heads, head_channels, states), "(S, H, P, N)"),
        "k": ((segments, rank, heads, states), "(S, R, H, N)"),
        "v": ((segments, heads, head_channels), "(S, H, P)"),
    }
    for field, (shape, letters) in shapes.items():
        check_tensor(f"{name}.{field}", getattr(state, field), shape, letters, x, wide=True, any_layout=True)
