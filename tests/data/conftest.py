import gzip

import numpy as np
import polars as pl
import pytest

from seqkit.data import bundled
from seqkit.data.fasta import Fasta
from seqkit.data.regions import read_annotation
from seqkit.data.sites import locate
from seqkit.data.variants import read_variants


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write_fasta(tmp_path):
    """Write records to a FASTA file (plain, gzip or bgzip by ``how``) and return its path."""

    def write(records, name="ref.fa", how="plain", width=7):
        text = "".join(
            f">{key} a remark\n" + "".join(bases[i : i + width] + "\n" for i in range(0, len(bases), width))
            for key, bases in records.items()
        ).encode()
        path = tmp_path / name
        if how == "bgzip":
            import pysam

            with pysam.BGZFile(str(path), "w") as out:
                out.write(text)
        else:
            path.write_bytes(gzip.compress(text) if how == "gzip" else text)
        return path

    return write


@pytest.fixture
def table_of():
    """Variant table from (contig, pos, ref, alt) rows."""

    def make(*rows, **columns):
        frame = pl.DataFrame(list(rows), schema=["chrom", "pos", "ref", "alt"], orient="row")
        return read_variants(frame.with_columns(**{k: pl.Series(v) for k, v in columns.items()}))

    return make


@pytest.fixture(scope="session")
def brca1():
    """The bundled set, read once: paths, table, reference, annotation, sites."""
    from types import SimpleNamespace

    paths = bundled.brca1()
    table, fasta = read_variants(paths.table), Fasta(paths.fasta)
    return SimpleNamespace(
        paths=paths,
        table=table,
        fasta=fasta,
        annotation=read_annotation(paths.annotation),
        sites=locate(table, fasta, length=64),
        labels=(table.records["func.class"] == "LOF").to_numpy().astype(np.float32),
    )
