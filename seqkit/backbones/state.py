"""What each mixer remembers between two calls.

Legend: S sequences (batch rows, or segments of a packed batch), D channels, W conv width, N state size, H heads,
P head size, T cached positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from seqkit.kernels import Mamba3State as Mamba3State


def _register(cls: type) -> type:
    """Let torch's tree functions, checkpointing and compilation see the tensors inside a state."""
    names = [field.name for field in fields(cls)]
    _pytree.register_pytree_node(
        cls,
        lambda state: ([getattr(state, name) for name in names], None),
        lambda leaves, _: cls(*leaves),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=lambda state: (
            [(_pytree.GetAttrKey(name), getattr(state, name)) for name in names],
            None,
        ),
    )
    return cls


@_register
@dataclass(frozen=True)
class Mamba1State:
    """State of a selective scan block.

    Attributes:
        conv: (S, W - 1, D) last raw inputs of the convolution, oldest first.
        ssm: (S, D, N) float32.
    """

    conv: Tensor
    ssm: Tensor


@_register
@dataclass(frozen=True)
class Mamba2State:
    """State of a state-space-dual block.

    Attributes:
        conv: (S, W - 1, D + 2GN) last raw inputs of the convolution, oldest first.
        ssm: (S, H, P, N) float32.
    """

    conv: Tensor
    ssm: Tensor


@_register
@dataclass(frozen=True)
class S4DState:
    """State of an S4D block.

    Attributes:
        modes: (S, E, M, 2) float32, real and imaginary parts of M complex modes in each of E inner channels.
    """

    modes: Tensor


@_register
@dataclass(frozen=True)
class AttentionState:
    """Keys and values of everything seen; grows with the sequence.

    Attributes:
        keys: (S, H, T, P), already rotated to their positions.
        values: (S, H, T, P).
        length: (S,) int64, the position of the next token.
        valid: (S, T) bool, False at slots that only fill up shorter segments; None when all are valid.
    """

    keys: Tensor
    values: Tensor
    length: Tensor
    valid: Tensor | None = None


@_register
@dataclass(frozen=True)
class BidirectionalState:
    """States of the two directions of one block.

    Attributes:
        left: Enters at the first token and leaves at the last.
        right: Enters at the last token and leaves at the first.
    """

    left: Any
    right: Any


@_register
@dataclass(frozen=True)
class StackState:
    """States of the blocks of a stack.

    Attributes:
        blocks: One state per block, None for a block without memory.
    """

    blocks: tuple


@_register
@dataclass(frozen=True)
class StrandState:
    """States of a reverse-complement equivariant stack, which runs once per strand.

    Attributes:
        forward: State of the strand as given.
        reverse: State of the other strand; enters at the last token as given.
    """

    forward: StackState
    reverse: StackState
