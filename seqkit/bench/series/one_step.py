"""One step ahead over a long series: a :class:`NextStepNet` trained on contiguous chunks, read through once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.next_step import NextStepConfig, NextStepNet
from seqkit.tasks.next_step_fit import ChunkConfig, Read, fit_next_step, read_through


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """A model of one-step protocols.

    Attributes:
        model: Backbone.
        net: Lags and noise.
        chunks: Streams and chunks.
        optim: Optimiser.
    """

    model: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(d_model=32, layout="s4d*2", d_state=16, vocab_size=0, n_channels=2)
    )
    net: NextStepConfig = field(default_factory=NextStepConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-3))


def train_and_read(
    settings: OneStep, series_T: NDArray, validation: int, test: int, seed: int, device: str
) -> tuple[NextStepNet, Read]:
    """Train on what lies before ``validation``, choose the pass on what lies before ``test``, read all of it once."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        net = NextStepNet(settings.model, settings.net)
    options = {"chunks": settings.chunks, "optim": settings.optim, "seed": seed, "device": device}
    fit_next_step(net, series_T[:validation], series_T[validation:test], **options)
    return net, read_through(net, series_T)


def one_step_metrics(
    settings: OneStep, series_T: NDArray, validation: int, test: int, seed: int, device: str
) -> dict[str, float]:
    """Squared error and log likelihood of every test step, and the share inside the central 80 and 95 %."""
    net, read = train_and_read(settings, series_T, validation, test, seed, device)
    error = (series_T - read.loc_T)[test:]
    return {
        "mse": float(np.nanmean(error**2)),
        "log_likelihood": float(np.nanmean(read.log_likelihood_T[test:])),
        "parameters": sum(p.numel() for p in net.parameters()),
    }
