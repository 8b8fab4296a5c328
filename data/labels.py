"""Labels and numeric columns of a variant table as float32 matrices. Legend: N alleles, K targets, F columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import polars as pl

from seqkit.data.variants import VariantTable
from seqkit.errors import InputError

_MAX_CLASSES = 100


@dataclass(frozen=True)
class Labels:
    """Targets of a variant table.

    Attributes:
        values_NK: float32; NaN where an allele has no label. Binary: 0 or 1. Multi-class: the class number.
        names: One name a target.
        kind: ``binary``, ``multiclass`` or ``continuous``.
        classes: Class names in the order of their numbers; empty for continuous targets.
    """

    values_NK: np.ndarray
    names: tuple[str, ...]
    kind: str
    classes: tuple[str, ...] = ()


def read_labels(
    table: VariantTable, columns: str | Sequence[str], *, positive: str | Sequence[str] | None = None
) -> Labels:
    """Turn one or several columns into targets.

    Args:
        table: Variants with the columns.
        columns: Name, or names, of the columns. A name may contain commas; a list is a list.
        positive: Value or values that count as 1; every other value is 0, a missing one NaN.

    Returns:
        ``binary`` with ``positive``, or where all values are 0, 1, true or false; ``multiclass`` for one text column;
        ``continuous`` for numeric columns.

    Raises:
        InputError: A column is absent, ``positive`` never occurs, all values are missing, or text and several columns
            are mixed.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    series = [table.column(name, "label") for name in names]
    for one in series:
        if one.null_count() == len(one):
            raise InputError("label", expected=f"values in column {one.name!r}", got="missing values only")
    if positive is not None:
        wanted = [positive] if isinstance(positive, str) else [str(value) for value in positive]
        stacked = np.stack([_is_positive(one, wanted) for one in series], axis=1)
        return Labels(stacked, tuple(names), "binary", ("rest", "|".join(wanted)))
    if all(one.dtype.is_numeric() or one.dtype == pl.Boolean for one in series):
        stacked = np.stack([_to_float(one) for one in series], axis=1)
        seen = set(np.unique(stacked[np.isfinite(stacked)]).tolist())
        binary = seen <= {0.0, 1.0}
        return Labels(stacked, tuple(names), "binary" if binary else "continuous", ("0", "1") if binary else ())
    if len(series) > 1:
        raise InputError(
            "label",
            expected="numeric columns where there are several",
            got="text columns",
            remedy="Say --positive VALUE.",
        )
    return _multiclass(series[0])


def read_features(table: VariantTable, columns: str | Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numeric columns as features.

    Args:
        table: Variants with the columns.
        columns: Names; a string is split at commas, e.g. ``"CADD.score,phyloP (mammalian)"``.

    Returns:
        float32 of shape (N, F) with NaN for missing values, and the F names.

    Raises:
        InputError: A column is absent (names the nearest) or holds text.
    """
    names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else list(columns)
    matrix = [_to_float(table.column(name, "features")) for name in names if name]
    if not matrix:
        return np.zeros((len(table), 0), dtype=np.float32), ()
    return np.stack(matrix, axis=1), tuple(name for name in names if name)


def _is_positive(series: pl.Series, wanted: list[str]) -> np.ndarray:
    text = series.cast(pl.String)
    present = text.drop_nulls().unique().to_list()
    for value in wanted:
        if value not in present:
            near = get_close_matches(value, present, n=1, cutoff=0.4)
            raise InputError(
                "positive",
                expected=f"a value of column {series.name!r}: {', '.join(sorted(present)[:12])}",
                got=repr(value),
                remedy=f"Did you mean {near[0]!r}?" if near else "",
            )
    return text.is_in(wanted).cast(pl.Float32).to_numpy().copy()


def _to_float(series: pl.Series) -> np.ndarray:
    values = series.cast(pl.Float64, strict=False)
    if values.null_count() > series.null_count():
        bad = series.filter(values.is_null() & series.is_not_null())[0]
        raise InputError(repr(series.name), expected="a numeric column", got=f"{bad!r}")
    return values.cast(pl.Float32).to_numpy().copy()


def _multiclass(series: pl.Series) -> Labels:
    text = series.cast(pl.String)
    classes = sorted(text.drop_nulls().unique().to_list())
    if not 2 <= len(classes) <= _MAX_CLASSES:
        raise InputError(
            "label",
            expected=f"2 to {_MAX_CLASSES} classes in column {series.name!r}",
            got=f"{len(classes)} different values",
        )
    numbers = text.replace_strict(classes, list(range(len(classes))), default=None, return_dtype=pl.Float32)
    return Labels(numbers.to_numpy().copy()[:, None], (series.name,), "multiclass", tuple(classes))
