"""Training on contiguous chunks with carried memory, and reading a series through.

Memory does not grow with the series: a step holds one chunk of every stream.

Legend: T steps of a series, B streams, L steps of a chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree

from seqkit.backbones import parameter_groups
from seqkit.errors import ConfigError
from seqkit.tasks.base import OptimConfig, warmup_cosine
from seqkit.tasks.next_step import Expectation, Memory, NextStepNet, log_likelihood, loss, shifted
from seqkit.tasks.series_linear import fit_autoregression

READ = 32_768  # steps of a chunk when reading without gradients


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """How a series is cut for training.

    Attributes:
        streams: Contiguous parts that are read side by side, B.
        chunk: Steps between two updates, L; gradients reach no further back, the memory does.
        epochs: Passes over the training part, at most.
        patience: Passes without a better validation likelihood before training stops.
    """

    streams: int = 8
    chunk: int = 1024
    epochs: int = 10
    patience: int = 3

    def __post_init__(self):
        for name in ("streams", "chunk", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"chunks.{name}", expected="1 or more", got=str(getattr(self, name)))


class Read(NamedTuple):
    """What a net expected of each value of a series before it saw it.

    Attributes:
        loc_T: Centre, NaN at the first.
        scale_T: Spread.
        log_likelihood_T: Of the value; NaN where it is missing.
    """

    loc_T: NDArray
    scale_T: NDArray
    log_likelihood_T: NDArray


def detached(memory: Memory) -> Memory:
    """The same numbers, without the graph behind them."""
    return Memory(memory.lags_BP.detach(), _pytree.tree_map(_detach, memory.backbone), memory.expected_B.detach())


def _detach(leaf):
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def fit_next_step(
    net: NextStepNet,
    training_T: NDArray,
    validation_T: NDArray,
    *,
    chunks: ChunkConfig,
    optim: OptimConfig,
    seed: int,
    device: str = "cpu",
) -> list[float]:
    """Train from the least-squares autoregression on; leaves the weights with the best validation likelihood.

    Args:
        net: Untrained.
        training_T: Scaled values, NaN where missing.
        validation_T: What follows them.
        chunks: Streams and chunks.
        optim: Optimiser.
        seed: Of dropout.
        device: Where to train; the net is moved there.

    Returns:
        Validation log likelihood of the start and after each pass.
    """
    net.start(fit_autoregression(training_T, net.config.lags))
    net.to(device)
    streams = max(1, min(chunks.streams, len(training_T) // (2 * chunks.chunk)))
    length = -(-len(training_T) // streams)
    padded = np.concatenate([training_T, np.full(streams * length - len(training_T), np.nan)])
    z_BT = torch.from_numpy(padded.reshape(streams, length).astype(np.float32)).to(device)
    steps = chunks.epochs * -(-length // chunks.chunk)
    optimizer = torch.optim.AdamW(parameter_groups(net, optim.weight_decay), lr=optim.lr, betas=(0.9, optim.beta2))
    warmup = max(1, round(optim.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
    context = training_T[-min(len(training_T), 4 * chunks.chunk) :]
    history = [held_out(net, context, validation_T)]
    best = copy.deepcopy(net.state_dict())
    for _ in range(chunks.epochs):
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed * 1_000_003 + len(history))
            _one_pass(net, z_BT, chunks.chunk, optimizer, schedule, optim.clip_norm)
        history.append(held_out(net, context, validation_T))
        if history[-1] >= max(history):
            best = copy.deepcopy(net.state_dict())
        if len(history) - 1 - int(np.argmax(history)) >= chunks.patience:
            break
    net.load_state_dict(best)
    net.eval()
    return history


def _one_pass(net: NextStepNet, z_BT: Tensor, chunk: int, optimizer, schedule, clip_norm: float) -> None:
    """Update once a chunk; the target of a chunk's last step is the first of the next."""
    net.train()
    memory, noise = None, float(net.log_scale.detach().exp())
    for begin in range(0, z_BT.shape[1] - 1, chunk):
        end = min(begin + chunk, z_BT.shape[1] - 1)
        found, memory = net(z_BT[:, begin:end], memory)
        value = loss(found, z_BT[:, begin + 1 : end + 1], net.config.centre, noise)
        memory = detached(memory)
        if value is None:
            continue
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        optimizer.step()
        schedule.step()


def held_out(net: NextStepNet, context_T: NDArray, series_T: NDArray) -> float:
    """Mean log likelihood of a series after a context."""
    read = read_through(net, np.concatenate([context_T, series_T]))
    return float(np.nanmean(read.log_likelihood_T[len(context_T) :]))


@torch.no_grad()
def read_through(net: NextStepNet, series_T: NDArray, chunk: int = READ) -> Read:
    """Read a series once, in chunks: what was expected of each value, from all before it."""
    net.eval()
    device = net.output.weight.device
    parts: list[tuple[Tensor, ...]] = []
    for z_BL, found in _expectations(net, series_T, chunk, device):
        parts.append((found.loc_BL[0], found.scale_BL[0], log_likelihood(found, z_BL)[0]))
    return Read(*(torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True)))


def _expectations(
    net: NextStepNet, series_T: NDArray, chunk: int, device: torch.device
) -> Iterator[tuple[Tensor, Expectation]]:
    memory, before = None, None
    for begin in range(0, len(series_T), chunk):
        piece = torch.from_numpy(series_T[None, begin : begin + chunk].astype(np.float32)).to(device)
        now, memory = net(piece, memory)
        yield piece, shifted(now, before)
        before = now
