"""What a task may ask of any tokenizer of discrete symbols."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """One id per symbol, of fixed meaning.

    Attributes:
        vocab_size: Number of ids in use.
        pad_id: Id that fills windows beyond their data.
        mask_id: Id that hides a symbol from a masked language model.
    """

    vocab_size: int
    pad_id: int
    mask_id: int

    def encode(self, sequence: str | bytes | np.ndarray) -> np.ndarray:
        """Turn L characters into (L,) uint8 ids."""

    def decode(self, ids: np.ndarray) -> str:
        """Turn (L,) ids back into L characters."""
