"""Variant effects: reference and alternate windows through one backbone, a head on their difference.

The two windows of an allele are read by the same weights, so what both share cancels and the head sees what the
allele changes, at the variant, around it and over the whole window. Splicing and coding effects depend on the
strand: windows come on the gene's strand where an annotation gives it; for all others both orientations are scored
and averaged.

Legend: B alleles, L window, D hidden width, C channels, F features, K outputs, M ensemble members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from seqkit.backbones import Backbone
from seqkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VariantHeadConfig:
    """The heads on the difference of the two windows and on the features.

    Attributes:
        d_hidden: Width of the hidden layers.
        members: Networks of the feature head whose outputs are averaged; each starts from its own weights.
        dropout: Dropout of the hidden layers, 0 to 1.
        radius: Bases on each side of the variant that make up its neighbourhood.
    """

    d_hidden: int = 16
    members: int = 4
    dropout: float = 0.3
    radius: int = 8

    def __post_init__(self):
        for name, least in (("d_hidden", 1), ("members", 1), ("radius", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"head.{name}", expected=f"at least {least}", got=str(getattr(self, name)))
        if not 0 <= self.dropout < 1:
            raise ConfigError("head.dropout", expected="a share from 0 up to 1", got=str(self.dropout))


class Standardise(nn.Module):
    """Centre and scale columns by the training rows; a missing value becomes the training mean.

    Args:
        n_columns: F.
        floor: Smallest scale. Above 0 it keeps rare indicators from being blown up.
    """

    def __init__(self, n_columns: int, floor: float = 0.0):
        super().__init__()
        self.floor = floor
        self.register_buffer("mean", torch.zeros(n_columns))
        self.register_buffer("scale", torch.ones(n_columns))

    def fit(self, values_BF: Tensor) -> None:
        """Take mean and standard deviation from training rows, NaN left out; constant columns become 0."""
        known = ~values_BF.isnan()
        count = known.sum(0).clamp(min=1)
        mean = values_BF.nan_to_num(0.0).sum(0) / count
        spread = (torch.where(known, values_BF - mean, 0.0).square().sum(0) / count).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-8, spread.clamp(min=self.floor), torch.inf))

    def forward(self, values_BF: Tensor) -> Tensor:
        """Standardised values, NaN as 0."""
        return ((values_BF - self.mean) / self.scale).nan_to_num(0.0)


class FeatureInputs(nn.Module):
    """Annotation features and the user's numeric columns as inputs of a head.

    A conservation score means one thing in a codon and another in an intron. So each user column enters by itself, as
    three hinges (above the mean, above one standard deviation, below the mean), times each modifier of the annotation
    and, with more than one column, as pairwise products.

    Args:
        n_annotation: Annotation features, the first columns.
        n_columns: User columns, the last ones.
        modifiers: Numbers of the annotation features that modify a user column.
    """

    floor = 0.2

    def __init__(self, n_annotation: int, n_columns: int, modifiers: Sequence[int]):
        super().__init__()
        self.n_annotation, self.n_columns = n_annotation, n_columns
        self.register_buffer("modifiers", torch.tensor(list(modifiers), dtype=torch.long), persistent=False)
        self.standardise_annotation = Standardise(n_annotation, self.floor)
        self.standardise_columns = Standardise(n_columns)
        pairs = [(i, j) for i in range(n_columns) for j in range(i)]
        self.register_buffer("pairs", torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), persistent=False)
        self.width = n_annotation + n_columns * (4 + len(modifiers)) + len(pairs)

    def fit(self, features_BF: Tensor) -> None:
        """Take the statistics of training rows."""
        self.standardise_annotation.fit(features_BF[:, : self.n_annotation])
        self.standardise_columns.fit(features_BF[:, self.n_annotation :])

    def forward(self, features_BF: Tensor) -> Tensor:
        """Inputs (B, width) of features (B, F); NaN counts as the mean of the training rows."""
        annotation_BA, columns_BU = features_BF[:, : self.n_annotation], features_BF[:, self.n_annotation :]
        parts = [self.standardise_annotation(annotation_BA)]
        if self.n_columns:
            z_BU = self.standardise_columns(columns_BU)
            modifiers_BM = annotation_BA[:, self.modifiers].nan_to_num(0.0)
            parts += [z_BU, z_BU.relu(), (z_BU - 1).relu(), (-z_BU).relu()]
            parts.append((z_BU[:, :, None] * modifiers_BM[:, None, :]).flatten(1))
            parts.append(z_BU[:, self.pairs].prod(-1))
        return torch.cat(parts, dim=1)


class WindowDifference(nn.Module):
    """What an allele changes in the backbone's reading of its window.

    Three views of ``hidden(alt) - hidden(ref)``: at the variant, averaged over its neighbourhood, averaged over the
    window; and the reference's own reading at the variant, since the same change matters in one place and not in
    another.

    Args:
        backbone: Reads token ids (B, L), optionally with channels (B, L, C), to hidden states (B, L, D).
        n_outputs: K.
        config: Sizes, neighbourhood and dropout.
    """

    def __init__(self, backbone: Backbone, n_outputs: int, config: VariantHeadConfig):
        super().__init__()
        self.backbone = backbone
        self.radius = config.radius
        width = 4 * backbone.hidden_width
        self.enter = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, config.d_hidden), nn.SiLU(), nn.Dropout(config.dropout)
        )
        self.leave = nn.Linear(config.d_hidden, n_outputs)
        # Starts without a say, so that it learns what the features leave open.
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Outputs (B, K) of a batch with ``ref_ids, alt_ids, centre`` and optional channels."""
        ids_BL = torch.cat([batch["ref_ids"], batch["alt_ids"]])
        channels_BLC = None
        if "ref_channels" in batch:
            channels_BLC = torch.cat([batch["ref_channels"], batch["alt_channels"]])
        hidden_BLD, _ = self.backbone(ids_BL, channels=channels_BLC)
        ref_BLD, alt_BLD = hidden_BLD.chunk(2)
        change_BLD = alt_BLD - ref_BLD
        centre_B = batch["centre"]
        position_L = torch.arange(ref_BLD.shape[1], device=ref_BLD.device)
        near_BL = ((position_L - centre_B[:, None]).abs() <= self.radius).to(ref_BLD.dtype)
        row_B = torch.arange(len(centre_B), device=ref_BLD.device)
        views = [
            change_BLD[row_B, centre_B],
            torch.einsum("bl,bld->bd", near_BL / near_BL.sum(1, keepdim=True), change_BLD),
            change_BLD.mean(1),
            ref_BLD[row_B, centre_B],
        ]
        return self.leave(self.enter(torch.cat(views, dim=-1)))


