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
    """The head on the difference of the two windows.

    Attributes:
        d_hidden: Width of each member's hidden layer.
        members: Networks in the head whose outputs are averaged; each starts from its own weights.
        dropout: Dropout of the hidden layers, 0 to 1.
        feature_dropout: Share of annotation and user features hidden per allele and member in training, 0 to 1.
        radius: Bases on each side of the variant that make up its neighbourhood.
    """

    d_hidden: int = 64
    members: int = 8
    dropout: float = 0.3
    feature_dropout: float = 0.1
    radius: int = 8

    def __post_init__(self):
        if self.d_hidden < 1 or self.members < 1 or self.radius < 0:
            raise ConfigError(
                "head", expected="d_hidden and members of 1 or more, radius of 0 or more",
                got=f"{self.d_hidden}, {self.members}, {self.radius}",
            )  # fmt: skip
        for name in ("dropout", "feature_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"head.{name}", expected="a share from 0 up to 1", got=str(getattr(self, name)))


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
        d_out: Width of the returned vector.
        radius: Bases on each side that make up the neighbourhood.
        dropout: Dropout of the returned vector.
    """

    def __init__(self, backbone: Backbone, d_out: int, radius: int, dropout: float):
        super().__init__()
        self.backbone = backbone
        self.radius = radius
        self.project = nn.Sequential(
            nn.LayerNorm(4 * backbone.hidden_width), nn.Linear(4 * backbone.hidden_width, d_out)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Difference vector (B, d_out) of a batch with ``ref_ids, alt_ids, centre`` and optional channels."""
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
        return self.dropout(self.project(torch.cat(views, dim=-1)))


class EnsembleHead(nn.Module):
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
        self.dropout, self.input_dropout = config.dropout, config.feature_dropout
        self.wide = nn.Parameter(torch.zeros(members, n_inputs, n_outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, n_outputs))
        self.enter = nn.Parameter(torch.randn(members, n_inputs, hidden) * 0.5 / n_inputs**0.5)
        self.enter_bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.leave = nn.Parameter(torch.randn(members, hidden, n_outputs) * 0.5 / hidden**0.5)

    def forward(self, inputs_BI: Tensor) -> Tensor:
        """Outputs of every member, (M, B, K)."""
        inputs_MBI = inputs_BI.expand(len(self.wide), *inputs_BI.shape)
        inputs_MBI = functional.dropout(inputs_MBI, self.input_dropout, self.training)
        hidden_MBH = functional.silu(torch.baddbmm(self.enter_bias, inputs_MBI, self.enter))
        hidden_MBH = functional.dropout(hidden_MBH, self.dropout, self.training)
        return torch.baddbmm(self.bias, inputs_MBI, self.wide) + hidden_MBH @ self.leave


class VariantEffectNet(nn.Module):
    """Backbone difference and features into an :class:`EnsembleHead`.

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
        self.difference = WindowDifference(backbone, head.d_hidden, head.radius, head.dropout)
        self.head = EnsembleHead(features.width + head.d_hidden, n_outputs, head)
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
        return self.head(torch.cat([self.features(batch["features"]), self.difference(batch)], dim=-1))

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
