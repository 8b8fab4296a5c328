"""The public files that the protocols read: where they come from, how they are checked and what they hold.

Read with numpy alone, so that a GPU machine needs nothing else.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqkit.errors import InputError


class PublicFile(NamedTuple):
    """A file of the benchmark.

    Attributes:
        sha256: Of the unpacked content.
        origin: Where it is published.
    """

    sha256: str
    origin: str


_ETT = "github.com/zhouhaoyi/ETDataset 1d16c8f, ETT-small/ (CC BY-ND 4.0: read, never changed or shipped)"
_M4 = "github.com/Mcompetitions/M4-methods 6c1067e, Dataset/"
_NAB = "github.com/numenta/NAB ea702d7, data/realKnownCause/ (MIT)"
_UCR = "UCR archive 2018, timeseriesclassification.com"
SEISMIC = "BW.KW1._.EHZ.D.2011.090_downsampled.asc"
WINDOWS = "combined_windows.json"
NAB_SERIES = (
    "ambient_temperature_system_failure",
    "cpu_utilization_asg_misconfiguration",
    "ec2_request_latency_system_failure",
    "machine_temperature_system_failure",
    "nyc_taxi",
    "rogue_agent_key_hold",
    "rogue_agent_key_updown",
)
FILES = {
    "ETTh1.csv": PublicFile("f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066", _ETT),
    "ETTh2.csv": PublicFile("a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b", _ETT),
    "Hourly-train.csv": PublicFile("ea59b7783573c49077a835ab6465c7d66f1474783360f310988a9a737fbca62f", _M4 + "Train"),
    "Hourly-test.csv": PublicFile("71a57fccb15e534d973626ada4fb87febf789e9317715b7cc6dd3b5f90db6f42", _M4 + "Test"),
    "Weekly-train.csv": PublicFile("d478d3f6ed673e6ed3c2cb0fbed5425f72eedd51318ebebeb0b5ecfcefc37714", _M4 + "Train"),
    "Weekly-test.csv": PublicFile("3b2bc4be8e636e802260dcd843ca3c5da40536a1fbe1ecb3229a97dae4f44688", _M4 + "Test"),
    "ambient_temperature_system_failure.csv": PublicFile(
        "230b68ccca20f59d562afd5d24ad52939c9b784386bed0054018358bf9120581", _NAB
    ),
    "cpu_utilization_asg_misconfiguration.csv": PublicFile(
        "58ba65dc0737cfbac11b51514476d50c438d44011232144bb8d93f392df58f9f", _NAB
    ),
    "ec2_request_latency_system_failure.csv": PublicFile(
        "98378580aa80157e057c61d59d81daddccc6c65a2c0c800e3f01f603b8215c3f", _NAB
    ),
    "machine_temperature_system_failure.csv": PublicFile(
        "92bf5b87fc7f9bba8ca0b7ec63ccaac8cb4a1371a258e8c29a10ae9c018d82a4", _NAB
    ),
    "nyc_taxi.csv": PublicFile("d8fa6f7f0734bf5c8be12c52a94e20a82664c397d9dec4449156bd453d32856d", _NAB),
    "rogue_agent_key_hold.csv": PublicFile("47b110baa8e3636574c1033dda1cce780873647fab58223d159d4fee6f180e86", _NAB),
    "rogue_agent_key_updown.csv": PublicFile("9797cfef477c13306f7a33874ab4d6cf700f8f2c7e5825a2a5bc02004370909a", _NAB),
    WINDOWS: PublicFile(
        "1e1fbc4601321aad8d0f8b3784c8134299379f68f6c1f7777565f8ffd57ab6b1", "github.com/numenta/NAB ea702d7, labels/"
    ),
    "100.dat": PublicFile(
        "b2ea3c250e56e48f4b7b90697832b8ecd1afa1e0bb31f2dcfea4ed6e1075a639",
        "MIT-BIH Arrhythmia Database, physionet.org (ODC-By 1.0)",
    ),
    SEISMIC: PublicFile(
        "9e5a411ee3636d26591c52ad89c24307f6fd9472472e4409952b99596b5ba9a5",
        "PyPI obspy 1.5.1 wheel, obspy/signal/tests/data/",
    ),
    "ECG200_TRAIN.tsv": PublicFile("bd08b37147ebf205231ad43e02c42dd5c14bc348f4ccc7614f85634c8916bf21", _UCR),
    "ECG200_TEST.tsv": PublicFile("c8ac02caf98be23c47c044fde026219301ceaf0b2f97bc107bd0cd96330b867c", _UCR),
    "Rock_TRAIN.tsv": PublicFile("7d8b3c5cf66cf292a65d7d87c54ad8ba1a1cd0f847a290399731f69d96dbb455", _UCR),
    "Rock_TEST.tsv": PublicFile("57a9f59c757cfcccd07e29a9e889432a7b231c63b5f8b5767f3290b50747f7cb", _UCR),
}  # fmt: skip


def read_checked(folder: Path, name: str) -> bytes:
    """Unpacked content of a file, found anywhere below the folder, plain or as .gz.

    Raises:
        InputError: It is not there, or its content differs from the published one.
    """
    public = FILES[name]
    found = sorted(path for pattern in (name, name + ".gz") for path in folder.rglob(pattern))
    if not found:
        raise InputError(name, expected=f"below {folder}, plain or .gz", got="nothing", remedy=f"From {public.origin}.")
    content = gzip.decompress(found[0].read_bytes()) if found[0].suffix == ".gz" else found[0].read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != public.sha256:
        raise InputError(name, expected=f"sha256 {public.sha256}", got=digest, remedy=f"Take it from {public.origin}.")
    return content


def missing(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Names of files that are not below the folder."""
    return [n for n in names if not any(next(folder.rglob(p), None) for p in (n, n + ".gz"))]


