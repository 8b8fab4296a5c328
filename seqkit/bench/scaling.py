"""Time and memory of a forward pass and of a training step against length, Mamba stacks and a transformer alike.

Legend: B batch, L length.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.backbones.loss import IGNORED, chunked_cross_entropy
from seqkit.bench.transformer import Transformer
from seqkit.kernels.bench.measure import milliseconds

VOCABULARY = 24
ENOUGH_MS = 400.0  # spent on repeats of one measurement
SLOW_MS = 2_000.0  # of a call that is not repeated
SLOWEST_MS = 30_000.0  # of a call; lengths that will take more are left out


@dataclass(frozen=True)
class Contender:
    """A model and how much it may be given.

    Attributes:
        name: ``mamba1``, ``mamba2``, ``mamba3`` or ``attention``.
        d_model: Width.
        blocks: Mamba blocks; a transformer has half as many layers.
        d_state: State size of Mamba blocks; None for the mixer's own.
    """

    name: str
    d_model: int = 256
    blocks: int = 8
    d_state: int | None = None

    def build(self, device: str) -> nn.Module:
        """The model in float32, which recomputes activations block by block, and its output layer."""
        if self.name == "attention":
            body = Transformer(VOCABULARY, self.d_model, self.blocks // 2, recompute=True)
        else:
            body = Backbone(BackboneConfig(
                d_model=self.d_model, layout=f"{self.name}*{self.blocks}", d_state=self.d_state, dt_min=1e-6,
                vocab_size=VOCABULARY, checkpoint=True,
            ))  # fmt: skip
        return NextToken(body, self.d_model).to(device)


class NextToken(nn.Module):
    """Mean cross-entropy of the next token.

    Args:
        body: From ids to hidden states, alone or with a state.
        d_model: Their width.
    """

    def __init__(self, body: nn.Module, d_model: int):
        super().__init__()
        self.body, self.output = body, nn.Linear(d_model, VOCABULARY, bias=False)

    def hidden(self, ids_BL: Tensor) -> Tensor:
        """Hidden states (B, L, D)."""
        out = self.body(ids_BL)
        return out[0] if isinstance(out, tuple) else out

    def forward(self, ids_BL: Tensor) -> Tensor:
        """The loss."""
        target_BL = F.pad(ids_BL[:, 1:], (0, 1), value=IGNORED)
        total, count = chunked_cross_entropy(self.hidden(ids_BL), self.output, target_BL)
        return total / count


def measure(
    contender: Contender,
    mode: str,
    lengths: list[int],
    *,
    device: str,
    tokens: int,
    seed: int = 0,
    limit_s: float = 60.0,
) -> Iterator[dict]:
    """One row a length, ascending, until a call would be too slow, memory is out or the time is up.

    Args:
        contender: What is measured, under autocast to bfloat16 on a GPU.
        mode: ``forward`` (no gradients) or ``training`` (loss, gradients, AdamW).
        lengths: Tokens L of a sequence.
        device: cuda or cpu.
        tokens: Tokens of a call at least: shorter sequences come in batches.
        seed: Of weights and tokens.
        limit_s: Seconds after which no further length is begun.
    """
    torch.manual_seed(seed)
    model = contender.build(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    carried = {"what": "scaling", "model": contender.name, "d_model": contender.d_model, "blocks": contender.blocks}
    carried |= {"d_state": contender.d_state, "mode": mode, "parameters": sum(p.numel() for p in model.parameters())}
    begun, done = time.perf_counter(), []
    for number, length in enumerate(sorted(lengths)):
        batch = max(1, tokens // length)
        row = carried | {"L": length, "B": batch}
        expected = foreseen(done, length, batch)
        if expected > SLOWEST_MS or time.perf_counter() - begun > limit_s:
            yield row | {"skipped": f"about {expected / 1e3:.0f} s a call"}
            return
        try:
            ids = torch.randint(7, 11, (batch, length), device=device)
            call = training_step(model, optimizer, ids, device) if mode == "training" else forward(model, ids, device)
            if number == 0:
                call()  # compiles
            row |= timed(call, device)
            row["us_per_token"] = round(row["ms"] * 1e3 / (batch * length), 5)
            row["tokens_per_s"] = round(batch * length / row["ms"] * 1e3)
        except torch.OutOfMemoryError:
            yield row | {"failed": "out of memory"}
            return
        finally:
            call = ids = None
            optimizer.zero_grad()
            gc.collect()
        yield row
        done.append(row)


def foreseen(done: list[dict], length: int, batch: int) -> float:
    """Milliseconds that a call will take, by the slope between the last two lengths."""
    if len(done) < 2:
        return 0.0
    per_sequence = done[-1]["us_per_token"] * done[-1]["L"] / 1e3
    return batch * per_sequence * (length / done[-1]["L"]) ** exponent(done[-2:], 0)


def forward(model: NextToken, ids: Tensor, device: str) -> Callable[[], object]:
    """A forward pass that keeps nothing."""

    def call() -> Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return model.hidden(ids)

    return call


def training_step(model: NextToken, optimizer: torch.optim.Optimizer, ids: Tensor, device: str) -> Callable[[], object]:
    """Loss, gradients and an optimiser step."""

    def call() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


def timed(call: Callable[[], object], device: str) -> dict:
    """Median milliseconds, their spread, repeats; peak memory beyond what was there before, on a GPU."""
    before = 0
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    times = [milliseconds(call, device)]
    if times[0] < SLOW_MS:  # the first call at a length may still compile or allocate
        first = times.pop()
        repeats = max(2, min(10, math.ceil(ENOUGH_MS / max(first, 1e-3))))
        times = [milliseconds(call, device) for _ in range(repeats)]
    row = {"ms": round(statistics.median(times), 3), "ms_least": round(min(times), 3), "ms_most": round(max(times), 3)}
    row["repeats"] = len(times)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
        row |= {"peak_gib": round(peak / 2**30, 3), "beyond_weights_gib": round((peak - before) / 2**30, 3)}
    return row


def exponent(rows: list[dict], least: int) -> float:
    """Slope of log(time of a sequence) over log(length) from a length on, by least squares."""
    points = [(math.log(r["L"]), math.log(r["us_per_token"] * r["L"])) for r in rows if r["L"] >= least and "ms" in r]
    x_mean, y_mean = (statistics.mean(axis) for axis in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)
