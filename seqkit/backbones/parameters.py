"""Which parameters stay float32, which are decayed, and layers that know it.

Small per-channel parameters (decay rates, skip weights, biases, norm weights) set time constants: rounding them to
bfloat16 changes what a model remembers, and decaying them pulls every time constant to one value. They stay float32
whatever the module is cast to, and carry ``_no_weight_decay``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HALF_TYPES = (torch.bfloat16, torch.float16)


class KeepsFloat32(nn.Module):
    """A module whose named parameters survive casts to half precision.

    Casting to float64, moving to a device and ``to_empty`` work as for any module.

    Attributes:
        float32_parameters: Names of the module's own parameters that stay float32.
    """

    float32_parameters: ClassVar[tuple[str, ...]] = ()

    def _kept(self) -> list[nn.Parameter]:
        return [p for name in self.float32_parameters if (p := self._parameters.get(name)) is not None]

    def mark_parameters(self) -> None:
        """Raise the kept parameters to float32 and exempt them from weight decay; call it when they all exist."""
        for parameter in self._kept():
            parameter._no_weight_decay = True
            if parameter.dtype in _HALF_TYPES:
                # Built under a half-precision default dtype, as bf16-true training does.
                parameter.data = parameter.data.float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # The cast happens inside fn, so it has to be undone per tensor, before the value is rounded.
        kept = {id(t) for p in self._kept() for t in (p, p.grad) if t is not None}

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if id(tensor) in kept and converted.dtype in _HALF_TYPES:
                return tensor.to(device=converted.device, dtype=torch.float32)
            return converted

        super()._apply(convert, recurse)
        self.mark_parameters()  # some casts make new Parameter objects, which lose their marks
        return self


class Linear(KeepsFloat32, nn.Linear):
    """``nn.Linear`` with a float32 bias, accepting input of any float type.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether to add a bias.
        init_scale: Factor on the default initial weights; residual stacks shrink their last projections with it.
    """

    float32_parameters = ("bias",)

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, init_scale: float = 1.0):
        self.init_scale = init_scale
        super().__init__(in_features, out_features, bias=bias)
        self.mark_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights; ``init_scale`` survives."""
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(self.init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features) in the weight's dtype, or in autocast's."""
        return self._project(x, self.bias)

    def without_bias(self, x: Tensor) -> Tensor:
        """The same map short of its bias, for callers that add it later and in float32."""
        return self._project(x, None)

    def compute_dtype(self) -> torch.dtype:
        """What the map computes in: its weight's dtype, or autocast's, which leaves float64 alone."""
        device, dtype = self.weight.device.type, self.weight.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            return torch.get_autocast_dtype(device)
        return dtype

    def _project(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.weight, bias)
        dtype = self.weight.dtype
        return F.linear(x.to(dtype), self.weight, None if bias is None else bias.to(dtype))


def time_step_bias(shape: tuple[int, ...], dt_min: float, dt_max: float, floor: float) -> Tensor:
    """Draw time steps log-uniformly in [dt_min, dt_max] and return the bias that softplus maps onto them.

    Args:
        shape: Shape of the result.
        dt_min: Smallest time step, > 0. A channel forgets over about 1 / dt steps.
        dt_max: Largest time step.
        floor: No time step is smaller than this.

    Returns:
        float32 bias of the given shape.

    Reference: Gu and Dao 2023, Mamba, section 3.6 and appendix; inverse softplus x + log(1 - exp(-x)).
    """
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(shape, dtype=torch.float32) * (high - low) + low).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Split trainable parameters for an optimizer.

    Args:
        module: Any module.
        weight_decay: Decay of the matrices, >= 0.

    Returns:
        Two groups in the form torch optimizers take: decayed matrices, and undecayed parameters (one-dimensional, or
        marked ``_no_weight_decay``). A parameter shared by several modules appears once.
    """
    # A deep copy of a parameter loses its mark, so the modules are asked as well.
    kept = {id(p) for m in module.modules() if isinstance(m, KeepsFloat32) for p in m._kept()}
    decayed, plain = [], []
    for parameter in module.parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False) or id(parameter) in kept
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
