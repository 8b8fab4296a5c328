"""Values of a user's numeric features: from the variants' own columns, INFO keys, tabix tables or BigWig tracks.

A model that was fitted with a column needs it for every allele it scores. Where the new variants do not carry it, a
source is declared once, by name: ``{"CADD": "whole_genome.tsv.gz:PHRED", "phyloP": "phylop.bw", "AF": "INFO/AF"}``.
Legend: N alleles, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from seqkit.data.genome import match_contig
from seqkit.data.labels import read_features
from seqkit.data.tables import missing_column
from seqkit.data.variants import VariantTable, column_map
from seqkit.data.vcf import import_pysam
from seqkit.errors import ConfigError, InputError

BIGWIG_SUFFIXES = (".bw", ".bigwig", ".bigWig")


class FeatureSource(Protocol):
    """One feature's values."""

    def values(self, table: VariantTable) -> np.ndarray:
        """float32 (N,), NaN where the source has none."""


class ColumnSource:
    """A column of the variants, or an INFO key of a VCF.

    Args:
        column: Its name in the table's records.
    """

    def __init__(self, column: str):
        self.column = column

    def values(self, table: VariantTable) -> np.ndarray:
        """See :class:`FeatureSource`."""
        return read_features(table, [self.column])[0][:, 0]


class TabixSource:
    """A column of a table compressed with bgzip and indexed with tabix, with a header line that starts with ``#``.

    Where the table has columns for reference and alternate allele, both must agree; else the position decides.

    Args:
        path: The table.
        column: Name of the value's column.
    """

    def __init__(self, path: Path, column: str):
        self.path = path
        pysam = import_pysam()
        try:
            self._file = pysam.TabixFile(str(path))
            header = list(self._file.header)
        except (OSError, ValueError) as error:
            raise ConfigError(
                "data.sources", expected=f"{path} with its index", got=str(error),
                remedy=f"Make one: tabix -s 1 -b 2 -e 2 {path.name}",
            ) from error  # fmt: skip
        names = header[-1].lstrip("#").split("\t") if header else []
        if column not in names:
            raise ConfigError("data.sources", expected=f"a column of {path}: {', '.join(names)}", got=repr(column))
        self._value = names.index(column)
        try:
            places = column_map(names)
            self._alleles = names.index(places["ref"]), names.index(places["alt"])
        except InputError:
            self._alleles = None
        self._contigs: dict[str, str | None] = {}

    def values(self, table: VariantTable) -> np.ndarray:
        """See :class:`FeatureSource`."""
        rows = table.alleles.select("contig", "pos", "ref", "alt").iter_rows()
        return np.array([self._one(*row) for row in rows], dtype=np.float32)

    def _one(self, contig: str, pos: int, ref: str, alt: str) -> float:
        if contig not in self._contigs:
            self._contigs[contig] = match_contig(contig, self._file.contigs)
        name = self._contigs[contig]
        if name is None or pos < 1:
            return np.nan
        for line in self._file.fetch(name, pos - 1, pos):
            fields = line.split("\t")
            if self._alleles and [fields[i].upper() for i in self._alleles] != [ref, alt]:
                continue
            try:
                return float(fields[self._value])
            except ValueError:  # a dot
                return np.nan
        return np.nan


class BigWigSource:
    """A BigWig track: the mean over the bases of REF.

    Args:
        path: The track.
    """

    def __init__(self, path: Path):
        try:
            import pybigtools
        except ImportError as error:
            raise ConfigError(
                "data.sources", expected="pybigtools, which reads BigWig", got="an installation without it",
                remedy="pip install 'seqkit[tracks]'",
            ) from error  # fmt: skip
        try:
            self._file = pybigtools.open(str(path))
            self._lengths = self._file.chroms()
        except Exception as error:  # pybigtools raises errors of its own without a common base
            raise ConfigError("data.sources", expected=f"a BigWig at {path}", got=str(error)) from error

    def values(self, table: VariantTable) -> np.ndarray:
        """See :class:`FeatureSource`."""
        out = np.full(len(table), np.nan, dtype=np.float32)
        names = {name: match_contig(name, self._lengths) for name in table.alleles["contig"].unique().to_list()}
        for i, (contig, pos, ref) in enumerate(table.alleles.select("contig", "pos", "ref").iter_rows()):
            name, start = names[contig], pos - 1
            if name is None or start < 0 or start >= self._lengths[name]:
                continue
            end = min(start + max(len(ref), 1), self._lengths[name])
            found = np.asarray(self._file.values(name, start, end, fillna=None), dtype=np.float64)
            if not np.isnan(found).all():
                out[i] = np.nanmean(found)
        return out


def open_sources(
    features: str | Sequence[str] | None, declared: Mapping[str, str] | None, columns: Sequence[str]
) -> dict[str, FeatureSource]:
    """The source of every feature, in their order.

    Args:
        features: Names; a string is split at commas.
        declared: Name to source; see the module.
        columns: Columns of the variants, INFO keys as ``INFO/key``.

    Raises:
        ConfigError: A feature has neither a column nor a source, or its source cannot be opened.
    """
    names = [n.strip() for n in features.split(",") if n.strip()] if isinstance(features, str) else list(features or ())
    sources: dict[str, FeatureSource] = {}
    for name in names:
        text = (declared or {}).get(name)
        if text is not None:
            sources[name] = _open(name, text, columns)
        elif name in columns:
            sources[name] = ColumnSource(name)
        elif f"INFO/{name}" in columns:
            sources[name] = ColumnSource(f"INFO/{name}")
        else:
            hint = missing_column(name, columns, "features").remedy
            declare = f'Or declare a source: --sources \'{{"{name}": "INFO/KEY, FILE.tsv.gz:COLUMN or FILE.bw"}}\'.'
            raise ConfigError(
                "features", expected=f"a column or a source of {name!r}", got="variants without it",
                remedy=f"{hint} {declare}".strip(),
            )  # fmt: skip
    return sources


def _open(name: str, text: str, columns: Sequence[str]) -> FeatureSource:
    if text in columns:
        return ColumnSource(text)
    if text.startswith("INFO/"):
        near = missing_column(text, columns, "data.sources")
        raise ConfigError("data.sources", expected=near.expected, got=near.got, remedy=near.remedy)
    path, _, column = text.partition(":")
    if not Path(path).is_file():
        raise ConfigError("data.sources", expected=f"a source of {name!r}", got=f"{path}, which does not exist")
    if path.endswith(BIGWIG_SUFFIXES):
        return BigWigSource(Path(path))
    return TabixSource(Path(path), column or name)


def feature_matrix(table: VariantTable, sources: Mapping[str, FeatureSource]) -> tuple[np.ndarray, tuple[str, ...]]:
    """float32 (N, F) with NaN where a source has no value, and the F names."""
    if not sources:
        return np.zeros((len(table), 0), dtype=np.float32), ()
    return np.stack([source.values(table) for source in sources.values()], axis=1), tuple(sources)
