"""``seqkit estimate``: memory and time of a model at a length, and what would make it fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from seqkit.backbones import BackboneConfig
from seqkit.commands.arguments import model_presets, parse
from seqkit.errors import MemoryLimitError
from seqkit.estimate.advice import MARGIN, in_gib, what_fits
from seqkit.estimate.limits import free_bytes, host_bytes
from seqkit.estimate.memory import Memory, peak_memory
from seqkit.estimate.rates import CPU_PROCESS_BYTES, Card, card, seconds
from seqkit.estimate.timing import cpu_seconds
from seqkit.estimate.workload import Workload

EXIT_TOO_LARGE = MemoryLimitError.exit_code


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """What to estimate.

    Attributes:
        model: Architecture: a preset or YAML file, and dotted keys.
        length: Tokens of a sequence.
        batch: Sequences at once.
        precision: 32-true, bf16-mixed or bf16-true; none takes bf16-true for a card and 32-true for a CPU.
    """

    model: BackboneConfig = field(default_factory=lambda: BackboneConfig(d_model=128, layout="mamba2*3"))
    length: int = 8192
    batch: int = 1
    precision: str | None = None


def run(argv: Sequence[str]) -> int:
    """Print the estimate; exit code 5 if it does not fit."""
    config, own, _ = parse(
        "seqkit estimate", EstimateConfig, model_presets(argv), options=("for",), flags=("json", "inference")
    )
    target = own["for"] or ("h100-80gb" if torch.cuda.is_available() else "cpu")
    gpu = target != "cpu"
    workload = Workload(
        model=config.model,
        length=config.length,
        batch=config.batch,
        precision=config.precision or ("bf16-true" if gpu else "32-true"),
        training=not own["inference"],
    )
    found = estimate(workload, card(target) if gpu else None)
    print(json.dumps(found) if own["json"] else as_text(found))
    return 0 if found["fits"] else EXIT_TOO_LARGE


def estimate(workload: Workload, target: Card | None) -> dict[str, Any]:
    """All figures as plain values.

    Args:
        workload: What is to be run.
        target: A card; None for this machine's CPU, whose time is measured on short steps.
    """
    gpu = target is not None
    memory = peak_memory(workload, gpu=gpu)
    limit = target.memory if gpu else free_bytes(torch.device("cpu"))
    total = memory.total if gpu else memory.total + CPU_PROCESS_BYTES
    fits = limit is None or total * MARGIN <= limit
    spent = None
    if gpu and target.rates is not None:
        spent = seconds(workload, target.rates)
    elif not gpu and fits:
        spent = cpu_seconds(workload)
    found = _figures(workload, memory, total, gpu) | {"for": target.name if gpu else "cpu", "limit_bytes": limit}
    found |= {"fits": fits, "seconds": spent, "tokens_per_s": None if not spent else round(workload.tokens / spent)}
    found["speed_from"] = target.rates.measured if gpu and target.rates else None if gpu else "short steps, here"
    if not fits:
        found["advice"] = what_fits(workload, limit, gpu=gpu, host_limit=host_bytes() if gpu else None)
    return found


def _figures(workload: Workload, memory: Memory, total: int, gpu: bool) -> dict[str, Any]:
    parts = memory.parts() if gpu else {"process": CPU_PROCESS_BYTES} | memory.parts()
    return {
        "layout": workload.model.layout,
        "d_model": workload.model.d_model,
        "batch": workload.batch,
        "length": workload.length,
        "precision": workload.precision,
        "training": workload.training,
        "parameters": memory.parameters,
        "peak_bytes": total,
        "parts_bytes": parts,
        "host_bytes": memory.host,
        "bytes_per_token": round(total / workload.tokens, 1),
    }


def as_text(found: dict[str, Any]) -> str:
    """The figures for people."""
    what = "one training step" if found["training"] else "one forward pass"
    lines = [
        f"{found['layout']}, width {found['d_model']}, {found['parameters'] / 1e6:.2f} M parameters",
        f"{what}, {found['batch']} x {found['length']:,} tokens, {found['precision']}, for {found['for']}",
        "",
        f"peak memory  {in_gib(found['peak_bytes'])}, {found['bytes_per_token']:,.0f} bytes a token",
    ]
    lines += [f"  {in_gib(size):>11}  {name}" for name, size in found["parts_bytes"].items()]
    if found["host_bytes"]:
        lines.append(f"  {in_gib(found['host_bytes']):>11}  pinned host memory for offloaded block inputs")
    if found["seconds"] is None:
        lines.append("time         not known for this card" if found["fits"] else "time         not estimated")
    else:
        rate = f"{found['tokens_per_s'] / 1e6:.3g} million tokens/s"
        lines.append(f"time         {found['seconds']:.3g} s, {rate} (speed from {found['speed_from']})")
    limit = "" if found["limit_bytes"] is None else f" in {in_gib(found['limit_bytes'])}"
    lines.append(f"fits{limit}" if found["fits"] else f"does not fit{limit}; {found['advice']}")
    return "\n".join(lines)
