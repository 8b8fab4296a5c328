"""One position at a time: a step whose cost does not depend on how much was read, and sequences made with it.

Legend: B batch, D channels, C float channels, V vocabulary, n new tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from seqkit.backbones import Backbone
from seqkit.errors import ConfigError, ShapeError
from seqkit.inference.stream import evaluating, stream
from seqkit.inference.stream_state import StreamState

_WARM_UP = 2


class StepRunner:
    """A causal backbone's step, and a head's, with the state kept between calls.

    On a GPU a CUDA graph holds the step: it reads the input and the state from fixed buffers and copies the next state
    back, so a call is one launch. On a CPU, and for layouts with attention, whose state grows, steps are plain calls.

    Args:
        model: Causal backbone on its device; weights that change later are seen, a move to another device is not.
        batch: Sequences B.
        head: From hidden states (B, D) to the output; None gives the hidden states.

    Attributes:
        graphed: Whether a CUDA graph runs.

    Raises:
        ConfigError: The backbone sees both sides.
    """

    def __init__(self, model: Backbone, batch: int, *, head: Callable[[Tensor], Tensor] | None = None):
        model.require_causal("steps (use stream_both_sides)")
        self.model, self.head, self.position = model, head or nn.Identity(), 0
        weight = next(model.parameters())
        self._inner = model.initial_state(batch)
        self._ids = torch.zeros(batch, dtype=torch.int64, device=weight.device) if model.config.vocab_size else None
        width = model.config.n_channels
        self._channels = torch.zeros(batch, width, dtype=weight.dtype, device=weight.device) if width else None
        grows = "attention" in model.config.blocks
        self.graphed = weight.device.type == "cuda" and not grows
        if grows:
            warnings.warn("the layout has attention: a step's cost grows with what was read", stacklevel=2)
        if self.graphed:
            self._capture(weight.device)

    def __call__(self, ids_B: Tensor | None = None, channels_BC: Tensor | None = None) -> Tensor:
        """Advance every sequence by one position.

        Args:
            ids_B: Token ids (B,); None when the backbone reads none.
            channels_BC: Float channels (B, C); None when it reads none.

        Returns:
            The output; with a graph its memory is written again by the next call.

        Raises:
            ShapeError: An input is missing, not wanted, or of another shape.
        """
        for name, given, own in (("ids", ids_B, self._ids), ("channels", channels_BC, self._channels)):
            shapes = [None if x is None else tuple(x.shape) for x in (own, given)]
            if shapes[0] != shapes[1]:
                raise ShapeError(name, expected=f"shape {shapes[0]}", got=f"shape {shapes[1]}")
            if own is not None:
                own.copy_(given)
        self.position += 1
        if self.graphed:
            self._graph.replay()
            return self._output
        output, self._inner = self._step()
        return output

    @property
    def state(self) -> StreamState:
        """A copy of where the sequences stand."""
        return StreamState(self.position, tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, self._inner))

    def load(self, state: StreamState) -> None:
        """Go on from a state of the same batch."""
        self.position = state.position
        if not self.graphed:
            self._inner = state.inner
            return
        for own, given in zip(self._leaves, tree_flatten(state.inner)[0], strict=True):
            if own.shape != given.shape:
                raise ShapeError("state", expected=f"shape {tuple(own.shape)}", got=f"shape {tuple(given.shape)}")
            own.copy_(given)

    def _step(self) -> tuple[Tensor, object]:
        with evaluating(self.model):
            hidden, inner = self.model.step(self._ids, self._inner, channels=self._channels)
            return self.head(hidden), inner

    def _capture(self, device: torch.device) -> None:
        self._leaves, spec = tree_flatten(self._inner)
        self._inner = tree_unflatten(self._leaves, spec)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(side):
            for _ in range(_WARM_UP):  # kernels compile and libraries take their workspace outside the graph
                self._step()
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self._graph):
            self._output, after = self._step()
            for own, new in zip(self._leaves, tree_flatten(after)[0], strict=True):
                own.copy_(new)


@dataclass(frozen=True)
class Generated:
    """New tokens behind a prompt.

    Attributes:
        ids: (B, n) int64.
        state: State behind the last but one of them; the last one has not been read.
    """

    ids: Tensor
    state: StreamState


def generate(
    model: Backbone,
    head: nn.Module,
    prompt_BL: Tensor,
    n_tokens: int,
    *,
    temperature: float = 0.0,
    allowed: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Continue sequences token by token.

    Args:
        model: Causal backbone that reads tokens and nothing else.
        head: From hidden states (..., D) to logits (..., V).
        prompt_BL: Ids (B, L), L >= 1.
        n_tokens: New tokens n, >= 1.
        temperature: Logits are divided by it before sampling; 0 takes the likeliest token.
        allowed: Ids that may come; None for all V.
        generator: Source of randomness on the model's device; needed where ``temperature`` is above 0.

    Raises:
        ConfigError: ``n_tokens``, ``temperature`` or ``generator`` does not fit.
        ShapeError: The prompt is empty.
    """
    if n_tokens < 1 or temperature < 0:
        got = f"{n_tokens} and {temperature}"
        raise ConfigError("n_tokens", expected="at least 1 token, a temperature of 0 or more", got=got)
    if temperature > 0 and generator is None:
        raise ConfigError("generator", expected="a torch.Generator to sample with", got="None")
    if prompt_BL.ndim != 2 or prompt_BL.shape[1] == 0:
        raise ShapeError("prompt", expected="(B, L) ids with L >= 1", got=f"shape {tuple(prompt_BL.shape)}")
    for result in stream(model, [prompt_BL]):
        hidden, state = result.hidden[:, -1], result.state
    runner = StepRunner(model, prompt_BL.shape[0], head=head)
    runner.load(state)
    with evaluating(model):
        logits = head(hidden)
    forbidden = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    forbidden[list(range(len(forbidden)) if allowed is None else allowed)] = False
    new = [_choose(logits, forbidden, temperature, generator)]
    for _ in range(n_tokens - 1):
        new.append(_choose(runner(new[-1]), forbidden, temperature, generator))
    return Generated(torch.stack(new, dim=1), runner.state)


def _choose(logits_BV: Tensor, forbidden_V: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One id per row."""
    logits_BV = logits_BV.detach().float().masked_fill(forbidden_V, -torch.inf)
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    return torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1, generator=generator).squeeze(1)
