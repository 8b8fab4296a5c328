"""From hidden states to forecasts: quantiles, distributions, counts and points around a centre.

A head adds what the network says to a centre, the forecast of the linear path. At the start of training the network
says nothing: a quantile head then answers with the quantiles of the linear path's residuals.

Legend: B batch, C channels, H horizon, Q quantile levels, K numbers of a head, R residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributions, nn
from torch.nn import functional

from seqkit.errors import ConfigError

LEVELS = (0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975)
"""Default quantile levels: the medians and the intervals of 60, 80, 90 and 95 percent among them."""
HEADS = ("quantile", "normal", "student-t", "negative-binomial", "point")
_LOG_SPREAD = 4.0
"""Bound on the logarithm of a learned factor of the spread."""
_FIRST_DISPERSION, _LEAST_DISPERSION, _LEAST_MEAN = -2.0, -10.0, 1e-3
"""Logarithms of dispersions, and a mean."""


def build_head(kind: str, horizon: int, levels: tuple[float, ...] = LEVELS) -> nn.Module:
    """Make a head by name: quantile, normal, student-t, negative-binomial or point.

    Raises:
        ConfigError: Unknown name, or levels that do not rise from above 0 to below 1.
    """
    if kind not in HEADS:
        raise ConfigError("head", expected=" or ".join(HEADS), got=repr(kind))
    if list(levels) != sorted(set(levels)) or not levels or not 0 < levels[0] <= levels[-1] < 1:
        raise ConfigError("levels", expected="rising quantile levels between 0 and 1", got=str(list(levels)))
    if kind == "quantile":
        return QuantileHead(horizon, levels)
    if kind == "negative-binomial":
        return CountHead(horizon)
    return PointHead() if kind == "point" else DistributionHead(kind, horizon)


class QuantileHead(nn.Module):
    """Quantiles by horizon step, trained with the pinball loss.

    Args:
        horizon: H.
        levels: Quantile levels, rising.

    Reference: Koenker and Bassett 1978, Regression quantiles.
    """

    counts = False
    """Whether centre and values are those of the data, whole numbers from 0 up, rather than scaled ones."""
    degree = 1
    """The loss grows with this power of the unit of the values."""

    def __init__(self, horizon: int, levels: tuple[float, ...]):
        super().__init__()
        self.width = len(levels) + 1
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32))
        self.offset_HQ = nn.Parameter(torch.zeros(horizon, len(levels)))

    def initialise(self, residual_RH: Tensor) -> None:
        """Start from the quantiles of residuals, NaN where missing."""
        quantiles_QH = torch.nanquantile(residual_RH.double(), self.levels.double(), dim=0)
        with torch.no_grad():
            self.offset_HQ.copy_(quantiles_QH.T.nan_to_num(0.0))

    def values(self, centre_BCH: Tensor, raw_BCHK: Tensor) -> Tensor:
        """Quantiles (B, C, H, Q), not yet sorted."""
        spread = raw_BCHK[..., :1].clamp(-_LOG_SPREAD, _LOG_SPREAD).exp()
        return centre_BCH.unsqueeze(-1) + spread * self.offset_HQ[: centre_BCH.shape[-1]] + raw_BCHK[..., 1:]

    def loss(self, centre_BCH: Tensor, raw_BCHK: Tensor, target_BCH: Tensor) -> Tensor:
        """Twice the mean pinball loss over levels, (B, C, H): of the median alone it is the absolute error."""
        error = target_BCH.unsqueeze(-1) - self.values(centre_BCH, raw_BCHK)
        return 2 * torch.maximum(self.levels * error, (self.levels - 1) * error).mean(-1)

    def quantiles(self, centre_BCH: Tensor, raw_BCHK: Tensor, levels: Tensor) -> Tensor:
        """Quantiles (B, C, H, len(levels)) at any levels: between the head's own along a normal curve, sorted."""
        own = self.values(centre_BCH, raw_BCHK).sort(dim=-1).values
        if len(levels) == len(self.levels) and torch.equal(levels.to(self.levels), self.levels):
            return own
        return interpolate_quantiles(own, self.levels, levels)


class DistributionHead(nn.Module):
    """A normal or Student's t distribution by horizon step, trained with its likelihood.

    Args:
        kind: normal or student-t.
        horizon: H.
    """

    counts, degree = False, 0

    def __init__(self, kind: str, horizon: int):
        super().__init__()
        self.kind, self.width = kind, 2 if kind == "normal" else 3
        self.log_scale_H = nn.Parameter(torch.zeros(horizon))

    def initialise(self, residual_RH: Tensor) -> None:
        """Start from the spread of residuals, NaN where missing."""
        known = ~residual_RH.isnan()
        variance = residual_RH.nan_to_num(0.0).double().square().sum(0) / known.sum(0).clamp(min=1)
        with torch.no_grad():
            self.log_scale_H.copy_(0.5 * variance.clamp(min=1e-8).log())

    def distribution(self, centre_BCH: Tensor, raw_BCHK: Tensor) -> distributions.Distribution:
        """The distribution of every step."""
        log_scale = self.log_scale_H[: centre_BCH.shape[-1]] + raw_BCHK[..., 1].clamp(-_LOG_SPREAD, _LOG_SPREAD)
        loc, scale = centre_BCH + raw_BCHK[..., 0], log_scale.exp()
        if self.kind == "normal":
            return distributions.Normal(loc, scale)
        return distributions.StudentT(3.0 + functional.softplus(raw_BCHK[..., 2] + 1.0), loc, scale)

    def loss(self, centre_BCH: Tensor, raw_BCHK: Tensor, target_BCH: Tensor) -> Tensor:
        """Negative log likelihood (B, C, H)."""
        return -self.distribution(centre_BCH, raw_BCHK).log_prob(target_BCH)

    def quantiles(self, centre_BCH: Tensor, raw_BCHK: Tensor, levels: Tensor) -> Tensor:
        """Quantiles (B, C, H, len(levels))."""
        law = self.distribution(centre_BCH, raw_BCHK)
        levels = levels.to(centre_BCH)
        if self.kind == "normal":
            return law.loc.unsqueeze(-1) + law.scale.unsqueeze(-1) * torch.special.ndtri(levels)
        from scipy.special import stdtrit  # torch has no inverse of Student's distribution

        standard = stdtrit(law.df.unsqueeze(-1).double().cpu().numpy(), levels.double().cpu().numpy())
        return law.loc.unsqueeze(-1) + law.scale.unsqueeze(-1) * torch.from_numpy(standard).to(centre_BCH)


