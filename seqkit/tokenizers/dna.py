"""DNA as one token per base, at memory speed.

Ids 0 to 11 are those of the published character tokenizer of HyenaDNA and Caduceus, so that their
checkpoints keep their meaning; ids 12 to 21 are the remaining IUPAC codes in the fixed order ``RYSWKMBDHV``;
22 stands for an alignment gap. Tables of 24 rows (a multiple of 8) leave id 23 unused.

Legend: B batch, L length.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from seqkit.errors import InputError, ShapeError

if TYPE_CHECKING:
    import torch

Ids = TypeVar("Ids", np.ndarray, "torch.Tensor")


class Token(IntEnum):
    """Ids of the tokens that have a published meaning."""

    CLS = 0
    SEP = 1
    BOS = 2
    MASK = 3
    PAD = 4
    RESERVED = 5
    UNK = 6
    A = 7
    C = 8
    G = 9
    T = 10
    N = 11


AMBIGUITY_CODES = "RYSWKMBDHV"
"""IUPAC codes of ids 12 to 21: R=AG Y=CT S=CG W=AT K=GT M=AC B=CGT D=AGT H=ACT V=ACG."""

GAP = 22
"""Id of an alignment gap. ``encode`` never makes it: a deletion written ``-`` must not slip in as a base."""

VOCAB_SIZE = 23
PUBLISHED_VOCAB_SIZE = 12

_BASES = "ACGTN" + AMBIGUITY_CODES
_COMPLEMENTS = "TGCAN" + "YRSWMKVHDB"
_FIRST_BASE = int(Token.A)
_INVALID = 255
_SPECIAL_CHARACTER = "."


def _encoding_table() -> np.ndarray:
    table = np.full(256, _INVALID, dtype=np.uint8)
    for offset, base in enumerate(_BASES):
        for character in (base, base.lower()):
            table[ord(character)] = _FIRST_BASE + offset
    table[ord("U")] = table[ord("u")] = Token.T
    return table


def _complement_table() -> np.ndarray:
    table = np.arange(VOCAB_SIZE, dtype=np.uint8)
    for base, complement in zip(_BASES, _COMPLEMENTS, strict=True):
        table[_FIRST_BASE + _BASES.index(base)] = _FIRST_BASE + _BASES.index(complement)
    return table


def _decoding_table() -> np.ndarray:
    table = np.full(256, ord(_SPECIAL_CHARACTER), dtype=np.uint8)
    table[_FIRST_BASE : _FIRST_BASE + len(_BASES)] = np.frombuffer(_BASES.encode(), dtype=np.uint8)
    table[GAP] = ord("-")
    return table


def _collapse_table() -> np.ndarray:
    table = np.arange(VOCAB_SIZE, dtype=np.uint8)
    table[PUBLISHED_VOCAB_SIZE:] = Token.N
    return table


def _one_hot_table() -> np.ndarray:
    """Rows of base probabilities: 1 for a base, equal shares for a code, 0 for the special tokens."""
    members = ["A", "C", "G", "T", "ACGT", "AG", "CT", "CG", "AT", "GT", "AC", "CGT", "AGT", "ACT", "ACG"]
    table = np.zeros((VOCAB_SIZE, 4), dtype=np.float32)
    for offset, bases in enumerate(members):
        for base in bases:
            table[_FIRST_BASE + offset, "ACGT".index(base)] = 1.0 / len(bases)
    return table


_ENCODE = _encoding_table()
_DECODE = _decoding_table()
_COMPLEMENT = _complement_table()
_COLLAPSE = _collapse_table()
_ONE_HOT = _one_hot_table()


def _as_bytes(sequence: str | bytes | np.ndarray) -> np.ndarray:
    """The characters as uint8, without a copy for bytes and arrays."""
    if isinstance(sequence, np.ndarray):
        if sequence.dtype != np.uint8:
            raise ShapeError(
                "sequence",
                expected="a uint8 array of ASCII characters",
                got=f"an array of {sequence.dtype}",
                remedy="View the text as bytes first, e.g. np.frombuffer(text.encode(), dtype=np.uint8).",
            )
        return sequence
    if isinstance(sequence, str):
        # Latin-1 keeps one byte per character, so that an error names the right position.
        sequence = sequence.encode("latin-1", errors="replace")
    return np.frombuffer(sequence, dtype=np.uint8)


def _take(table: np.ndarray, ids: Ids) -> Ids:
    """``table[ids]`` for either library; ids outside the table raise IndexError."""
    if isinstance(ids, np.ndarray):
        return table[ids]
    import torch

    rows = torch.from_numpy(table).to(ids.device)[ids.long()]
    return rows if rows.is_floating_point() else rows.to(ids.dtype)


class DNATokenizer:
    """One token per base, case-insensitive, all IUPAC codes, U read as T.

    It has no settings and no state; a class, so that tasks can hold "the tokenizer" behind one signature.

    Attributes:
        vocab_size: 23, the ids in use. Embeddings may be padded to 24.
        pad_id: Id that fills windows beyond their data.
        mask_id: Id that hides a base from a masked language model.
    """

    vocab_size = VOCAB_SIZE
    pad_id = int(Token.PAD)
    mask_id = int(Token.MASK)

    def encode(self, sequence: str | bytes | np.ndarray) -> np.ndarray:
        """Turn characters into ids.

        Args:
            sequence: Text, or ASCII bytes, or a uint8 array of ASCII characters of any shape.

        Returns:
            uint8 ids; (L,) for text and bytes, the input's shape for an array.

        Raises:
            InputError: A character is no IUPAC base code; names the character and its 0-based position.
        """
        characters = _as_bytes(sequence)
        ids = _ENCODE[characters]
        if ids.size and ids.max() == _INVALID:
            position = int(np.argmax(ids.reshape(-1) == _INVALID))
            found = sequence[position] if isinstance(sequence, str) else chr(characters.reshape(-1)[position])
            raise InputError(
                "sequence",
                expected=f"IUPAC base codes ({_BASES} or U, either case)",
                got=f"{found!r} at position {position}",
                remedy="Remove gaps, spaces and line ends, or write unknown bases as N.",
            )
        return ids

    def soft_mask(self, sequence: str | bytes | np.ndarray) -> np.ndarray:
        """Where the sequence is lower-case, which genome files use for repeats.

        Args:
            sequence: As in :meth:`encode`.

        Returns:
            bool array of the shape that :meth:`encode` returns, True where lower-case.
        """
        characters = _as_bytes(sequence)
        return (characters >= ord("a")) & (characters <= ord("z"))

    def decode(self, ids: np.ndarray | torch.Tensor) -> str:
        """Turn ids (L,) back into upper-case text of L characters.

        Special tokens become ``.``, which is no base, so a decoded sequence keeps its length and cannot be
        encoded again by accident.

        Args:
            ids: Integer ids of shape (L,), each in [0, 23).

        Raises:
            ShapeError: ``ids`` is not one-dimensional.
            InputError: An id is out of range.
        """
        array = np.asarray(ids)
        if array.ndim != 1:
            raise ShapeError("ids", expected="one sequence of shape (L,)", got=f"shape {array.shape}")
        if array.size and (array.min() < 0 or array.max() >= VOCAB_SIZE):
            raise InputError("ids", expected=f"ids in [0, {VOCAB_SIZE})", got=f"{array.min()} to {array.max()}")
        return _DECODE[array.astype(np.uint8, copy=False)].tobytes().decode("ascii")

    @property
    def complement(self) -> np.ndarray:
        """(23,) uint8: the complement of each id. Special tokens and the gap are their own complement."""
        return _COMPLEMENT.copy()

    def reverse_complement(self, ids: Ids) -> Ids:
        """The other strand, read in its own direction.

        Args:
            ids: Ids (..., L), numpy or torch. Padding changes sides with everything else.

        Returns:
            Ids of the same shape, dtype and library.
        """
        complement = _take(_COMPLEMENT, ids)
        if isinstance(complement, np.ndarray):
            return np.ascontiguousarray(complement[..., ::-1]).astype(ids.dtype, copy=False)
        return complement.flip(-1)

    def collapse(self, ids: Ids) -> Ids:
        """Write every id that a published 12-token checkpoint does not know as N.

        Args:
            ids: Ids of any shape, numpy or torch.

        Returns:
            Ids in [0, 12) of the same shape, dtype and library.
        """
        collapsed = _take(_COLLAPSE, ids)
        return collapsed.astype(ids.dtype, copy=False) if isinstance(collapsed, np.ndarray) else collapsed

    def one_hot(self, ids: Ids) -> Ids:
        """Base probabilities in the order A C G T.

        Args:
            ids: Ids of shape (..., L), numpy or torch.

        Returns:
            float32 of shape (..., L, 4): 1 for a base, equal shares for an ambiguity code (N is 1/4
            each), zeros for special tokens and gaps.
        """
        return _take(_ONE_HOT, ids)
