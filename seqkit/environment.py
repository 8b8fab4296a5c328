"""What the machine and the job give a process: CPUs, scratch folders, NVIDIA devices. Standard library alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_SLURM_GPUS = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE")


def cpu_count() -> int:
    """CPUs this process may use: those of its affinity, and no more than SLURM gave its task."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(count, int(task))) if task.isdigit() else count


def prepare() -> None:
    """Set what libraries read when they are imported; a variable that is set already stays."""
    # OpenMP threads that spin for long while idle take the cores from the working ones wherever a job does not own the
    # machine (short operations became ten times slower); ones that sleep at once make every operation wait for them.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    if cpu_count() < (os.cpu_count() or 1):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
            os.environ.setdefault(name, str(cpu_count()))
    if "SLURM_JOB_ID" in os.environ:
        # Home folders of clusters are on a network, where many jobs that compile at once trip over each other.
        local = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
        owner = os.getuid() if hasattr(os, "getuid") else "user"
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(local) / f"seqkit-triton-{owner}"))


def nvidia_devices() -> list[str]:
    """Device files of NVIDIA cards that are meant for this process; none where the job or the user hid them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return []
    if "SLURM_JOB_ID" in os.environ and not any(os.environ.get(name) for name in _SLURM_GPUS):
        return []
    return sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
