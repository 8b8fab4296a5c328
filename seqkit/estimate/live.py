"""How many bytes of tensors are alive while code runs, on real tensors or on fake ones that take no memory.

Under ``FakeTensorMode`` a step over a million tokens is counted in a second: its tensors have shapes and no data. What
a custom op allocates inside is not seen there.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while the mode is on, until they are freed.

    Attributes:
        now: Bytes alive.
        peak: Most bytes alive at any time.
        peak_op: Name of the operation that reached the peak.

    Example:
        >>> with LiveBytes() as live:
        ...     x = torch.zeros(1000)
        ...     x = x + 1
        >>> live.now, live.peak
        (4000, 8000)
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.peak_op = ""
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        if self.now > self.peak:
            self.peak, self.peak_op = self.now, str(func)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
