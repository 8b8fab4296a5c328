"""Trained detectors of one or many series: fitted, saved, opened again, asked for scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from seqkit.backbones import BackboneConfig
from seqkit.data import bundled
from seqkit.data.series import Panel, load_panel
from seqkit.data.series_grid import GridConfig
from seqkit.errors import CheckpointError, ConfigError, InputError
from seqkit.tasks.detector import Detector, DetectorConfig, fit_detector
from seqkit.tasks.export import load_weights, read_description, save_model
from seqkit.tasks.next_step import NextStepConfig, NextStepNet
from seqkit.tasks.window_code import WindowCode

TASK = "anomaly"


@dataclass(frozen=True, kw_only=True)
class AnomalyDataConfig:
    """Series and how their stamps are read.

    Attributes:
        table: CSV, TSV, Parquet or Arrow file in long format; none takes the bundled taxi series.
        columns: Which columns hold id, time, target, where their names are not guessed.
        freq: Step between stamps; none infers it.
        time_zone: Zone of stamps without one.
        gaps: fill or refuse missing rows.
        duplicates: refuse, first, last or mean, for rows with the same stamp.
        infinite: refuse, or missing.
    """

    table: str | None = None
    columns: dict[str, str] | None = None
    freq: str | int | None = None
    time_zone: str | None = None
    gaps: str = "fill"
    duplicates: str = "refuse"
    infinite: str = "refuse"

    @property
    def source(self) -> str:
        """The table, or the bundled one."""
        return self.table or str(bundled.nyc_taxi().table)

    def read(self, source: Any, exogenous: tuple[str, ...] = ()) -> Panel:
        """Series of a table."""
        names = ("freq", "time_zone", "gaps", "duplicates", "infinite")
        grid = GridConfig(**{name: getattr(self, name) for name in names})
        return load_panel(source, columns=self.columns, exogenous=exogenous, grid=grid)


@dataclass(frozen=True, kw_only=True)
class AnomalyConfig:
    """Everything that decides an anomaly run.

    Attributes:
        task: anomaly.
        seed: Seed of weights and training.
        normal: Share of each series from its start (below 1), or rows, that is taken as normal.
        smooth: Steps over which surprise is averaged; none takes half the shortest season.
        device: auto, cpu, cuda or cuda:N.
        data: Series.
        detector: One-step model and its training.
    """

    task: str = TASK
    seed: int = 0
    normal: float = 0.15
    smooth: int | None = None
    device: str = "auto"
    data: AnomalyDataConfig = field(default_factory=AnomalyDataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)

    def __post_init__(self):
        if not self.normal > 0:
            raise ConfigError("normal", expected="a share below 1 or a number of rows", got=str(self.normal))
        if self.smooth is not None and self.smooth < 1:
            raise ConfigError("smooth", expected="1 or more", got=str(self.smooth))

    def normal_rows(self, length: int) -> int:
        """Rows of a series that are taken as normal."""
        return min(length, round(self.normal * length) if self.normal < 1 else round(self.normal))


@dataclass(frozen=True)
class TrainedDetectors:
    """One detector a series.

    Attributes:
        config: Settings of the run.
        detectors: By name of the series.
    """

    config: AnomalyConfig
    detectors: Mapping[str, Detector]

    @classmethod
    def fit(cls, config: AnomalyConfig, panel: Panel, device: torch.device) -> TrainedDetectors:
        """Fit a detector to the normal stretch of every series."""
        cycles = (1,) if panel.frequency is None else panel.frequency.seasons
        seasons = (0, *(season for season in cycles if season > 1))
        smooth = config.smooth or max(cycles[0] // 2, 1)
        options = {"seasons": seasons, "smooth": smooth, "settings": config.detector, "seed": config.seed}
        found = {}
        for name, y_T in series_of(panel):
            normal_T = y_T[: config.normal_rows(len(y_T))]
            found[name] = fit_detector(normal_T, device=str(device), **options)
        return cls(config, found)

    def score(self, panel: Panel) -> pl.DataFrame:
        """Rows of the panel with ``score`` and ``anomaly``, whether it is above all that the normal stretch had.

        Raises:
            InputError: A series was not there in training.
        """
        scores, limits = [], []
        for name, y_T in series_of(panel):
            if name not in self.detectors:
                known = ", ".join(self.detectors)
                raise InputError("unique_id", expected=f"a series of the run: {known[:80]}", got=name)
            scores.append(self.detectors[name].score(y_T))
            limits.append(np.full(len(y_T), self.detectors[name].threshold))
        score, limit = np.concatenate(scores), np.concatenate(limits)
        names = pl.Series("unique_id", panel.ids)[panel.series_of_row]
        values = {"unique_id": names, "ds": panel.ds, "y": pl.Series(panel.y, nan_to_null=True)}
        return pl.DataFrame(values | {"score": score, "anomaly": score > limit})

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and ``model.safetensors``."""
        nets = torch.nn.ModuleList(detector.net for detector in self.detectors.values())
        numbers = ("season", "centre", "spread", "smooth", "usual", "threshold")
        table = {name: {key: getattr(d, key) for key in numbers} for name, d in self.detectors.items()}
        for name, detector in self.detectors.items():
            if isinstance(detector.net, WindowCode):
                table[name]["code"] = list(detector.net.direction_KW.shape)
        save_model(folder, nets, {**asdict(self.config), "series": table})

    @classmethod
    def load(cls, folder: str | Path, device: torch.device) -> TrainedDetectors:
        """Read what :meth:`save` wrote. No code from the folder runs.

        Raises:
            CheckpointError: No such model lies there, or it is damaged.
        """
        described = read_description(Path(folder))
        if described["task"] != TASK:
            raise CheckpointError("--ckpt", expected=f"an {TASK} run", got=f"a {described['task']} run")
        detector = described["detector"]
        model, net = BackboneConfig.from_dict(detector["model"]), NextStepConfig(**detector["net"])
        codes = [numbers.pop("code", None) for numbers in described["series"].values()]
        nets = torch.nn.ModuleList(WindowCode(*code) if code else NextStepNet(model, net) for code in codes)
        load_weights(Path(folder), nets)
        nets.to(device)
        config = AnomalyConfig(
            seed=described["seed"],
            normal=described["normal"],
            smooth=described["smooth"],
            data=AnomalyDataConfig(**described["data"]),
            detector=DetectorConfig(
                model=model, net=net, **{name: detector[name] for name in ("score", "window", "code")}
            ),
        )
        pairs = zip(described["series"].items(), nets, strict=True)
        return cls(config, {name: Detector(net=net, **numbers) for (name, numbers), net in pairs})


def series_of(panel: Panel) -> list[tuple[str, NDArray]]:
    """Names and values of the series."""
    bounds = zip(panel.ids, panel.offsets[:-1], panel.offsets[1:], strict=True)
    return [(name, panel.y[begin:end]) for name, begin, end in bounds]
