"""What a block leaves behind for the backward pass: the sum it normalises, and nothing else of that width.

Where the mixer keeps only its input (see :meth:`ScanCore.takes_slabs`), that input is computed again from the sum, a
norm's worth of work; the mixer itself runs forward once. Any other block runs forward a second time.

Legend: B batch, L length, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from seqkit.backbones.norm import ResidualNorm
from seqkit.backbones.offload import HostCopies, HostCopy


class BlockInput:
    """The residual sum in front of one block, and the block's normalised input made from it when it is wanted.

    Args:
        norm: The block's norm.
        copies: Host memory that takes the sum; None keeps it on the device.
        stay: Keep it on the device all the same, because the backward pass starts with it.
    """

    def __init__(self, norm: ResidualNorm, copies: HostCopies | None, *, stay: bool = False):
        self.norm, self.copies, self.stay = norm, copies, stay
        self._shape: torch.Size | None = None
        self._sum: Tensor | HostCopy | None = None
        self._input: Tensor | None = None
        self._uses = self._left = 0

    @contextmanager
    def keeping_sum(self, y_BLD: Tensor) -> Iterator[None]:
        """While the sum with ``y_BLD`` is normalised: what autograd keeps of its shape is the sum."""
        self._shape = y_BLD.shape
        with saved_tensors_hooks(self._pack_sum, self._unpack_sum):
            yield

    @contextmanager
    def keeping_no_input(self, x_BLD: Tensor) -> Iterator[None]:
        """While the mixer reads ``x_BLD``: autograd does not keep it."""
        self._input, self._dtype = x_BLD, x_BLD.dtype
        with saved_tensors_hooks(self._pack_input, self._unpack_input):
            yield
        self._input, self._left = None, self._uses

    def _pack_sum(self, tensor: Tensor) -> Any:
        if tensor.shape != self._shape:
            return tensor
        tensor = tensor.detach()
        self._sum = tensor if self.copies is None else self.copies.put(tensor, stay=self.stay)
        return self

    def _unpack_sum(self, packed: Any) -> Tensor:
        if packed is not self:
            return packed
        kept = self._fetch()
        if isinstance(self._sum, HostCopy):
            self._sum.release()
        return kept

    def _fetch(self) -> Tensor:
        return self._sum.get() if isinstance(self._sum, HostCopy) else self._sum

    def _pack_input(self, tensor: Tensor) -> Any:
        if tensor is not self._input:
            return tensor
        self._uses += 1
        return self

    def _unpack_input(self, packed: Any) -> Tensor:
        """The input, computed at its first use and forgotten after its last: two directions share it."""
        if packed is not self:
            return packed
        if self._input is None:
            self._input = self.norm.again(self._fetch(), self._dtype)
        x_BLD = self._input
        self._left -= 1
        if self._left == 0:
            self._input, self._left = None, self._uses
        return x_BLD
