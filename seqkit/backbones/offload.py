"""Tensors that wait for the backward pass in host memory, copied beside the computation.

A copy to the host starts as soon as its tensor exists and runs on a stream of its own; the device memory is given back
one tensor later. On the way back each tensor that is asked for starts the copy of the one kept before it. Where the
tensors lie in host memory already, nothing is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopies:
    """Keeps tensors of one device in pinned host memory, and brings them back last first.

    Args:
        device: Where the tensors live and return to.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: HostCopy | None = None
        self._last: HostCopy | None = None

    def put(self, tensor: Tensor, *, stay: bool = False) -> HostCopy:
        """Start to move a tensor to the host.

        Args:
            tensor: Not written to afterwards.
            stay: Leave it on the device: it will be the first that the backward pass wants.
        """
        copy = HostCopy(tensor, self.stream, self._last)
        self._last = copy
        if self._leaving is not None:
            self._leaving.leave_device()
            self._leaving = None
        if self.stream is not None and not stay:
            copy.start()
            self._leaving = copy
        return copy


class HostCopy:
    """One tensor on its way to the host and back.

    Args:
        tensor: What is kept.
        stream: Where copies run; None leaves the tensor where it is.
        before: The copy made before this one, which is wanted after it.
    """

    def __init__(self, tensor: Tensor, stream: torch.cuda.Stream | None, before: HostCopy | None):
        self.stream, self.before = stream, before
        self._device_tensor: Tensor | None = tensor
        self._host_tensor: Tensor | None = None
        self._done: torch.cuda.Event | None = None

    def start(self) -> None:
        """Copy to pinned host memory behind what the current stream has to do."""
        tensor = self._device_tensor
        self._host_tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self.stream):
            self._host_tensor.copy_(tensor, non_blocking=True)
            self._done = self.stream.record_event()

    def leave_device(self) -> None:
        """Give the device memory back; what the current stream does next waits for the copy."""
        torch.cuda.current_stream(self._device_tensor.device).wait_event(self._done)
        self._device = self._device_tensor.device
        self._device_tensor = None

    def fetch(self) -> None:
        """Start the copy back to the device."""
        if self._device_tensor is not None:
            return
        host = self._host_tensor
        # Allocated on the current stream, where it is used and freed; only the copy runs beside it.
        self._device_tensor = torch.empty(host.shape, dtype=host.dtype, device=self._device)
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            self._device_tensor.copy_(host, non_blocking=True)
            self._done = self.stream.record_event()

    def get(self) -> Tensor:
        """The tensor on its device; the copy before it starts on its way back."""
        self.fetch()
        if self._done is not None:
            torch.cuda.current_stream(self._device_tensor.device).wait_event(self._done)
        if self.before is not None:
            self.before.fetch()
        return self._device_tensor

    def release(self) -> None:
        """Forget the device's tensor where the host has a copy; a second backward pass would fetch it again."""
        if self._host_tensor is not None and self._device_tensor is not None:
            self._device = self._device_tensor.device
            self._device_tensor = None
