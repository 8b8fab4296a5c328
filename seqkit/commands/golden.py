"""One known answer per op, for ``seqkit doctor``: inputs from sines, answers from the float64 oracle.

Two numbers an op: the last element of the output and its sum with weights cos(0.7 i). Made by
``python -m seqkit.commands.golden`` on the CPU in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkit import kernels

TOLERANCE = 1e-4
ANSWERS: dict[str, tuple[float, float]] = {
    "selective_scan": (0.5151815264016137, -15.920518246910826),
    "ssd_scan": (0.491982156896983, -25.628869113938322),
    "mamba3_scan": (0.2054634736495443, -88.66071665988042),
    "causal_conv": (1.0199971797158078, 1.7249586678129396),
    "rms_norm": (-1.1508341467848602, 2.657196108039644),
    "gated_rms_norm": (-1.1804321275760539, -18.811676408341555),
}


def wave(*shape: int, step: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """sin(step i) in float64, rounded to ``dtype``."""
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return (step * count).sin().reshape(shape).to(device=device, dtype=dtype)


def run(op: str, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
    """The two numbers of an op on a device. Shapes: length 70, 32 channels or 2 heads of 16, 16 states."""

    def w(*shape: int, step: float) -> Tensor:
        return wave(*shape, step=step, device=device, dtype=dtype)

    length, channels, states, heads = 70, 32, 16, 2
    x = w(1, length, channels, step=0.37)
    x4 = x.reshape(1, length, heads, channels // heads)
    B, C = w(1, length, states, step=0.11), w(1, length, states, step=0.23)
    decay = -torch.arange(1, states + 1, device=device, dtype=dtype).expand(channels, states).contiguous() / 4
    calls = {
        "selective_scan": lambda: kernels.selective_scan(
            x, 0.2 + 0.1 * w(1, length, channels, step=0.05), decay, B, C
        ),
        "ssd_scan": lambda: kernels.ssd_scan(
            x4, 0.2 + 0.1 * w(1, length, heads, step=0.05), -0.5 - 0.2 * w(heads, step=0.9), B[:, :, None],
            C[:, :, None],
        ),
        "mamba3_scan": lambda: kernels.mamba3_scan(
            x4, w(1, length, heads, step=0.05), w(1, length, heads, step=0.13), w(1, length, heads, step=0.07),
            B[:, :, None], C[:, :, None], w(1, length, states // 2, step=0.31),
        ),
        "causal_conv": lambda: kernels.causal_conv(x, w(channels, 4, step=0.17)),
        "rms_norm": lambda: kernels.rms_norm(x, 1 + w(channels, step=0.41)),
        "gated_rms_norm": lambda: kernels.gated_rms_norm(
            x, w(1, length, channels, step=0.29), 1 + w(channels, step=0.41)
        ),
    }  # fmt: skip
    with torch.inference_mode():
        y = calls[op]().double().cpu().flatten()
    weights = (0.7 * torch.arange(len(y), dtype=torch.float64)).cos()
    return float(y[-1]), float(y @ weights)


def error(op: str, device: torch.device) -> float:
    """Largest difference from the known answer, as a share of it."""
    return max(abs(got - want) / abs(want) for got, want in zip(run(op, device), ANSWERS[op], strict=True))


if __name__ == "__main__":
    for name in ANSWERS:
        last, total = run(name, torch.device("cpu"), torch.float64)
        print(f'    "{name}": ({last!r}, {total!r}),')
