"""A time-invariant diagonal recurrence with complex modes, chunk by chunk in matrix products.

Per channel and mode h_t = a h_{t-1} + b u_t, and y_t = 2 Re(sum c h_t) + d u_t. Inside a chunk this is a product with a
Toeplitz matrix; between chunks only the modes go on, by doubling: after round k a chunk has seen 2^k before it.

Legend: B batch, L length, E channels, M complex modes per channel, S sequences, G chunks, Q tokens of a chunk.

Reference: Gu et al. 2022, On the Parameterization and Initialization of Diagonal State Space Models (S4D), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 64
TIMED_BLOCK = 128  # tokens whose states exist at a time where steps differ


@dataclass(frozen=True)
class Modes:
    """The discrete system, in double precision: powers of ``exp(rate)`` reach over a million tokens.

    Attributes:
        rate_EM: Complex log of a, real part < 0.
        input_EM: Complex b.
        output_EM: Complex c.
        skip_E: Real d.
    """

    rate_EM: Tensor
    input_EM: Tensor
    output_EM: Tensor
    skip_E: Tensor

    def powers(self, exponents: Tensor) -> Tensor:
        """Powers of a: (E, M, len)."""
        return torch.exp(self.rate_EM.unsqueeze(-1) * exponents.to(self.skip_E.dtype))

    def kernel(self, powers_EMQ: Tensor) -> Tensor:
        """Answers (E, Q) to a unit pulse, the skip weight included."""
        answer = 2 * torch.einsum("em,em,emq->eq", self.output_EM, self.input_EM, powers_EMQ).real
        return torch.cat([answer[:, :1] + self.skip_E[:, None], answer[:, 1:]], dim=1)


@dataclass(frozen=True)
class _Chunks:
    """Where the tokens of flat sequences lie in chunks that belong to one sequence each.

    Attributes:
        token_GQ: Flat index of each slot's token.
        valid_GQ: False at slots behind a sequence's end.
        slot_T: Slot of each flat token.
        sequence_G: Sequence of each chunk; chunks beyond the last repeat it.
        first_G: True at a sequence's first chunk.
        last_S: Last chunk of each sequence.
        tail_S: Tokens of the last chunk, 0 for an empty sequence.
        tail_SQ: Flat index of the last chunk's tokens, moved to the chunk's end.
        tail_valid_SQ: False in front of them.
    """

    token_GQ: Tensor
    valid_GQ: Tensor
    slot_T: Tensor
    sequence_G: Tensor
    first_G: Tensor
    last_S: Tensor
    tail_S: Tensor
    tail_SQ: Tensor
    tail_valid_SQ: Tensor


def _cut(starts_S: Tensor, lengths_S: Tensor, tokens: int, count: int, size: int, reverse: bool) -> _Chunks:
    """Cut sequences into chunks without asking the device how long they are.

    Args:
        starts_S: Flat index of each sequence's first token, ascending.
        lengths_S: Tokens of each.
        tokens: Tokens of all.
        count: Number of chunks G, at least what the lengths need.
        size: Tokens of a chunk Q.
        reverse: Whether a sequence begins at its end.
    """
    device = starts_S.device
    ends_S = ((lengths_S + size - 1) // size).cumsum(0)
    begins_S = ends_S - (lengths_S + size - 1) // size
    chunks, inside = torch.arange(count, device=device), torch.arange(size, device=device)
    sequence_G = torch.searchsorted(ends_S, chunks, right=True).clamp(max=len(starts_S) - 1)

    def flat(sequence: Tensor, offset: Tensor) -> Tensor:
        length = lengths_S[sequence]
        place = length - 1 - offset if reverse else offset
        return (starts_S[sequence] + place).clamp(0, max(tokens - 1, 0))

    offset_GQ = ((chunks - begins_S[sequence_G]) * size)[:, None] + inside
    lengths_G1 = lengths_S[sequence_G][:, None]
    tail_S = torch.where(lengths_S > 0, (lengths_S - 1) % size + 1, 0)
    sequences_S1 = torch.arange(len(starts_S), device=device)[:, None]
    all_T = torch.arange(tokens, device=device)
    sequence_T = torch.searchsorted(starts_S + lengths_S, all_T, right=True).clamp(max=len(starts_S) - 1)
    place_T = all_T - starts_S[sequence_T]
    if reverse:
        place_T = lengths_S[sequence_T] - 1 - place_T
    return _Chunks(
        token_GQ=flat(sequence_G[:, None], offset_GQ),
        valid_GQ=(offset_GQ < lengths_G1) & (offset_GQ >= 0),
        slot_T=begins_S[sequence_T] * size + place_T,
        sequence_G=sequence_G,
        first_G=chunks == begins_S[sequence_G],
        last_S=(ends_S - 1).clamp(min=0),
        tail_S=tail_S,
        tail_SQ=flat(sequences_S1, lengths_S[:, None] - size + inside),
        tail_valid_SQ=inside >= size - tail_S[:, None],
    )


def _take(x_TE: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    return x_TE[index] * valid.unsqueeze(-1)


def _toeplitz(kernel_EQ: Tensor) -> Tensor:
    """Lower triangular (E, Q, Q) with kernel[i - j]."""
    size = kernel_EQ.shape[1]
    padded = torch.nn.functional.pad(kernel_EQ, (size - 1, 0))
    return padded.unfold(1, size, 1).flip(-1)


class _Between(torch.autograd.Function):
    """States at the ends of chunks from what each chunk adds: h_G = a^Q h_{G-1} + local_G within a sequence."""

    @staticmethod
    def forward(ctx, local_EMG: Tensor, rate_EM: Tensor, sequence_G: Tensor, size: int, longest: int):
        h_EMG = local_EMG.clone()
        for shift, decay, same in _rounds(rate_EM, sequence_G, size, longest, local_EMG.dtype):
            h_EMG[..., shift:] += decay * h_EMG[..., :-shift] * same
        ctx.save_for_backward(h_EMG, rate_EM, sequence_G)
        ctx.sizes = size, longest
        return h_EMG

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_EMG: Tensor):
        (h_EMG, rate_EM, sequence_G), (size, longest) = ctx.saved_tensors, ctx.sizes
        grad_EMG = grad_EMG.clone()
        for shift, decay, same in _rounds(rate_EM, sequence_G, size, longest, h_EMG.dtype):
            grad_EMG[..., :-shift] += decay.conj() * grad_EMG[..., shift:] * same
        same = sequence_G[1:] == sequence_G[:-1]
        decay_grad = (h_EMG[..., :-1].conj() * grad_EMG[..., 1:] * same).sum(-1).to(rate_EM.dtype)
        return grad_EMG, (size * torch.exp(size * rate_EM)).conj() * decay_grad, None, None, None


def _rounds(rate_EM: Tensor, sequence_G: Tensor, size: int, longest: int, dtype: torch.dtype):
    """Distance in chunks, decay over it, and whether both chunks belong to one sequence, for each round of doubling."""
    shift = 1
    while shift < longest:
        decay_EM1 = torch.exp(rate_EM * (size * shift)).to(dtype).unsqueeze(-1)
        yield shift, decay_EM1, sequence_G[shift:] == sequence_G[:-shift]
        shift *= 2


def _to_modes(pairs: Tensor) -> Tensor:
    """States (S, E, M, 2) as complex (E, M, S)."""
    return torch.view_as_complex(pairs.contiguous()).permute(1, 2, 0)


def diagonal_scan(
    u_BLE: Tensor,
    modes: Modes,
    initial_state: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over a batch or over packed segments.

    Args:
        u_BLE: Input (B, L, E); computed in float32, or float64 if it is.
        modes: The system.
        initial_state: (S, E, M, 2) real and imaginary parts behind the token before the first; None for zeros.
        cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
        reverse: Scan every sequence from its end.
        chunk_size: Tokens of a chunk. Results agree up to rounding.

    Returns:
        y (B, L, E) in the input's dtype, and the final state (S, E, M, 2), float32 or float64.
    """
    batch, length, channels = u_BLE.shape
    real = torch.promote_types(u_BLE.dtype, torch.float32)
    size = max(1, min(chunk_size, length))
    chunks, longest = _layout(batch, length, size, cu_seqlens, reverse, u_BLE.device)
    with torch.autocast(u_BLE.device.type, enabled=False):
        u_TE = u_BLE.reshape(-1, channels).to(real)
        if initial_state is None:
            initial_state = u_TE.new_zeros(len(chunks.last_S), *modes.rate_EM.shape, 2)
        if length == 0:
            return torch.zeros_like(u_BLE), initial_state.clone()
        y_TE, final = _run(u_TE, modes, _to_modes(initial_state.to(real)), chunks, size, longest)
    return y_TE.reshape(u_BLE.shape).to(u_BLE.dtype), final


