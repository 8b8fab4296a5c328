"""Records of physiological signals (WFDB, the format of PhysioNet) as long frames."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from seqkit.errors import ConfigError, InputError


def read_record(header: Path) -> pl.LazyFrame:
    """A row per signal and sample: ``unique_id`` (the signal's name), ``ds`` (the sample's number), ``y``.

    Values are in the signal's physical unit, NaN where the record marks a sample as missing. Where two signals have one
    name, their numbers are added to it.

    Args:
        header: The ``.hea`` file; the signals lie where it says.

    Raises:
        ConfigError: The package that reads records is not installed.
        InputError: The record is damaged, or a signal file is not there.
    """
    try:
        import wfdb
    except ImportError as error:
        raise ConfigError(
            "--table", expected="wfdb, which reads records", got="an installation without it",
            remedy="pip install 'seqkit[wfdb]'",
        ) from error  # fmt: skip
    try:
        record = wfdb.rdrecord(str(header.with_suffix("")))
    except Exception as error:  # wfdb raises errors of many kinds without a common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(str(header), expected="a readable WFDB record", got=reason) from error
    values_TC = record.p_signal
    if values_TC is None or not values_TC.size:
        raise InputError(str(header), expected="a record with signals", got="none")
    times = Counter(record.sig_name)
    names = [name if times[name] == 1 else f"{name} {number}" for number, name in enumerate(record.sig_name)]
    steps, channels = values_TC.shape
    ids = pl.Series("unique_id", names, dtype=pl.String)[np.repeat(np.arange(channels), steps)]
    ds = pl.Series("ds", np.tile(np.arange(steps), channels))
    return pl.LazyFrame({"unique_id": ids, "ds": ds, "y": values_TC.T.reshape(-1)})