def table(folder: Path, name: str) -> list[list[str]]:
    """Rows of a CSV file without its header."""
    return list(csv.reader(read_checked(folder, name).decode().splitlines()))[1:]


def ett(folder: Path, name: str) -> NDArray:
    """The seven channels of ETTh1 or ETTh2, (7, 17420)."""
    return np.array([row[1:] for row in table(folder, f"{name}.csv")], np.float64).T


def m4(folder: Path, group: str) -> tuple[list[NDArray], NDArray]:
    """Histories of Hourly or Weekly, and their continuations (S, H)."""
    rows = table(folder, f"{group}-train.csv")
    histories = [np.array([value for value in row[1:] if value], np.float64) for row in rows]
    return histories, np.array([row[1:] for row in table(folder, f"{group}-test.csv")], np.float64)


def nab(folder: Path, name: str) -> tuple[NDArray, NDArray, list[tuple[int, int]]]:
    """Times (seconds), values and labelled windows as half-open row ranges, rows in time order."""
    rows = table(folder, f"{name}.csv")
    times = np.array([row[0] for row in rows], "datetime64[s]")
    order = np.argsort(times, kind="stable")
    times, values = times[order], np.array([float(row[1]) for row in rows])[order]
    spans = json.loads(read_checked(folder, WINDOWS))[f"realKnownCause/{name}.csv"]
    edges = np.array(spans, "datetime64[s]")
    begins, ends = np.searchsorted(times, edges[:, 0]), np.searchsorted(times, edges[:, 1], side="right")
    return times.astype(np.int64), values, list(zip(begins.tolist(), ends.tolist(), strict=True))


def ecg(folder: Path) -> NDArray:
    """Both leads of record 100 in millivolts, (2, 650000).

    Format 212 packs two 12-bit samples into three bytes: low bytes around one with both high halves.
    """
    packed = np.frombuffer(read_checked(folder, "100.dat"), np.uint8).reshape(-1, 3).astype(np.int32)
    first = packed[:, 0] | (packed[:, 1] & 0x0F) << 8
    second = packed[:, 2] | (packed[:, 1] & 0xF0) << 4
    samples = np.stack([first, second])
    return (np.where(samples > 2047, samples - 4096, samples) - 1024) / 200.0


def seismic(folder: Path) -> NDArray:
    """Counts of one seismometer channel, (936001,)."""
    return np.array(read_checked(folder, SEISMIC).split(), np.float64)


def ucr(folder: Path, name: str, part: str) -> tuple[NDArray, NDArray]:
    """Series (N, T) and class labels (N,) of one part, TRAIN or TEST."""
    lines = read_checked(folder, f"{name}_{part}.tsv").decode().splitlines()
    values = np.array([line.split("\t") for line in lines], np.float64)
    return values[:, 1:], values[:, 0].astype(int)
