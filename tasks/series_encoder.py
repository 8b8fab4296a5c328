"""From windows of series to hidden states: tokens of values, mask and covariates through a causal backbone.

Legend: B batch, C channels of a series, L steps, T tokens, P steps in a patch, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tokenizers.numeric import PatchTokens, QuantileBins, StepTokens

TOKENS = ("step", "patch", "bins")


@dataclass(frozen=True, kw_only=True)
class SeriesShape:
    """What the windows of a data set look like.

    Attributes:
        lookback: Steps that a forecast looks back, L.
        horizon: Steps ahead, H.
        channels: Series that share a window; 1 unless channels are mixed.
        future: Known-future covariates.
        past: Covariates known up to the cutoff.
        static: Covariates that are constant in a series.
        irregular: Whether the distances between steps vary and enter the model.
    """

    lookback: int
    horizon: int
    channels: int = 1
    future: int = 0
    past: int = 0
    static: int = 0
    irregular: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """How numbers become tokens.

    Attributes:
        kind: step (one token per step), patch (one per ``patch`` steps) or bins (the id of a quantile bin per step).
        patch: Steps in a patch.
        n_bins: Quantile bins.
    """

    kind: str = "step"
    patch: int = 16
    n_bins: int = 256

    def __post_init__(self):
        if self.kind not in TOKENS:
            raise ConfigError("tokens.kind", expected=" or ".join(TOKENS), got=repr(self.kind))
        if self.patch < 1 or self.n_bins < 2:
            raise ConfigError("tokens", expected="a patch of 1 or more and 2 or more bins",
                              got=f"{self.patch} and {self.n_bins}")  # fmt: skip


class SeriesEncoder(nn.Module):
    """Tokens and backbone: hidden states that know nothing of later steps.

    Args:
        model: Architecture; its inputs are set to what the tokens need.
        tokens: Tokens.
        shape: Sizes of the windows.
    """

    def __init__(self, model: BackboneConfig, tokens: TokenConfig, shape: SeriesShape):
        super().__init__()
        self.kind, self.shape = tokens.kind, shape
        self.values = PatchTokens(tokens.patch) if tokens.kind == "patch" else StepTokens()
        self.patch = self.values.patch
        covariates = shape.future + shape.past + shape.static + shape.irregular
        if tokens.kind == "bins":
            if shape.channels > 1:
                raise ConfigError("tokens.kind", expected="step or patch for mixed channels", got="bins")
            self.bins = QuantileBins(tokens.n_bins)
            self.register_buffer("bin_edges", self.bins.edges.clone())
            self.register_buffer("bin_centres", self.bins.centres.clone())
            inputs = {"vocab_size": tokens.n_bins + 1, "n_channels": covariates}
        else:
            inputs = {"vocab_size": 0, "n_channels": shape.channels * self.values.width + covariates * self.patch}
        self.backbone = Backbone(replace(model, **inputs))
        self.backbone.require_causal("forecasting")
        if shape.irregular:
            self.backbone.require_time()

    @property
    def width(self) -> int:
        """Width D of the hidden states."""
        return self.backbone.hidden_width

    def fit_bins(self, z: Tensor) -> None:
        """Choose the bins' edges from training values, where the tokens are bins."""
        if self.kind == "bins":
            self.bins.fit(z)
            # Fewer bins remain where values repeat; the tables keep their size so that weights load.
            for table, values in ((self.bin_edges, self.bins.edges), (self.bin_centres, self.bins.centres)):
                table.fill_(torch.inf)
                table[: len(values)] = values

    def forward(self, z_BCL: Tensor, batch: Mapping[str, Tensor], state: Any = None) -> tuple[Tensor, Any]:
        """Hidden states of windows, or of chunks that continue others.

        Args:
            z_BCL: Scaled values, NaN where missing.
            batch: ``future``, ``past``, ``static`` and ``step`` as in the windows, of at least L steps.
            state: State behind the step before the first; None for none.

        Returns:
            Hidden states (B, T, D) and the state behind the last step.
        """
        covariates_BLV = self.covariates(batch, z_BCL.shape[-1])
        ids, channels = self.tokens(z_BCL, covariates_BLV)
        step = batch.get("step")
        if step is None:
            return self.backbone(ids, channels=channels, state=state)
        step_BL = step[:, : z_BCL.shape[-1]]
        step_BT = PatchTokens(self.patch).encode(step_BL)[..., : self.patch].sum(-1) / self.patch
        return self.backbone(ids, channels=channels, state=state, step_size=step_BT)

    def step(self, z_BC: Tensor, batch: Mapping[str, Tensor], state: Any) -> tuple[Tensor, Any]:
        """One step per series; ``batch`` holds covariates of one step. Tokens must not be patches."""
        if self.patch > 1:
            raise ConfigError("tokens.kind", expected="step or bins, to go on step by step", got="patch")
        hidden_BTD, state = self(z_BC.unsqueeze(-1), batch, state)
        return hidden_BTD[:, 0], state

    def covariates(self, batch: Mapping[str, Tensor], length: int) -> Tensor | None:
        """Covariates of the first ``length`` steps of the windows (B, L, V); None where there are none."""
        parts = [batch[name][:, :length] for name in ("future", "past") if name in batch]
        if "static" in batch:
            parts.append(batch["static"].unsqueeze(1).expand(-1, length, -1))
        if "step" in batch:
            parts.append(batch["step"][:, :length].clamp(min=1e-6).log().unsqueeze(-1))
        return torch.cat(parts, dim=-1) if parts else None

    def tokens(self, z_BCL: Tensor, covariates_BLV: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Ids and float channels of the backbone."""
        if self.kind == "bins":
            edges = self.bin_edges[self.bin_edges.isfinite()]
            ids = torch.bucketize(z_BCL[:, 0].nan_to_num(0.0).to(edges), edges, right=True) + 1
            return torch.where(z_BCL[:, 0].isnan(), 0, ids), covariates_BLV
        values = self.values.encode(z_BCL).transpose(1, 2).flatten(-2)
        if covariates_BLV is None:
            return None, values
        if self.patch > 1:
            lacking = -covariates_BLV.shape[1] % self.patch
            padded = nn.functional.pad(covariates_BLV, (0, 0, lacking, 0))
            covariates_BLV = padded.unflatten(1, (-1, self.patch)).flatten(-2)
        return None, torch.cat([values, covariates_BLV], dim=-1)

    def describe(self) -> dict[str, Any]:
        """Shape as plain values."""
        return asdict(self.shape)
