"""Training a :class:`SeriesNet` on windows that lie on the device: the protocols' loop, without files or folders.

The best epoch on validation windows is kept; the start (the ridge solution) counts as one. Test windows are not seen.

Legend: N values of all series, W windows, B batch, L lookback, H horizon, Q quantile levels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from seqkit.backbones import BackboneConfig, parameter_groups
from seqkit.tasks.base import OptimConfig, warmup_cosine
from seqkit.tasks.forecast import ForecastTask
from seqkit.tasks.series_encoder import SeriesShape, TokenConfig
from seqkit.tasks.series_net import ForecastNetConfig, SeriesNet

FINE = (np.arange(40) + 0.5) / 40  # levels whose mean quantile stands for the mean


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One model of a protocol.

    Attributes:
        model: Backbone.
        tokens: Tokens of the window.
        net: Head, normalisation, decoder.
        optim: Optimiser.
        epochs: At most.
        patience: Epochs without a better validation loss before training stops.
        batch: Windows of a step.
        windows: Training windows of an epoch, drawn without replacement; None for all.
        blocks: Stretches of the validation windows, in time; in none may a kept epoch be behind the start.
    """

    model: BackboneConfig
    tokens: TokenConfig = field(default_factory=TokenConfig)
    net: ForecastNetConfig = field(default_factory=ForecastNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 10
    patience: int = 3
    batch: int = 256
    windows: int | None = None
    blocks: int = 1


class WindowSet:
    """Windows of concatenated series by index arithmetic.

    Args:
        series: Series of any lengths, scaled.
        lookback: L.
        horizon: H; 0 where what follows is not known.
        stride: Steps between windows.
        loc: Centre of each series in the units of the data.
        scale: Spread of each series.
        only_last: Whether only the last window of each series is taken.
        device: Where values lie.
    """

    def __init__(
        self,
        series: Sequence[NDArray],
        lookback: int,
        horizon: int,
        *,
        stride: int = 1,
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        only_last: bool = False,
        device: str = "cpu",
    ):
        self.lookback, self.horizon = lookback, horizon
        lengths = np.array([len(values) for values in series])
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        starts, owner = [], []
        for number, length in enumerate(lengths):
            last = length - lookback - horizon
            inside = np.array([last]) if only_last else np.arange(last % stride, last + 1, stride)
            starts.append(offsets[number] + inside)
            owner.append(np.full(len(inside), number))
        self.values_N = torch.from_numpy(np.concatenate(series).astype(np.float32)).to(device)
        self.starts_W = torch.from_numpy(np.concatenate(starts)).to(device)
        self.owner_W = torch.from_numpy(np.concatenate(owner)).to(device)
        table = [np.broadcast_to(np.asarray(a, np.float64), lengths.shape).copy() for a in (loc, scale)]
        self.loc_S, self.scale_S = (torch.from_numpy(a).to(device) for a in table)

    def __len__(self) -> int:
        """Number of windows W."""
        return len(self.starts_W)

    def to(self, device: str) -> WindowSet:
        """The same windows on another device."""
        moved = copy.copy(self)
        for name in ("values_N", "starts_W", "owner_W", "loc_S", "scale_S"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def stretches(self, count: int) -> list[WindowSet]:
        """The windows of each series cut into so many parts of equal length, one after the other in time."""
        if count == 1:
            return [self]
        owners, sizes = self.owner_W.unique_consecutive(return_counts=True)
        place = torch.cat([torch.arange(int(size)) * count // int(size) for size in sizes]).to(owners.device)
        parts = [copy.copy(self) for _ in range(count)]
        for number, part in enumerate(parts):
            part.starts_W, part.owner_W = self.starts_W[place == number], self.owner_W[place == number]
        return parts

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """A batch as :class:`SeriesNet` reads it."""
        steps = torch.arange(self.lookback + self.horizon, device=rows.device)
        values = self.values_N[self.starts_W[rows, None] + steps].unsqueeze(1)
        owner = self.owner_W[rows]
        return {
            "z": values[..., : self.lookback],
            "target": values[..., self.lookback :],
            "loc": self.loc_S[owner, None],
            "scale": self.scale_S[owner, None],
        }

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
        """All windows in order, or the given ones."""
        rows = torch.arange(len(self), device=self.starts_W.device) if rows is None else rows
        for part in rows.split(size):
            yield self.batch(part)


def train(settings: Settings, training: WindowSet, validation: WindowSet, seed: int, device: str) -> ForecastTask:
    """Train one model; returns it with the weights of its best epoch.

    Heads with a spread are calibrated on the validation windows.

    Args:
        settings: The model and how to train it.
        training: Windows to fit.
        validation: Windows that choose penalty and epoch, and calibrate.
        seed: Of weights, order and dropout.
        device: Where to train.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        task = make(settings, training)
        task.start(lambda: training.batches(1024), lambda: validation.batches(1024))
        task.to(device)
        _descend(task, settings, training.to(device), validation.to(device), seed)
        if settings.net.head != "point":
            task.calibrate(validation.to(device).batches(1024))
    return task


def make(settings: Settings, training: WindowSet) -> ForecastTask:
    """The untrained task."""
    shape = SeriesShape(lookback=training.lookback, horizon=training.horizon)
    net = SeriesNet(settings.model, settings.tokens, settings.net, shape)
    return ForecastTask(net, optim=settings.optim, seed=0)


def _descend(task: ForecastTask, settings: Settings, training: WindowSet, validation: WindowSet, seed: int) -> None:
    """Minibatch descent with early stopping; leaves the best weights in the task."""
    optim = settings.optim
    count = min(len(training), settings.windows or len(training))
    steps = settings.epochs * -(-count // settings.batch)
    groups = parameter_groups(task.net, optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(0.9, optim.beta2))
    warmup = max(1, round(optim.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, steps))
    order = torch.Generator().manual_seed(seed)
    stretches = validation.stretches(settings.blocks)
    start = np.array([held_out_loss(task, stretch) for stretch in stretches])
    best, least, waited = copy.deepcopy(task.net.state_dict()), start.mean(), 0
    for _ in range(settings.epochs):
        task.train()
        rows = torch.randperm(len(training), generator=order)[:count].to(training.starts_W.device)
        for batch in training.batches(settings.batch, rows):
            loss_BCH, valid_BCH = task.losses(task.net(batch), batch)
            optimizer.zero_grad(set_to_none=True)
            loss_BCH[valid_BCH].mean().backward()
            torch.nn.utils.clip_grad_norm_(task.net.parameters(), optim.clip_norm)
            optimizer.step()
            schedule.step()
        losses = np.array([held_out_loss(task, stretch) for stretch in stretches])
        if losses.mean() < least and (losses <= start).all():
            best, least, waited = copy.deepcopy(task.net.state_dict()), losses.mean(), 0
        else:
            waited += 1
        if waited >= settings.patience:
            break
    task.net.load_state_dict(best)
    task.eval()


@torch.no_grad()
def held_out_loss(task: ForecastTask, windows: WindowSet) -> float:
    """Mean loss over all observed targets."""
    task.eval()
    total, number = torch.stack([task.validation_sums(batch) for batch in windows.batches(1024)]).sum(0)
    return float(total / number)


@torch.no_grad()
def forecast(tasks: Sequence[ForecastTask], windows: WindowSet, levels: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Mean, median and quantiles in the units of the data, averaged over several models.

    Returns:
        (W, H), (W, H) and (W, H, Q) float64.
    """
    wanted = np.concatenate([FINE, [0.5], np.asarray(levels)])
    total: NDArray | float = 0.0
    for task in tasks:
        device = task.levels.device
        moved, at = windows.to(str(device)), torch.from_numpy(wanted).to(device)
        total = total + np.concatenate([_quantiles(task, batch, at) for batch in moved.batches(1024)])
    mean = total / len(tasks)
    return mean[..., : len(FINE)].mean(-1), mean[..., len(FINE)], mean[..., len(FINE) + 1 :]


@torch.no_grad()
def points(task: ForecastTask, windows: WindowSet) -> NDArray:
    """Forecasts (W, H) float32 of a point head in scaled units."""
    forecasts = [task.net(batch) for batch in windows.to(str(task.levels.device)).batches(1024)]
    scaled = [(f.centre_BCH + f.raw_BCHK[..., 0]) * f.spread_BC1 + f.shift_BC1 for f in forecasts]
    return torch.cat(scaled)[:, 0].cpu().numpy()


def _quantiles(task: ForecastTask, batch: Mapping[str, Tensor], levels: Tensor) -> NDArray:
    return task.quantiles(batch, levels)[:, 0].double().cpu().numpy()
