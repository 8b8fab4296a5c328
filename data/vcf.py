"""VCF and BCF through pysam, read whole into frames; ``vcf_stream`` reads and writes them in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from seqkit.errors import InputError

if TYPE_CHECKING:
    import pysam


def import_pysam():
    """Import pysam, or say why it is not there.

    Raises:
        InputError: pysam is not installed; there is no build for Windows.
    """
    try:
        import pysam
    except ImportError as error:
        raise InputError(
            "VCF",
            expected="pysam, which reads and writes VCF and BCF",
            got="an installation without it (pysam has no Windows build)",
            remedy="Give the variants as TSV, CSV or Parquet, or run under Linux, macOS or WSL.",
        ) from error
    return pysam


@contextmanager
def open_vcf(path: Path) -> Iterator[pysam.VariantFile]:
    """Open a VCF, VCF.gz or BCF; what pysam reports while it is read becomes an InputError."""
    pysam = import_pysam()
    if not path.is_file():
        raise InputError(str(path), expected="a VCF or BCF file", got="a folder" if path.is_dir() else "no such file")
    # htslib prints its own lines on stderr; ours says the same with the file's name.
    verbosity = pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(path)) as handle:
            yield handle
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            str(path),
            expected="a complete VCF or BCF with a ##fileformat line and a header for every contig and field it uses",
            got=f"{type(error).__name__}: {error}",
        ) from error
    finally:
        pysam.set_verbosity(verbosity)


def read_vcf(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read all records.

    Returns:
        Alleles (columns of :class:`seqkit.data.variants.VariantTable`) and records. INFO fields with one value per
        alternate are list columns, other tuples are joined by commas, flags are booleans.

    Raises:
        InputError: The file is damaged, has no records, or breaks the format.
    """
    alleles: list[tuple] = []
    records: list[dict] = []
    with open_vcf(path) as handle:
        info = dict(handle.header.info.items())
        for row, record in enumerate(handle):
            alternates = record.alts or (".",)
            for allele, alt in enumerate(alternates):
                alleles.append((row, allele, record.contig, record.pos, record.ref.upper(), alt.upper(), record.id))
            records.append(record_fields(record, info))
    if not records:
        raise InputError(str(path), expected="at least one variant", got="a header without records")
    schema = {
        "row": pl.Int64, "allele": pl.Int64, "contig": pl.String, "pos": pl.Int64, "ref": pl.String, "alt": pl.String,
        "id": pl.String,
    }  # fmt: skip
    undeclared = {key: pl.String for fields in records for key in fields if key.startswith("INFO/")}
    frame = pl.DataFrame(records, schema=undeclared | record_schema(info), strict=False)
    frame = frame.select(*_FIXED, pl.exclude(*_FIXED))
    empty = [name for name in frame.columns if name.startswith("INFO/") and frame[name].null_count() == frame.height]
    return pl.DataFrame(alleles, schema=schema, orient="row"), frame.drop(empty)


_FIXED = {
    "CHROM": pl.String, "POS": pl.Int64, "ID": pl.String, "REF": pl.String, "ALT": pl.String, "QUAL": pl.Float64,
    "FILTER": pl.String,
}  # fmt: skip
_TYPES = {"Integer": pl.Int64, "Float": pl.Float64, "Flag": pl.Boolean}


def record_schema(info: dict) -> dict:
    """Columns of a frame of records with their types; ``info`` as in pysam's header."""
    schema = dict(_FIXED)
    for key, meta in info.items():
        scalar = _TYPES.get(meta.type, pl.String)
        if meta.number == "A":
            schema[f"INFO/{key}"] = pl.List(scalar)
        else:
            schema[f"INFO/{key}"] = scalar if meta.number in (0, 1) else pl.String
    return schema


def record_fields(record, info: dict) -> dict:
    """Fixed columns and INFO of a pysam record, as values of :func:`record_schema`."""
    fields = {
        "CHROM": record.contig,
        "POS": record.pos,
        "ID": record.id,
        "REF": record.ref,
        "ALT": ",".join(record.alts) if record.alts else ".",
        "QUAL": record.qual,
        "FILTER": ";".join(record.filter.keys()) or None,
    }
    for key, value in record.info.items():
        if key not in info:  # htslib takes keys the header does not declare as text
            value = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        elif info[key].number == "A":
            value = list(value)
        elif isinstance(value, tuple):
            value = ",".join("." if item is None else str(item) for item in value)
        fields[f"INFO/{key}"] = value
    return fields
