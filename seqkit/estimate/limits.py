"""How much memory a process may still take: the GPU's, the machine's, the job's."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that tensors on a device can still take.

    Args:
        device: A CPU means host memory.
        root: Where ``proc`` and ``sys`` lie.

    Returns:
        Bytes; None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return host_bytes(root)


def host_bytes(root: Path = Path("/")) -> int | None:
    """The least of what the machine has available and what the cgroups of the process leave it; None if unknown."""
    known = [x for x in (_available(root), _cgroup_room(root)) if x is not None]
    return min(known) if known else None


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _cgroup_room(root: Path) -> int | None:
    """Limit minus use of every cgroup that holds the process, version 2 or 1; file cache counts as free."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if base in (group, *group.parents):
                rooms.append(_room(group, *names))
    found = [room for room in rooms if room is not None]
    return min(found) if found else None


def _room(group: Path, limit_name: str, use_name: str) -> int | None:
    try:
        limit = (group / limit_name).read_text().strip()
        use = int((group / use_name).read_text())
        cache = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except (OSError, ValueError):
        return None
    if limit == "max" or int(limit) >= 1 << 60:
        return None
    files = sum(int(value) for name, value in cache if name in ("inactive_file", "active_file"))
    return max(0, int(limit) - use + files)
