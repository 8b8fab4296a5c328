"""``seqkit doctor``: what this machine has and lacks, with the remedy beside it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from seqkit import __version__
from seqkit.data.cache import cache_folder
from seqkit.environment import cpu_count, nvidia_devices
from seqkit.errors import ConfigError, SeqkitError

EXIT_UNFIT = 3
LIBRARIES = ("lightning", "polars", "pyfaidx", "biopython", "safetensors", "torchmetrics")
OPTIONAL = {
    "pysam": "VCF and BCF",
    "pybigtools": "features from BigWig",
    "wfdb": "WFDB records",
    "transformers": "Hugging Face models",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: ``ok``, ``note`` (works, but), or ``FAIL``.
        name: What was looked at.
        text: What was found, and what to do.
    """

    state: str
    name: str
    text: str


def run(argv: Sequence[str]) -> int:
    """Print one line a check; exit code 3 where one fails."""
    if {"-h", "--help"} & set(argv):
        print("usage: seqkit doctor\nChecks torch, CUDA, Triton, caches, the PATH and one known answer per op.")
        return 0
    if argv:
        raise ConfigError("doctor", expected="no arguments", got=" ".join(argv))
    failed = False
    for check in CHECKS:
        for finding in check():
            failed |= finding.state == "FAIL"
            print(f"{finding.state:<5} {finding.name:<16} {finding.text}", flush=True)
    print("Something must be mended: see FAIL above." if failed else "Ready.")
    return EXIT_UNFIT if failed else 0


def check_python() -> Iterator[Finding]:
    """Python, libraries and CPUs."""
    yield Finding("ok", "seqkit", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    have = {name: _version(name) for name in (*LIBRARIES, *OPTIONAL)}
    lacking = [name for name in LIBRARIES if have[name] is None]
    if lacking:
        yield Finding("FAIL", "libraries", f"missing: {', '.join(lacking)}; pip install seqkit brings them")
    yield Finding("ok", "libraries", ", ".join(f"{name} {found}" for name, found in have.items() if found))
    for name, use in OPTIONAL.items():
        if have[name] is None:
            yield Finding("note", name, f"not installed: no {use}")
    job = "SLURM task" if os.environ.get("SLURM_CPUS_PER_TASK") else "affinity"
    yield Finding("ok", "CPUs", f"{cpu_count()} of {os.cpu_count()} ({job})")


def check_torch() -> Iterator[Finding]:
    """torch, its CUDA, the driver and the cards."""
    import torch

    cuda, driver, cards = torch.version.cuda, driver_version(), nvidia_devices()
    yield Finding(
        "ok", "torch", f"{torch.__version__}, " + (f"built for CUDA {cuda}" if cuda else "built without CUDA")
    )
    if driver:
        yield Finding("ok", "NVIDIA driver", driver)
    if torch.cuda.is_available():
        known = torch.cuda.get_arch_list()
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            state = "ok" if any(re.match(rf"(sm|compute)_{major}\d", arch) for arch in known) else "FAIL"
            text = f"{torch.cuda.get_device_name(i)}, sm_{major}{minor}"
            more = "" if state == "ok" else f"; this torch has code for {', '.join(known)}: install one for the card"
            yield Finding(state, f"cuda:{i}", text + more)
    elif cards and cuda is None:
        yield Finding("FAIL", "CUDA", f"{cards[0]} is there and torch has no CUDA: install a CUDA build of torch")
    elif cards:
        yield Finding(
            "FAIL", "CUDA", f"{cards[0]} is there and torch cannot use it: CUDA {cuda} needs a newer driver than "
            f"{driver or 'none'}, or the card is not passed into this container (apptainer --nv, docker --gpus all)"
        )  # fmt: skip
    else:
        yield Finding("note", "CUDA", "no NVIDIA device for this process: everything runs on the CPU")


def check_triton() -> Iterator[Finding]:
    """Triton, and what it compiles its launchers with."""
    import torch

    needed = "FAIL" if torch.cuda.is_available() else "note"
    found = _version("triton")
    if found is None:
        yield Finding(needed, "Triton", "not installed: GPUs run the PyTorch reference, which is slow")
        return
    yield Finding("ok", "Triton", found)
    compiler = next((c for c in (os.environ.get("CC"), "gcc", "clang", "cc") if c and shutil.which(c)), None)
    if compiler is None:
        yield Finding(needed, "C compiler", "none found, and Triton compiles its launchers with one: install gcc")
    else:
        yield Finding("ok", "C compiler", str(shutil.which(compiler)))
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if header.is_file():
        yield Finding("ok", "Python headers", str(header.parent))
    else:
        yield Finding(needed, "Python headers", f"{header} is missing: install python3-dev or use a conda Python")


def check_folders() -> Iterator[Finding]:
    """Caches that must be writable."""
    triton = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    for name, place, variable in (
        ("seqkit cache", cache_folder, "SEQKIT_CACHE"),
        ("Triton cache", lambda: triton, "TRITON_CACHE_DIR"),
    ):
        try:
            folder = Path(place())
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                yield Finding("ok", name, str(folder))
        except (OSError, SeqkitError) as error:
            yield Finding("FAIL", name, f"cannot be written ({error}): set {variable} to a folder of yours")


def check_answers() -> Iterator[Finding]:
    """One known answer per op, on every kind of device there is."""
    import torch

    from seqkit.commands import golden
    from seqkit.kernels import provider_for

    for device in [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]:
        for op in golden.ANSWERS:
            try:
                error = golden.error(op, device)
                state = "ok" if error <= golden.TOLERANCE else "FAIL"
                text = f"{provider_for(op, torch.zeros(1, device=device))}, off by {error:.0e} of its known answer"
            except Exception as problem:
                state, text = "FAIL", f"{type(problem).__name__}: {' '.join(str(problem).split())[:160]}"
            yield Finding(state, f"{op} {device}", text)


def check_path() -> Iterator[Finding]:
    """Another program named seqkit on the PATH."""
    for path in commands_named("seqkit"):
        if is_ours(path):
            yield Finding("ok", "seqkit command", str(path))
        else:
            yield Finding(
                "note", "seqkit command", f"{path} is another program (a FASTA/FASTQ toolkit has this name): "
                "call this one as seqkit-ml, or python -m seqkit in pipelines"
            )  # fmt: skip


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_torch, check_triton, check_folders, check_path, check_answers,
)  # fmt: skip


def commands_named(name: str) -> list[Path]:
    """Executable files of that name on the PATH, in its order, each once."""
    places = [Path(folder) / name for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    return list(dict.fromkeys(p for p in places if p.is_file() and os.access(p, os.X_OK)))


def is_ours(path: Path) -> bool:
    """True for the script that pip makes for this package."""
    with path.open("rb") as handle:
        return b"seqkit.cli" in handle.read(4096)


def driver_version() -> str | None:
    """Version of the NVIDIA kernel driver, or None."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\S*\s+(?:for \S+\s+)?([\d.]+)", path.read_text()) if path.is_file() else None
    return found[1] if found else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
