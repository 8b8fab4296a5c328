"""The forecasting network: a linear path, and what a causal backbone adds to it.

The linear path maps the lookback to the horizon and starts as the closed-form ridge solution; the decoder behind the
backbone starts at zero. Training therefore begins at the linear model and can only be kept where it is better.

Legend: B batch, C channels, L lookback, H horizon, T tokens, D hidden width, E decoder width, K numbers of the head,
F future covariates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seqkit.backbones import BackboneConfig
from seqkit.backbones.series_heads import LEVELS, build_head
from seqkit.errors import ConfigError
from seqkit.tasks.ridge import Ridge
from seqkit.tasks.series_encoder import SeriesEncoder, SeriesShape, TokenConfig

NORMS = ("last", "mean", "none")
CONTEXTS = ("window", "carried")
_LEAST_SPREAD = 1e-4


@dataclass(frozen=True, kw_only=True)
class ForecastNetConfig:
    """What stands around the backbone.

    Attributes:
        head: quantile, normal, student-t, negative-binomial (counts) or point.
        levels: Quantile levels of a quantile head, rising.
        linear: Whether there is a linear path; without it the centre is the normalised window's level.
        norm: Instance normalisation: last (the last observed value is subtracted), mean (mean and spread) or none.
        d_decoder: Width of the decoder.
        dropout: On the hidden state in front of the decoder.
        mix: Whether all series are channels of one, which see each other.
        context: window (the backbone reads the lookback alone) or carried (it has read the whole series, and its state
            goes on from row to row; training reads contiguous chunks).
    """

    head: str = "quantile"
    levels: tuple[float, ...] = LEVELS
    linear: bool = True
    norm: str = "last"
    d_decoder: int = 32
    dropout: float = 0.1
    mix: bool = False
    context: str = "window"

    def __post_init__(self):
        if self.norm not in NORMS:
            raise ConfigError("net.norm", expected=" or ".join(NORMS), got=repr(self.norm))
        if self.context not in CONTEXTS:
            raise ConfigError("net.context", expected=" or ".join(CONTEXTS), got=repr(self.context))
        if self.d_decoder < 1 or not 0 <= self.dropout < 1:
            raise ConfigError("net", expected="d_decoder of 1 or more, dropout in [0, 1)",
                              got=f"{self.d_decoder} and {self.dropout}")  # fmt: skip


class Normalised(NamedTuple):
    """Windows on their own scale.

    Attributes:
        x_BCL: Values, NaN where missing.
        shift_BC1: What was subtracted.
        spread_BC1: What was divided by.
    """

    x_BCL: Tensor
    shift_BC1: Tensor
    spread_BC1: Tensor


class Forecast(NamedTuple):
    """Output of the network, on the windows' own scale.

    Attributes:
        centre_BCH: The linear path and what the backbone moves it by.
        raw_BCHK: Numbers for the head.
        shift_BC1: To add, and
        spread_BC1: to multiply by, to return to scaled values.
    """

    centre_BCH: Tensor
    raw_BCHK: Tensor
    shift_BC1: Tensor
    spread_BC1: Tensor


def normalise(z_BCL: Tensor, norm: str) -> Normalised:
    """Bring windows onto their own scale; a window without an observed value stays as it is."""
    observed = ~z_BCL.isnan()
    if norm == "none":
        zero = z_BCL.new_zeros(*z_BCL.shape[:-1], 1)
        return Normalised(z_BCL, zero, zero + 1)
    filled = z_BCL.nan_to_num(0.0)
    if norm == "last":
        order = torch.arange(1, z_BCL.shape[-1] + 1, device=z_BCL.device)
        shift = filled.gather(-1, (observed * order).argmax(-1, keepdim=True))
        return Normalised(z_BCL - shift, shift, torch.ones_like(shift))
    count = observed.sum(-1, keepdim=True).clamp(min=1)
    shift = filled.sum(-1, keepdim=True) / count
    variance = ((filled - shift).square() * observed).sum(-1, keepdim=True) / count
    # A window that hardly moves keeps a spread it can be divided by.
    spread = variance.sqrt().clamp(min=_LEAST_SPREAD)
    spread = torch.where(variance.sqrt() < _LEAST_SPREAD, torch.ones_like(spread), spread)
    return Normalised((z_BCL - shift) / spread, shift, spread)


class Decoder(nn.Module):
    """From the hidden state at the cutoff to K numbers per channel and step ahead; starts at zero.

    Args:
        width: D.
        shape: Sizes of the windows.
        outputs: K.
        config: Width and dropout.
    """

    def __init__(self, width: int, shape: SeriesShape, outputs: int, config: ForecastNetConfig):
        super().__init__()
        self.channels, self.outputs = shape.channels, outputs
        self.dropout = nn.Dropout(config.dropout)
        self.context = nn.Linear(width + shape.static, shape.channels * config.d_decoder)
        self.steps_HE = nn.Parameter(torch.randn(shape.horizon, config.d_decoder) * 0.5)
        future = shape.future + shape.irregular
        self.future = nn.Linear(future, config.d_decoder, bias=False) if future else None
        self.output = nn.Linear(config.d_decoder, outputs)
        self.direct = nn.Linear(width, shape.channels * shape.horizon)
        for layer in (self.output, self.direct):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden_BD: Tensor, static_BK: Tensor | None, future_BHF: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the centre moves by (B, C, H), and the numbers of the head (B, C, H, K)."""
        hidden_BD = self.dropout(hidden_BD)
        context = hidden_BD if static_BK is None else torch.cat([hidden_BD, static_BK], dim=-1)
        inner = self.context(context).unflatten(-1, (self.channels, 1, -1)) + self.steps_HE
        if self.future is not None:
            inner = inner + self.future(future_BHF).unsqueeze(1)
        move_BCH = self.direct(hidden_BD).unflatten(-1, (self.channels, -1))
        return move_BCH, self.output(nn.functional.silu(inner))


