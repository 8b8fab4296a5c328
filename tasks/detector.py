"""Anomaly scores: how surprised a one-step model is, of values or of their changes over a season, lately.

The model is fitted to a stretch taken as normal. Which season is subtracted first (none, a day, a week) is decided by
the likelihood that held-out values of that stretch get, which is comparable because the past is known: no labels enter.
Or how badly the last window comes back through a narrow code (:mod:`seqkit.tasks.window_code`); there the held-out
error decides. Scores are causal and come from a state, or a window, of fixed size.

Legend: T steps of a series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError, ShapeError
from seqkit.tasks.base import OptimConfig
from seqkit.tasks.next_step import NextStepConfig, NextStepNet
from seqkit.tasks.next_step_fit import ChunkConfig, fit_next_step, read_through
from seqkit.tasks.window_code import WindowCode

HELD_OUT = 0.2
SCORES = ("likelihood", "reconstruction")
_LEAST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """What is scored, the one-step model and its training.

    Attributes:
        score: likelihood (of a one-step model) or reconstruction (of windows, in closed form; nothing is trained).
        window: Steps of a window that is reconstructed; none takes two of those that scores are averaged over.
        code: Numbers that a window is reconstructed from; none takes an eighth of its steps.
        model: Backbone.
        net: Lags, noise.
        chunks: Streams and chunks.
        optim: Optimiser.
    """

    score: str = "likelihood"
    window: int | None = None
    code: int | None = None
    model: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(d_model=16, layout="s4d", d_state=16, vocab_size=0, n_channels=2)
    )
    net: NextStepConfig = field(default_factory=NextStepConfig)
    chunks: ChunkConfig = field(default_factory=lambda: ChunkConfig(streams=4, chunk=64, epochs=20, patience=5))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-3))

    def __post_init__(self):
        if self.score not in SCORES:
            raise ConfigError("detector.score", expected=" or ".join(SCORES), got=repr(self.score))
        if self.window is not None and self.window < 2:
            raise ConfigError("detector.window", expected="2 steps or more", got=str(self.window))
        if self.code is not None and self.code < 1:
            raise ConfigError("detector.code", expected="1 or more", got=str(self.code))


def detector_config(day: int) -> DetectorConfig:
    """Defaults for series of ``day`` steps a day: the slowest modes remember a week."""
    config = DetectorConfig()
    return replace(config, model=replace(config.model, dt_min=min(1 / (7 * day), config.model.dt_max)))


@dataclass(frozen=True)
class Detector:
    """A fitted model and how its surprise becomes a score.

    Attributes:
        net: One-step model, or code of windows, of scaled values or changes.
        season: Steps over which changes are taken; 0 for the values themselves.
        centre: Of values or changes.
        spread: Of values or changes.
        smooth: Steps over which surprise is averaged.
        usual: Mean surprise of the normal stretch; what a missing value counts as.
        threshold: Highest score of the normal stretch.
    """

    net: NextStepNet | WindowCode
    season: int
    centre: float
    spread: float
    smooth: int
    usual: float = 0.0
    threshold: float = float("inf")

    def surprise(self, series_T: NDArray) -> NDArray:
        """Negative log likelihood of each value given all before it, or error of the window it ends; NaN for none."""
        z_T = (changes(series_T, self.season) - self.centre) / self.spread
        if isinstance(self.net, WindowCode):
            return self.net.errors(z_T)
        return -read_through(self.net, z_T).log_likelihood_T

    def score(self, series_T: NDArray) -> NDArray:
        """Surprise beyond the usual, averaged over the last ``smooth`` steps: (T,), no NaN."""
        surprise_T = self.surprise(series_T)
        return running_mean(np.where(np.isnan(surprise_T), 0.0, surprise_T - self.usual), self.smooth)


def changes(series_T: NDArray, season: int) -> NDArray:
    """Values minus those of a season before, NaN for the first season; the values themselves for season 0."""
    if season == 0:
        return np.asarray(series_T, np.float64)
    difference = np.full(len(series_T), np.nan)
    difference[season:] = series_T[season:] - series_T[:-season]
    return difference


def running_mean(values_T: NDArray, width: int) -> NDArray:
    """Mean of the last ``width`` values, of fewer at the beginning."""
    total = np.concatenate([[0.0], np.cumsum(values_T)])
    ends = np.arange(1, len(values_T) + 1)
    begins = np.maximum(ends - max(width, 1), 0)
    return (total[ends] - total[begins]) / (ends - begins)


def fit_detector(
    normal_T: NDArray,
    *,
    seasons: Sequence[int] = (0,),
    smooth: int = 1,
    settings: DetectorConfig | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Detector:
    """Fit one model per season that the stretch holds twice, and keep the one that held-out values speak for.

    Args:
        normal_T: Values taken as normal, NaN where missing; the last fifth is held out.
        seasons: Candidates; 0 stands for the values themselves.
        smooth: Steps over which surprise is averaged.
        settings: Model and training.
        seed: Of weights and training.
        device: Where to train.

    Raises:
        ShapeError: Fewer than 100 steps.
    """
    normal_T = np.asarray(normal_T, np.float64)
    if len(normal_T) < _LEAST_STEPS:
        raise ShapeError("normal", expected=f"at least {_LEAST_STEPS} steps taken as normal", got=str(len(normal_T)))
    settings = settings or DetectorConfig()
    fitting = [season for season in seasons if 2 * season <= len(normal_T) * (1 - HELD_OUT)] or [0]
    found = [_fit(normal_T, season, smooth, settings, seed, device) for season in fitting]
    detector = max(found, key=lambda pair: pair[1])[0]
    detector = replace(detector, usual=float(np.nanmean(detector.surprise(normal_T))))
    return replace(detector, threshold=float(detector.score(normal_T).max()))


def _fit(
    normal_T: NDArray, season: int, smooth: int, settings: DetectorConfig, seed: int, device: str
) -> tuple[Detector, float]:
    """A model of one season, and its held-out log likelihood, or error of reconstruction, in the series' units."""
    change_T = changes(normal_T, season)
    split = round(len(normal_T) * (1 - HELD_OUT))
    centre, spread = float(np.nanmean(change_T[:split])), float(np.nanstd(change_T[:split]))
    # A constant stretch has no spread of its own: that of its size keeps a departure finite.
    spread = spread if spread > 0 else max(abs(centre), 1.0) * 1e-3
    z_T = (change_T - centre) / spread
    if settings.score == "reconstruction":
        window = min(settings.window or max(2 * smooth, 2), (split - season) // 2, len(z_T) - split)
        code = WindowCode.fit(z_T[season:split], window, min(settings.code or max(window // 8, 1), window - 1))
        error = float(np.nanmean(code.errors(z_T[split:]))) * spread**2
        return Detector(code, season, centre, spread, smooth), -error
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        net = NextStepNet(settings.model, settings.net)
    options = {"chunks": settings.chunks, "optim": settings.optim, "seed": seed, "device": device}
    history = fit_next_step(net, z_T[season:split], z_T[split:], **options)
    return Detector(net, season, centre, spread, smooth), max(history) - float(np.log(spread))