class FeatureHead(nn.Module):
    """Linear part plus one small hidden layer, several independently initialised members, mean of their logits.

    The linear part carries what annotation says about an allele (as a penalised regression would); the hidden layer
    adds interactions. Inspired by the wide and deep arrangement of Cheng et al. 2016 (arXiv 1606.07792, section 3) and
    by the averaging of independently initialised networks of Lakshminarayanan et al. 2017 (arXiv 1612.01474).

    Args:
        n_inputs: Width of the input vector.
        n_outputs: K.
        config: Sizes and dropout.
    """

    def __init__(self, n_inputs: int, n_outputs: int, config: VariantHeadConfig):
        super().__init__()
        members, hidden = config.members, config.d_hidden
        self.dropout = config.dropout
        self.wide = nn.Parameter(torch.zeros(members, n_inputs, n_outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, n_outputs))
        self.enter = nn.Parameter(torch.randn(members, n_inputs, hidden) * 0.5 / max(1, n_inputs) ** 0.5)
        self.enter_bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.leave = nn.Parameter(torch.randn(members, hidden, n_outputs) * 0.5 / hidden**0.5)

    def forward(self, inputs_BI: Tensor) -> Tensor:
        """Outputs of every member, (M, B, K)."""
        inputs_MBI = inputs_BI.expand(len(self.wide), *inputs_BI.shape)
        hidden_MBH = functional.silu(torch.baddbmm(self.enter_bias, inputs_MBI, self.enter))
        hidden_MBH = functional.dropout(hidden_MBH, self.dropout, self.training)
        return torch.baddbmm(self.bias, inputs_MBI, self.wide) + hidden_MBH @ self.leave


class VariantEffectNet(nn.Module):
    """The sum of what the windows say and what the features say.

    Args:
        backbone: Shared by both windows.
        features: Turns ``batch["features"]`` into inputs of the head.
        n_outputs: K, logits or values per allele.
        head: Sizes of the head.
        complement: Complement of every token id, for the second orientation; ``None`` scores one orientation only.
        channel_complement: Permutation of the channels under reverse complement.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: FeatureInputs,
        *,
        n_outputs: int,
        head: VariantHeadConfig,
        complement: Tensor | None = None,
        channel_complement: Tensor | None = None,
    ):
        super().__init__()
        self.features = features
        self.sequence = WindowDifference(backbone, n_outputs, head)
        self.head = FeatureHead(features.width, n_outputs, head)
        self.register_buffer("complement", complement, persistent=False)
        self.register_buffer("channel_complement", channel_complement, persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Member outputs (M, B, K); alleles without a known strand are the mean of both orientations."""
        as_given_MBK, other_MBK = self.orientations(batch)
        if other_MBK is None:
            return as_given_MBK
        return torch.where(batch["stranded"][None, :, None], as_given_MBK, (as_given_MBK + other_MBK) / 2)

    def orientations(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Member outputs of the windows as they are and, unless every allele has its strand, on the other strand."""
        as_given_MBK = self.oriented(batch)
        if self.complement is None or bool(batch["stranded"].all()):
            return as_given_MBK, None
        return as_given_MBK, self.oriented(self.flipped(batch))

    def oriented(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Member outputs (M, B, K) of the windows as they are."""
        return self.head(self.features(batch["features"])) + self.sequence(batch)

    def flipped(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the other strand: ids complemented, windows and channels reversed, centre mirrored."""
        other = dict(batch)
        for name in ("ref_ids", "alt_ids"):
            other[name] = self.complement[batch[name]].flip(1)
        for name in ("ref_channels", "alt_channels"):
            if name in batch:
                other[name] = batch[name][..., self.channel_complement].flip(1)
        other["centre"] = batch["ref_ids"].shape[1] - 1 - batch["centre"]
        return other