class CountHead(nn.Module):
    """A negative binomial distribution of counts by horizon step, trained with its likelihood.

    Its variance is mean + dispersion * mean^2; a dispersion of 0 is Poisson's distribution. A centre far above 0 is the
    mean where the network says nothing; towards and below 0 the mean bends away from it and stays positive.

    Args:
        horizon: H.
    """

    counts, degree, width = True, 0, 2

    def __init__(self, horizon: int):
        super().__init__()
        self.log_dispersion_H = nn.Parameter(torch.full((horizon,), _FIRST_DISPERSION))

    def initialise(self, residual_RH: Tensor) -> None:
        """Nothing to start from: scaled residuals do not tell how counts scatter."""

    def distribution(self, centre_BCH: Tensor, raw_BCHK: Tensor) -> distributions.NegativeBinomial:
        """The distribution of every step, from centres in the units of the data.

        In float64: its likelihood is a small difference of large logarithms of factorials.
        """
        centre_BCH, raw_BCHK = centre_BCH.double(), raw_BCHK.double()
        factor_BCH = raw_BCHK[..., 0].clamp(-_LOG_SPREAD, _LOG_SPREAD).exp()
        mean_BCH = (functional.softplus(centre_BCH) * factor_BCH).clamp(min=_LEAST_MEAN)
        moved = raw_BCHK[..., 1].clamp(-_LOG_SPREAD, _LOG_SPREAD)
        log_dispersion = (self.log_dispersion_H[: centre_BCH.shape[-1]] + moved).clamp(min=_LEAST_DISPERSION)
        # Real counts have a likelihood too: rates that were averaged are not refused.
        return distributions.NegativeBinomial(
            (-log_dispersion).exp(), logits=mean_BCH.log() + log_dispersion, validate_args=False
        )

    def loss(self, centre_BCH: Tensor, raw_BCHK: Tensor, target_BCH: Tensor) -> Tensor:
        """Negative log likelihood (B, C, H) of counts."""
        return -self.distribution(centre_BCH, raw_BCHK).log_prob(target_BCH.double().clamp(min=0.0)).to(centre_BCH)

    def quantiles(self, centre_BCH: Tensor, raw_BCHK: Tensor, levels: Tensor) -> Tensor:
        """Quantiles (B, C, H, len(levels)), whole numbers."""
        from scipy.stats import nbinom  # torch has no inverse of this distribution

        law = self.distribution(centre_BCH, raw_BCHK)
        number, chance = (x.detach().unsqueeze(-1).cpu().numpy() for x in (law.total_count, 1 - law.probs))
        return torch.from_numpy(nbinom.ppf(levels.detach().double().cpu().numpy(), number, chance)).to(centre_BCH)


class PointHead(nn.Module):
    """One number by horizon step, trained with the squared error; intervals come from its residuals alone."""

    counts, degree, width = False, 2, 1

    def initialise(self, residual_RH: Tensor) -> None:
        """Nothing to start from: the centre is the forecast."""

    def loss(self, centre_BCH: Tensor, raw_BCHK: Tensor, target_BCH: Tensor) -> Tensor:
        """Squared error (B, C, H)."""
        return (centre_BCH + raw_BCHK[..., 0] - target_BCH).square()

    def quantiles(self, centre_BCH: Tensor, raw_BCHK: Tensor, levels: Tensor) -> Tensor:
        """The forecast at every level (B, C, H, len(levels)); calibration spreads them."""
        return (centre_BCH + raw_BCHK[..., 0]).unsqueeze(-1).expand(*centre_BCH.shape, len(levels))


def interpolate_quantiles(values: Tensor, levels: Tensor, wanted: Tensor) -> Tensor:
    """Quantiles at other levels, linear in the normal score of the level; beyond the outermost, along their last line.

    Args:
        values: (..., Q) sorted quantiles.
        levels: (Q,) rising.
        wanted: (M,) levels.

    Returns:
        (..., M).
    """
    if len(levels) == 1:
        return values.expand(*values.shape[:-1], len(wanted))
    score = torch.special.ndtri(levels.double())
    place = torch.special.ndtri(wanted.to(levels.device).double())
    right = torch.searchsorted(score, place).clamp(1, len(levels) - 1)
    weight = ((place - score[right - 1]) / (score[right] - score[right - 1])).to(values)
    return values[..., right - 1] * (1 - weight) + values[..., right] * weight
