"""What a pretrained model is measured by: bits of each held-out base, or of each hidden one.

Legend: L bases of a held-out stretch, laid end to end over all stretches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from seqkit.backbones.loss import IGNORED
from seqkit.data.encoded import EncodedGenome
from seqkit.data.held_out import Span
from seqkit.inference.likelihood import carried_nats, windowed_nats
from seqkit.inference.score import progress_bar
from seqkit.inference.stream import evaluating
from seqkit.tasks.markov import scored
from seqkit.tasks.pretrain import PretrainTask

_LN2 = float(np.log(2))
_HALF = {"bf16-mixed": torch.bfloat16}


@contextlib.contextmanager
def as_trained(task: PretrainTask, precision: str) -> Iterator[None]:
    """The numeric precision of training, and none of its randomness."""
    dtype = _HALF.get(precision)
    with torch.autocast(task.device.type, dtype=dtype, enabled=dtype is not None), evaluating(task):
        yield


def sample_spans(spans: Sequence[Span], length: int, bases: int) -> list[Span]:
    """Stretches of ``length`` bases spread evenly over ``spans``, about ``bases`` in all and at least one.

    Args:
        spans: Held-out stretches; one shorter than ``length`` is taken whole.
        length: Bases of a piece.
        bases: Bases wanted.
    """
    pieces = [
        Span(low, min(low + length, end))
        for start, end in spans
        for low in range(start, max(start + 1, end - length + 1), length)
    ]
    wanted = min(len(pieces), max(1, bases // length))
    return [pieces[i * len(pieces) // wanted] for i in range(wanted)]


def each_span(
    genome: EncodedGenome, spans: Sequence[Span], measure: Callable[[NDArray], NDArray], title: str | None
) -> NDArray[np.float32]:
    """Values of ``measure`` for the ids of each stretch, joined to (L,); progress for people."""
    parts = []
    with progress_bar(title, sum(end - start for start, end in spans)) as advance:
        for start, end in spans:
            parts.append(measure(genome.ids(start, end)))
            advance(end - start)
    return np.concatenate(parts)


def window_bits(task: PretrainTask, length: int, overlap: int) -> Callable[[NDArray], NDArray]:
    """Bits of each base of a stretch, read in windows of ``length`` of which the first ``overlap`` bases do not count.

    A base is NaN where no comparison would count it (:func:`seqkit.tasks.markov.scored`).
    """

    def measure(ids_L: NDArray) -> NDArray:
        nats_L = windowed_nats(task.net.backbone, task.net.head, ids_L, length=length, overlap=overlap)
        return np.where(scored(ids_L), nats_L / _LN2, np.nan)

    return measure


def carried_bits(task: PretrainTask) -> Callable[[NDArray], NDArray]:
    """As :func:`window_bits`, with the state carried over the whole stretch."""

    def measure(ids_L: NDArray) -> NDArray:
        return np.where(scored(ids_L), carried_nats(task.net.backbone, task.net.head, ids_L) / _LN2, np.nan)

    return measure


def hidden_bits(task: PretrainTask, length: int) -> Callable[[NDArray], NDArray]:
    """Bits of each base hidden from a masked model, NaN for the others; the same bases are hidden every time."""

    def measure(ids_L: NDArray) -> NDArray:
        bits = [_hidden_bits(task, ids_L[low : low + length]) for low in range(0, len(ids_L), length)]
        return np.concatenate(bits)

    return measure


def _hidden_bits(task: PretrainTask, ids_L: NDArray) -> NDArray:
    # Drawn on the CPU, so that every device is asked for the same bases.
    question = task.ask(torch.from_numpy(ids_L)[None], None, seed=len(ids_L))
    logits = task.net(question.input_BL.to(task.device))[0].float().cpu()
    target_L = question.target_BL[0]
    nats_L = torch.nn.functional.cross_entropy(logits, target_L, ignore_index=IGNORED, reduction="none")
    return torch.where(target_L == IGNORED, torch.nan, nats_L / _LN2).numpy()


def mean_bits(bits_L: NDArray[np.float32]) -> float:
    """Mean over what is scored; NaN where nothing is."""
    kept = bits_L[~np.isnan(bits_L)]
    return float(kept.mean(dtype=np.float64)) if len(kept) else float("nan")