def _layout(
    batch: int, length: int, size: int, cu_seqlens: Tensor | None, reverse: bool, device: torch.device
) -> tuple[_Chunks, int]:
    """Chunks, and a bound on how many one sequence has."""
    each = -(-length // size)
    if cu_seqlens is None:
        lengths_S = torch.full((batch,), length, device=device)
        starts_S = torch.arange(batch, device=device) * length
        return _cut(starts_S, lengths_S, batch * length, batch * each, size, reverse), each
    bounds = cu_seqlens.long()
    lengths_S = bounds.diff()
    return _cut(bounds[:-1], lengths_S, length, each + len(lengths_S), size, reverse), each


def _run(
    u_TE: Tensor, modes: Modes, enter_EMS: Tensor, chunks: _Chunks, size: int, longest: int
) -> tuple[Tensor, Tensor]:
    """The recurrence on flat tokens; states are complex (E, M, S) here."""
    real, complex_ = u_TE.dtype, enter_EMS.dtype
    number = modes.rate_EM.shape[1]
    powers = modes.powers(torch.arange(size + 1, device=u_TE.device))
    kernel_EQ = modes.kernel(powers[..., :size])
    gather = torch.view_as_real(modes.input_EM.unsqueeze(-1) * powers[..., :size].flip(-1))  # (E, M, Q, 2)
    gather = gather.permute(0, 3, 1, 2).flatten(1, 2).to(real)
    spread = torch.view_as_real(2 * (modes.output_EM.unsqueeze(-1) * powers[..., 1:]).conj())
    spread = spread.permute(0, 2, 3, 1).flatten(2).to(real)

    def added(u_EQX: Tensor) -> Tensor:
        return torch.complex(*(gather @ u_EQX).unflatten(1, (2, number)).unbind(1))

    u_EQG = _take(u_TE, chunks.token_GQ, chunks.valid_GQ).permute(2, 1, 0).contiguous()
    first = enter_EMS[..., chunks.sequence_G] * chunks.first_G
    a_chunk = powers[..., size:].to(complex_)
    h_EMG = _Between.apply(added(u_EQG) + a_chunk * first, modes.rate_EM, chunks.sequence_G, size, longest)
    before = torch.cat([torch.zeros_like(h_EMG[..., :1]), h_EMG[..., :-1]], dim=-1) * ~chunks.first_G + first
    y_EQG = torch.baddbmm(spread @ torch.cat([before.real, before.imag], dim=1), _toeplitz(kernel_EQ).to(real), u_EQG)
    y_TE = y_EQG.permute(2, 1, 0).reshape(-1, u_TE.shape[1])[chunks.slot_T]

    tail = added(_take(u_TE, chunks.tail_SQ, chunks.tail_valid_SQ).permute(2, 1, 0))
    entered = torch.where(chunks.tail_S > 0, before[..., chunks.last_S], enter_EMS)
    final = modes.powers(chunks.tail_S).to(complex_) * entered + tail
    return y_TE, torch.view_as_real(final.permute(2, 0, 1).contiguous())


def timed_scan(
    u_BLE: Tensor,
    modes: Modes,
    initial_state: Tensor | None,
    step_size_BL: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence over steps of different lengths: every decay is its own, so nothing is a convolution.

    Computed in double precision, block by block; a block is computed again in the backward pass. Slower than
    :func:`diagonal_scan` by far.

    Args:
        u_BLE: Input (B, L, E).
        modes: The system for a step of length 1.
        initial_state: (S, E, M, 2), or None for zeros.
        step_size_BL: Length of each step, >= 0; 0 leaves the state as it is.
        cu_seqlens: (S + 1,) int32 bounds of packed segments (B = 1).
        reverse: Scan every sequence from its end.

    Returns:
        As :func:`diagonal_scan`.
    """
    if initial_state is None:
        count = u_BLE.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        real = torch.promote_types(u_BLE.dtype, torch.float32)
        initial_state = u_BLE.new_zeros(count, *modes.rate_EM.shape, 2, dtype=real)
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().tolist()
        parts = [
            timed_scan(u, modes, state, step, reverse=reverse)
            for u, state, step in zip(
                u_BLE.split(lengths, 1), initial_state.split(1), step_size_BL.split(lengths, 1), strict=True
            )
        ]
        return torch.cat([y for y, _ in parts], dim=1), torch.cat([state for _, state in parts])
    if u_BLE.shape[1] == 0:
        return torch.zeros_like(u_BLE), initial_state.clone()
    if reverse:
        u_BLE, step_size_BL = u_BLE.flip(1), step_size_BL.flip(1)
    h_BEM = torch.view_as_complex(initial_state.double().contiguous())
    outputs = []
    for u_BQE, step_BQ in zip(u_BLE.split(TIMED_BLOCK, 1), step_size_BL.split(TIMED_BLOCK, 1), strict=True):
        inputs = (u_BQE.double(), step_BQ.double(), h_BEM, modes.rate_EM, modes.input_EM, modes.output_EM)
        y_BQE, h_BEM = checkpoint(_timed_block, *inputs, use_reentrant=False)
        outputs.append((y_BQE + modes.skip_E * u_BQE).to(u_BLE.dtype))
    y_BLE = torch.cat(outputs, dim=1)
    return y_BLE.flip(1) if reverse else y_BLE, torch.view_as_real(h_BEM).to(initial_state.dtype)


def _timed_block(
    u_BQE: Tensor, step_BQ: Tensor, h_BEM: Tensor, rate_EM: Tensor, input_EM: Tensor, output_EM: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of a block without the skip, and the state behind it; by doubling over its tokens."""
    decay = torch.exp(rate_EM * step_BQ[..., None, None])
    h = (decay - 1) / (torch.exp(rate_EM) - 1) * input_EM * u_BQE.unsqueeze(-1)
    h = torch.cat([h[:, :1] + decay[:, :1] * h_BEM.unsqueeze(1), h[:, 1:]], dim=1)
    shift = 1
    while shift < h.shape[1]:
        h = torch.cat([h[:, :shift], h[:, shift:] + decay[:, shift:] * h[:, :-shift]], dim=1)
        decay = torch.cat([decay[:, :shift], decay[:, shift:] * decay[:, :-shift]], dim=1)
        shift *= 2
    return 2 * (output_EM * h).real.sum(-1), h[:, -1]


def diagonal_step(u_SE: Tensor, modes: Modes, state: Tensor) -> tuple[Tensor, Tensor]:
    """Advance one token: input (S, E) and state (S, E, M, 2) to y (S, E) and the next state.

    The modes turn in double precision, so that a phase does not drift with the number of steps.
    """
    h = torch.view_as_complex(state.to(modes.skip_E.dtype).contiguous())
    h = modes.powers(torch.ones(1, device=u_SE.device)).squeeze(-1) * h + modes.input_EM * u_SE.unsqueeze(-1)
    y = 2 * (modes.output_EM * h).real.sum(-1) + modes.skip_E * u_SE
    return y.to(u_SE.dtype), torch.view_as_real(h).to(state.dtype)
