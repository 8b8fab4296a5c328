"""One step ahead over a whole series: an autoregression, what a causal backbone adds to it, and a spread that moves.

The autoregression starts as its least-squares solution and the backbone's outputs at zero, so training begins at the
linear model. Everything known of the past is in a state of fixed size: a series of any length is read in chunks, and a
stream one value at a time.

Legend: B streams, L steps, P lags, K numbers of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributions, nn
from torch.nn import functional

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.errors import ConfigError
from seqkit.tasks.series_linear import Autoregression

NOISES = ("normal", "student-t")
CENTRES = ("likelihood", "square")
_LOG_SPREAD = 6.0
_LEAST_FREEDOM = 2.5


@dataclass(frozen=True, kw_only=True)
class NextStepConfig:
    """What stands around the backbone.

    Attributes:
        lags: Values P of the linear path.
        noise: normal or student-t.
        dropout: On the hidden state in front of the output.
        centre: What the centre learns from: likelihood, which trusts quiet stretches more, or square, the squared
            error; the spread learns from the likelihood either way.
    """

    lags: int = 32
    noise: str = "student-t"
    centre: str = "likelihood"
    dropout: float = 0.0

    def __post_init__(self):
        if self.lags < 1:
            raise ConfigError("net.lags", expected="1 or more", got=str(self.lags))
        if self.noise not in NOISES:
            raise ConfigError("net.noise", expected=" or ".join(NOISES), got=repr(self.noise))
        if self.centre not in CENTRES:
            raise ConfigError("net.centre", expected=" or ".join(CENTRES), got=repr(self.centre))


class Memory(NamedTuple):
    """All that a stream carries.

    Attributes:
        lags_BP: Last P values, oldest first; a missing one is replaced by what was expected of it, else 0.
        backbone: State of the backbone.
        expected_B: Expected next value.
    """

    lags_BP: Tensor
    backbone: Any
    expected_B: Tensor


class Expectation(NamedTuple):
    """Distribution of the value after each step.

    Attributes:
        loc_BL: Centre.
        scale_BL: Spread, > 0.
        freedom: Degrees of freedom of Student's t; None for a normal.
    """

    loc_BL: Tensor
    scale_BL: Tensor
    freedom: Tensor | None

    def law(self) -> distributions.Distribution:
        """As a torch distribution."""
        if self.freedom is None:
            return distributions.Normal(self.loc_BL, self.scale_BL)
        return distributions.StudentT(self.freedom, self.loc_BL, self.scale_BL)


class NextStepNet(nn.Module):
    """Distribution of the next value at every step.

    Args:
        model: Architecture; its inputs are set to value and mask.
        config: Lags and noise.
    """

    def __init__(self, model: BackboneConfig, config: NextStepConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(replace(model, vocab_size=0, n_channels=2))
        self.backbone.require_causal("one step ahead")
        self.lags = nn.Linear(config.lags, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(self.backbone.hidden_width, 2)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.freedom = nn.Parameter(torch.tensor(2.0)) if config.noise == "student-t" else None
        for layer in (self.lags, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def start(self, solution: Autoregression) -> None:
        """Take weights and noise of a fitted autoregression with P lags."""
        with torch.no_grad():
            self.lags.weight.copy_(torch.from_numpy(solution.weight_P)[None])
            self.lags.bias.fill_(solution.bias)
            self.log_scale.fill_(torch.log(torch.tensor(max(solution.noise, 1e-6))))

    def initial_memory(self, streams: int) -> Memory:
        """Nothing seen yet."""
        empty = self.output.weight.new_zeros(streams, self.config.lags)
        return Memory(empty, self.backbone.initial_state(streams), empty[:, 0])

    def forward(self, z_BL: Tensor, memory: Memory | None = None) -> tuple[Expectation, Memory]:
        """Expectations of the values behind each step, and what to go on from.

        Args:
            z_BL: Scaled values, NaN where missing. Inside a chunk a missing value counts as 0 (the mean) to the lags,
                as the first of a chunk it counts as what was expected.
            memory: What earlier chunks left; None for nothing.
        """
        memory = self.initial_memory(len(z_BL)) if memory is None else memory
        missing_BL = z_BL.isnan()
        filled_BL = z_BL.nan_to_num(0.0)
        first = torch.where(missing_BL[:, :1], memory.expected_B[:, None], filled_BL[:, :1])
        filled_BL = torch.cat([first, filled_BL[:, 1:]], dim=1)
        channels = torch.stack([filled_BL, missing_BL.to(filled_BL)], dim=-1)
        hidden_BLD, state = self.backbone(channels=channels, state=memory.backbone)
        move_BLK = self.output(self.dropout(hidden_BLD))
        known = torch.cat([memory.lags_BP, filled_BL], dim=1)
        # A convolution keeps the lags as one copy of the series, where windows would be P of them.
        weight = self.lags.weight.unsqueeze(0)
        linear_BL = functional.conv1d(known[:, None, 1:], weight, self.lags.bias).squeeze(1)
        scale_BL = (self.log_scale + move_BLK[..., 1].clamp(-_LOG_SPREAD, _LOG_SPREAD)).exp()
        freedom = None if self.freedom is None else _LEAST_FREEDOM + functional.softplus(self.freedom)
        found = Expectation(linear_BL + move_BLK[..., 0] * self.log_scale.exp(), scale_BL, freedom)
        return found, Memory(known[:, -self.config.lags :], state, found.loc_BL[:, -1])


def loss(expectation: Expectation, z_BL: Tensor, centre: str, noise: float) -> Tensor | None:
    """Mean training loss over observed values; None where there are none.

    Args:
        expectation: Of ``z_BL``.
        z_BL: Values, NaN where missing.
        centre: See :class:`NextStepConfig`.
        noise: Spread that makes the squared error a likelihood, for ``square``.
    """
    known = ~(z_BL.isnan() | expectation.loc_BL.isnan())
    if not known.any():
        return None
    if centre == "likelihood":
        return -log_likelihood(expectation, z_BL)[known].mean()
    fixed = expectation._replace(loc_BL=expectation.loc_BL.detach())
    error = (expectation.loc_BL - z_BL)[known] / noise
    return 0.5 * error.square().mean() - log_likelihood(fixed, z_BL)[known].mean()


def shifted(expectation: Expectation, memory_before: Expectation | None) -> Expectation:
    """Expectations of the values of a chunk itself: those behind the step before each.

    Args:
        expectation: Of the values behind each step of the chunk.
        memory_before: The last expectation of the chunk before; None at the beginning, where step 0 stays NaN.
    """

    def moved(now: Tensor, before: Tensor | None) -> Tensor:
        head = torch.full_like(now[:, :1], torch.nan) if before is None else before[:, -1:]
        return torch.cat([head, now[:, :-1]], dim=1)

    before = (None, None) if memory_before is None else (memory_before.loc_BL, memory_before.scale_BL)
    pairs = zip((expectation.loc_BL, expectation.scale_BL), before, strict=True)
    return Expectation(*(moved(now, then) for now, then in pairs), expectation.freedom)


def log_likelihood(expectation: Expectation, z_BL: Tensor) -> Tensor:
    """Log density (B, L) of values under expectations of them; NaN where either is missing."""
    known = ~(z_BL.isnan() | expectation.loc_BL.isnan())
    safe = Expectation(
        expectation.loc_BL.nan_to_num(0.0), torch.where(known, expectation.scale_BL, 1.0), expectation.freedom
    )
    return torch.where(known, safe.law().log_prob(torch.where(known, z_BL, 0.0)), torch.nan)
