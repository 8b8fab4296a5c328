"""Where the time of a training step goes, part by part, beside the least that each part could take.

Times are those of the kernels on the GPU, sorted by name. The floor of a part is the larger of the times that a copy,
exponentials or matrix products at the card's measured rates would take for what this training scheme makes it do:
everything inside a block runs forward twice and backward once, the residual norm too.

Legend: E inner channels, H heads, N states, G groups.
"""

from __future__ import annotations

import re
from collections import defaultdict

import torch

from seqkit.bench.training_step import TrainingStep
from seqkit.kernels.bench.ceilings import Ceilings
from seqkit.kernels.bench.operations import OPERATIONS, Work

PARTS = ("scans", "projections", "conv", "norms", "loss", "optimiser", "host copies", "other")
_PATTERNS = (
    ("host copies", r"memcpy (dtoh|htod)"),
    ("optimiser", r"multi_tensor|adam|lerp"),
    ("loss", r"softmax|nll_loss|embedding|index_(select|elementwise).*nll"),
    ("conv", r"^conv_"),
    ("norms", r"^norm_"),
    ("projections", r"gemm|gemv|nvjet|cutlass|cublas|splitk|wgmma|xmma"),
    ("scans", r"flash|fmha|attention|_kernel$"),
)


def part_of(kernel: str) -> str:
    """The part that a kernel belongs to, by its name: Triton kernels of seqkit end in ``_kernel``."""
    patterns = _PATTERNS[:3] if re.search("at::native|memcpy|memset", kernel, re.IGNORECASE) else _PATTERNS
    return next((part for part, pattern in patterns if re.search(pattern, kernel, re.IGNORECASE)), "other")


def breakdown(step: TrainingStep) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Milliseconds of GPU time by part, and the ten longest kernels, of one step under the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step.run()
        torch.cuda.synchronize()
    kernels: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        annotation = getattr(event, "is_user_annotation", False) or event.name.startswith(("Optimizer.", "Profiler"))
        if on_device and not annotation:
            kernels[event.name] += event.time_range.elapsed_us() / 1e3
    parts = dict.fromkeys(PARTS, 0.0)
    for name, spent in kernels.items():
        parts[part_of(name)] += spent
    longest = sorted(kernels.items(), key=lambda item: -item[1])[:10]
    return {name: round(spent, 3) for name, spent in parts.items()}, [(n[:100], round(t, 3)) for n, t in longest]


def floors(step: TrainingStep, best: Ceilings) -> dict[str, float]:
    """The least milliseconds of each part."""
    setting, size = step.setting, getattr(torch, step.setting.dtype).itemsize
    core = step.backbone.stack.blocks[0].mixer
    projections = core.in_proj.weight.numel() + core.out_proj.weight.numel()
    directions = 1 if setting.causal else 2
    core = core if setting.causal else getattr(core, "left", core)
    rows = {"B": setting.batch, "L": setting.length}
    works: dict[str, Work] = defaultdict(lambda: Work(0))
    calls = setting.layers * setting.strands

    def add(part: str, op: str, times: int, **sizes: int) -> None:
        forward, both = OPERATIONS[op].work(rows | sizes, size)
        works[part] = _sum(works[part], forward, times)
        works[part] = _sum(works[part], both, times)

    _add_core(add, setting.mixer, core, calls * directions)
    if setting.mixer == "mamba1":
        projections += directions * (core.x_proj.weight.numel() + core.dt_proj.weight.numel())
    add("norms", "rms_norm", calls, D=setting.d_model)
    width = setting.tokens * setting.d_model * setting.strands * size
    works["projections"] = Work(0, 0, 8.0 * setting.tokens * calls * projections)
    works["loss"] = Work(3 * width, 0, 8.0 * setting.tokens * setting.strands * step.head.output.weight.numel())
    works["optimiser"] = Work(7.0 * size * step.parameters)
    return {part: round(best.least_ms(work)[0], 3) for part, work in works.items()}


def _add_core(add, mixer: str, core: torch.nn.Module, calls: int) -> None:
    """Scan, convolution and gated norm of one direction."""
    if mixer == "attention":
        add("scans", "attention", calls, H=core.n_heads, P=core.headdim)
        return
    if mixer == "mamba1":
        add("scans", "selective_scan", calls, D=core.d_inner, N=core.d_state)
    else:  # a rotating state costs the products of a plain one
        add("scans", "ssd_scan", calls, H=core.nheads, P=core.headdim, N=core.d_state)
    if mixer in ("mamba1", "mamba2"):
        add("conv", "causal_conv", calls, D=core.conv1d.weight.shape[0])
    if mixer == "mamba2":
        add("norms", "gated_rms_norm", calls, D=core.d_inner)


def _sum(a: Work, b: Work, times: int) -> Work:
    return Work(a.bytes + times * b.bytes, a.exponentials + times * b.exponentials, a.operations + times * b.operations)
