"""What a Mamba-3 scan remembers between two calls.

Legend: S sequences (batch rows, or segments of a packed batch), H heads, P head channels, N states, M rotated pairs of
states, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils import _pytree


@dataclass(frozen=True)
class Mamba3State:
    """State behind a token of a Mamba-3 scan.

    Attributes:
        theta: (S, H, M) float64, rotation of each pair in radians, in [-pi, pi). Float32 cannot hold the 32 bits that
            keep an angle exact over a million steps.
        ssm: (S, H, P, N) float32.
        k: (S, R, H, N) float32, rotated key of the last token; R is 1 without MIMO.
        v: (S, H, P) float32, input of the last token.
    """

    theta: Tensor
    ssm: Tensor
    k: Tensor
    v: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The fields in order."""
        return self.theta, self.ssm, self.k, self.v


_pytree.register_dataclass(Mamba3State, serialized_type_name=f"{__name__}.Mamba3State")
