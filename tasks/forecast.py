"""The forecasting objective: loss, calibration and forecasts of a :class:`SeriesNet`.

Legend: B batch, C channels, L lookback, H horizon, Q quantile levels, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from seqkit.backbones.series_heads import LEVELS, interpolate_quantiles
from seqkit.tasks.base import OptimConfig, SequenceTask, masked_mean
from seqkit.tasks.ridge import Ridge, fit_ridge
from seqkit.tasks.series_net import Forecast, SeriesNet, normalise

_LEAST_SCORES = 400
"""Scores wanted for one step's calibration; steps next to it lend theirs where there are fewer windows."""

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
"""Called once for each pass over the windows."""


class ForecastTask(SequenceTask):
    """Trains a :class:`SeriesNet`, and forecasts with calibrated intervals.

    Args:
        net: The network.
        optim: Optimiser settings.
        seed: Seed of the run.
        nonnegative: Whether forecasts below zero become zero.
    """

    def __init__(self, net: SeriesNet, *, optim: OptimConfig, seed: int, nonnegative: bool = False):
        super().__init__(net, optim, seed)
        self.nonnegative = nonnegative
        self.register_buffer("levels", torch.tensor(getattr(net.config, "levels", LEVELS), dtype=torch.float64))
        self.register_buffer("shift_HQ", torch.zeros(net.shape.horizon, len(self.levels)))
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.carried: Any = None

    def answer(self, batch: Mapping[str, Tensor]) -> tuple[Forecast, Mapping[str, Tensor]]:
        """Forecasts of windows, or of the cutoffs of chunks, with what they are measured by.

        Chunks go on from the state behind the chunks before; no gradient passes between them (truncated
        backpropagation, Williams and Peng 1990).
        """
        if "at" not in batch:
            return self.net(batch), batch
        before = None if batch["fresh"].all() else restarted(self.carried, batch["fresh"])
        forecast, windows, after = self.net.forward_chunk(batch, before)
        self.carried = tree_map(torch.Tensor.detach, after)
        return forecast, windows

    def start(self, train: Batches, validation: Batches) -> Ridge:
        """Start the linear path from the ridge solution and the head from its residuals on the training windows."""
        shape = self.net.shape
        ridge = fit_ridge(self._pairs(train()), self._pairs(validation()), shape.lookback, shape.horizon)
        self.net.set_linear(ridge)
        residuals = [y_BH - self.net.centre(x_BL.unsqueeze(1))[:, 0].detach() for x_BL, y_BH, _ in self._pairs(train())]
        if residuals:
            self.net.head.initialise(torch.cat(residuals))
        return ridge

    def _pairs(self, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Windows on their own scale, channel by channel, with the weight that their squared error has."""
        for batch in batches:
            normal = normalise(batch["z"], self.net.config.norm)
            target_BCH = (batch["target"] - normal.shift_BC1) / normal.spread_BC1
            yield (
                normal.x_BCL.nan_to_num(0.0).flatten(0, 1),
                target_BCH.flatten(0, 1),
                normal.spread_BC1.square().flatten(),
            )

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over observed targets, in scaled units."""
        forecast, windows = self.answer(batch)
        loss_BCH, valid_BCH = self.losses(forecast, windows)
        loss = masked_mean(loss_BCH, valid_BCH)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=max(1, len(loss_BCH)), prog_bar=True)
        return loss

    def losses(self, forecast: Forecast, windows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of every step and whether its target was observed."""
        valid_BCH = ~windows["target"].isnan()
        target_BCH = (windows["target"].nan_to_num(0.0) - forecast.shift_BC1) / forecast.spread_BC1
        centre_BCH = forecast.centre_BCH
        if self.net.head.counts:
            unit_BC1, origin_BC1 = units(forecast, windows)
            centre_BCH, target_BCH = (x_BCH * unit_BC1 + origin_BC1 for x_BCH in (centre_BCH, target_BCH))
        loss_BCH = self.net.head.loss(centre_BCH, forecast.raw_BCHK, target_BCH)
        return loss_BCH * forecast.spread_BC1**self.net.head.degree, valid_BCH

    def on_validation_epoch_start(self) -> None:
        """Begin the sums of the epoch."""
        self.sums = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Add to the sums: batches need not be of one size."""
        self.sums += self.validation_sums(batch).cpu()

    def validation_sums(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the loss over observed targets, and their number."""
        forecast, windows = self.answer(batch)
        loss_BCH, valid_BCH = self.losses(forecast, windows)
        return torch.stack([loss_BCH[valid_BCH].double().sum(), valid_BCH.sum().double()])

    def on_validation_epoch_end(self) -> None:
        """Log the mean loss."""
        self.log("val/loss", (self.sums[0] / self.sums[1].clamp(min=1)).float(), prog_bar=True)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Mapping[str, Tensor]]) -> int:
        """Move every quantile so that it leaves its share of held-out values below it.

        Each level is shifted on its own, which gives intervals with their promised coverage as long as the windows to
        come resemble those held out.

        Args:
            batches: Held-out windows; nothing changes where they are empty.

        Returns:
            The number of windows used.

        Reference: Romano et al. 2019, Conformalized quantile regression, theorem 2 (asymmetric form).
        """
        self.shift_HQ.zero_()
        scores = []
        for batch in batches:
            forecast, windows = self.answer(batch)
            target_BCH = (windows["target"] - forecast.shift_BC1) / forecast.spread_BC1
            scores.append((target_BCH.unsqueeze(-1) - self._own(forecast, windows)).flatten(0, 1))
        if not scores:
            return 0
        score_WHQ = torch.cat(scores).double()
        self.shift_HQ.copy_(conformal_shift(score_WHQ, self.levels))
        return len(score_WHQ)

    def _own(self, forecast: Forecast, windows: Mapping[str, Tensor]) -> Tensor:
        """Quantiles at the task's levels, on the windows' own scale, before calibration."""
        if not self.net.head.counts:
            return self.net.head.quantiles(forecast.centre_BCH, forecast.raw_BCHK, self.levels)
        unit_BC1, origin_BC1 = units(forecast, windows)
        centre_BCH = forecast.centre_BCH * unit_BC1 + origin_BC1
        counts = self.net.head.quantiles(centre_BCH, forecast.raw_BCHK, self.levels)
        return (counts - origin_BC1.unsqueeze(-1)) / unit_BC1.unsqueeze(-1)

    @torch.no_grad()
    def quantiles(self, batch: Mapping[str, Tensor], levels: Tensor) -> Tensor:
        """Calibrated quantiles (B, C, H, len(levels)) float64 in the units of the data, rising in the level.

        Of chunks, those of their cutoffs, W in place of B.
        """
        return self.finish(*self.answer(batch), levels)

    def finish(self, forecast: Forecast, batch: Mapping[str, Tensor], levels: Tensor) -> Tensor:
        """Forecasts on the windows' own scale to calibrated quantiles in the units of the data."""
        own = (self._own(forecast, batch) + self.shift_HQ[: forecast.centre_BCH.shape[-1]]).sort(dim=-1).values.double()
        wanted = interpolate_quantiles(own, self.levels, levels)
        scaled = wanted * forecast.spread_BC1.unsqueeze(-1) + forecast.shift_BC1.unsqueeze(-1)
        values = scaled * batch["scale"][..., None, None] + batch["loc"][..., None, None]
        if self.net.head.counts:
            return values.round().clamp(min=0.0)
        return values.clamp(min=0.0) if self.nonnegative else values


def units(forecast: Forecast, windows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B, C, 1) factor and offset from the windows' own scale to the units of the data."""
    scale_BC1, loc_BC1 = (windows[name].to(forecast.centre_BCH).unsqueeze(-1) for name in ("scale", "loc"))
    return forecast.spread_BC1 * scale_BC1, forecast.shift_BC1 * scale_BC1 + loc_BC1


def restarted(state: Any, fresh_B: Tensor) -> Any:
    """A state with zeros in the rows that start anew."""

    def clear(leaf: Tensor) -> Tensor:
        return torch.where(fresh_B.view(-1, *[1] * (leaf.ndim - 1)), torch.zeros_like(leaf), leaf)

    return tree_map(clear, state)


def conformal_shift(score_WHQ: Tensor, levels_Q: Tensor) -> Tensor:
    """(H, Q) shift of each quantile: that quantile of the held-out scores, rounded outwards for their finite number.

    Args:
        score_WHQ: Observed value minus quantile, NaN where not observed.
        levels_Q: Levels.
    """
    windows, horizon, _ = score_WHQ.shape
    reach = 0 if windows >= _LEAST_SCORES else min(horizon, math.ceil(_LEAST_SCORES / windows)) // 2
    shift = torch.zeros(horizon, len(levels_Q), dtype=torch.float64)
    for step in range(horizon):
        near_MQ = score_WHQ[:, max(0, step - reach) : step + reach + 1].flatten(0, 1)
        near_MQ = near_MQ[~near_MQ.isnan().any(dim=1)].sort(dim=0).values
        count = len(near_MQ)
        if not count:
            continue
        rank = torch.where(levels_Q < 0.5, ((count + 1) * levels_Q).floor() - 1, ((count + 1) * levels_Q).ceil() - 1)
        shift[step] = near_MQ.gather(0, rank.clamp(0, count - 1).long()[None])[0]
    return shift