def horizon_of(batch: Mapping[str, Tensor], start: int) -> dict[str, Tensor]:
    """Covariates from a step on, and the constant ones."""
    later = {name: batch[name][:, start:] for name in ("future", "step") if name in batch}
    return later | ({"static": batch["static"]} if "static" in batch else {})


class SeriesNet(nn.Module):
    """Forecasts of windows.

    Args:
        model: Architecture of the backbone.
        tokens: How numbers become tokens.
        config: Head, normalisation, decoder.
        shape: Sizes of the windows.
    """

    def __init__(self, model: BackboneConfig, tokens: TokenConfig, config: ForecastNetConfig, shape: SeriesShape):
        super().__init__()
        self.config, self.shape = config, shape
        if config.context == "carried" and (tokens.kind == "patch" or "attention" in model.blocks):
            raise ConfigError(
                "net.context", expected="tokens step by step and blocks whose state does not grow, for carried",
                got=f"tokens.kind {tokens.kind}, layout {model.layout}",
            )  # fmt: skip
        self.encoder = SeriesEncoder(model, tokens, shape)
        self.head = build_head(config.head, shape.horizon, tuple(config.levels))
        self.decoder = Decoder(self.encoder.width, shape, self.head.width, config)
        self.linear = nn.Linear(shape.lookback, shape.horizon) if config.linear else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, batch: Mapping[str, Tensor]) -> Forecast:
        """Forecast from windows (``z`` (B, C, L) and covariates), each read from its own beginning."""
        normal = normalise(batch["z"], self.config.norm)
        hidden_BTD, _ = self.encoder(normal.x_BCL, batch)
        return self.decode(hidden_BTD[:, -1], normal, horizon_of(batch, self.shape.lookback))

    def decode(self, hidden_BD: Tensor, normal: Normalised, batch: Mapping[str, Tensor]) -> Forecast:
        """Forecast from the hidden state at the cutoff and the lookback before it.

        ``batch`` holds the covariates of the horizon: ``future`` (B, H, F), ``step`` (B, H), ``static`` (B, K).
        """
        ahead = [batch["future"]] if "future" in batch else []
        if "step" in batch:
            ahead.append(batch["step"].cumsum(1).clamp(min=1e-6).log().unsqueeze(-1))
        move_BCH, raw_BCHK = self.decoder(hidden_BD, batch.get("static"), torch.cat(ahead, -1) if ahead else None)
        return Forecast(self.centre(normal.x_BCL) + move_BCH, raw_BCHK, normal.shift_BC1, normal.spread_BC1)

    def centre(self, x_BCL: Tensor) -> Tensor:
        """The linear path (B, C, H) of normalised lookbacks; a missing value counts as the window's level."""
        if self.linear is None:
            return x_BCL.new_zeros(*x_BCL.shape[:-1], self.shape.horizon)
        return self.linear(x_BCL.nan_to_num(0.0))

    def set_linear(self, ridge: Ridge) -> None:
        """Start the linear path from a closed-form solution."""
        if self.linear is not None:
            with torch.no_grad():
                self.linear.weight.copy_(ridge.weight_HL)
                self.linear.bias.copy_(ridge.bias_H)

    def forward_chunk(self, batch: Mapping[str, Tensor], state: Any) -> tuple[Forecast, dict[str, Tensor], Any]:
        """Read one chunk of every lane, and forecast at its cutoffs.

        Args:
            batch: As :class:`seqkit.data.series_chunks.ChunkReader` makes it.
            state: State of the backbone behind the chunk before; None for the beginning.

        Returns:
            Forecasts of the W cutoffs that there are, lane after lane; their windows (``target`` (W, C, H), ``loc`` and
            ``scale`` (W, C), ``index`` (W,)); the state behind the chunk.
        """
        lookback, horizon = self.shape.lookback, self.shape.horizon
        y_BCT, loc_BCT, scale_BCT = batch["y"], batch["loc"], batch["scale"]
        hidden_BTD, state = self.read_chunk(batch, state, loc_BCT.shape[-1] - lookback, start=lookback)
        lane_W, place_W = (batch["at"] > 0).nonzero(as_tuple=True)
        at_W = batch["at"][lane_W, place_W]
        span_WT = at_W[:, None] + torch.arange(lookback + horizon, device=y_BCT.device)
        known_W = lookback + at_W - 1
        windows = {
            "loc": loc_BCT[lane_W, :, known_W],
            "scale": scale_BCT[lane_W, :, known_W],
            "index": batch["index"][lane_W, place_W],
        }
        y_WCT = y_BCT[lane_W].gather(2, span_WT[:, None].expand(-1, y_BCT.shape[1], -1))
        z_WCT = ((y_WCT - windows["loc"][..., None]) / windows["scale"][..., None]).float()
        windows["target"] = z_WCT[..., lookback:]
        ahead = {
            name: batch[name][lane_W[:, None], span_WT[:, lookback:]] for name in ("future", "step") if name in batch
        }
        ahead |= {"static": batch["static"][lane_W]} if "static" in batch else {}
        normal = normalise(z_WCT[..., :lookback], self.config.norm)
        return self.decode(hidden_BTD[lane_W, at_W - 1], normal, ahead), windows, state

    def read_chunk(self, batch: Mapping[str, Tensor], state: Any, length: int, *, start: int = 0) -> tuple[Tensor, Any]:
        """Hidden states (B, length, D) of the steps of a chunk from ``start`` on, and the state behind them.

        Values are read on the scale known at their own step, so that nothing later enters.
        """
        end = start + length
        y_BCT, loc_BCT, scale_BCT = (batch[name][..., start:end] for name in ("y", "loc", "scale"))
        steps = torch.arange(length, device=y_BCT.device)
        unread = steps >= batch["read"][:, None, None]
        z_BCT = ((y_BCT - loc_BCT) / scale_BCT).masked_fill(unread, torch.nan).float()
        covariates = {name: batch[name][:, start:end] for name in ("future", "past", "step") if name in batch}
        covariates |= {"static": batch["static"]} if "static" in batch else {}
        return self.encoder(z_BCT, covariates, state)
