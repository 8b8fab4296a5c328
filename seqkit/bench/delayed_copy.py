"""Is length used? A few values stand at the start of a stream and are asked for up to a million tokens later.

``seqkit bench delayed-copy``: one small model with its state carried from the start, the same model with windows of the
last tokens. The best error is known: 0 where the values can have been read, that of guessing where they cannot, since
nothing between tells about them.

A stream: SLOTS marks (a slot and its value), then random tokens; behind each lag SLOTS cues (a slot each, in random
order), at which the slot's value is wanted. Training takes exact gradients through whole streams; the longest lag grows
by half a decade from stage to stage, and a stage ends as soon as nothing is wrong. Windows get as many steps.

Legend: B batch, L length, S slots, K lags.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqkit.backbones import Backbone, BackboneConfig, parameter_groups
from seqkit.inference.stream import evaluating, stream
from seqkit.kernels.bench.report import environment, write_lines

VALUES, SLOTS = 4, 4
OTHERS = 4  # ids 0 to 3: tokens that tell nothing
_FIRST_MARK = OTHERS
_FIRST_CUE = OTHERS + SLOTS * VALUES
VOCABULARY = _FIRST_CUE + SLOTS
GUESSING = 1 - 1 / VALUES
LAGS = (100, 1_000, 10_000, 100_000, 1_000_000)
STEPS, RATES = (300, 100), (1e-2, 3e-3)  # of the first stage and of every later one
WARM_UP = 10  # steps; after a change of the lag the moments of the gradients are those of another task
ENOUGH = 256  # answers in a row that are right, behind the longest lag
LEAST_BATCH, MOST_BATCH = 2, 64
CLIP = 1.0
PIECE = 8_192  # positions of all test streams at a time


@dataclass(frozen=True)
class Episodes:
    """What is marked and asked in a batch of streams.

    Attributes:
        values: (B, S) value of each slot.
        order: (B, K, S) slots in the order of the cues behind each lag.
        lags: K distances from the marks to the cues, ascending, more than S apart.
    """

    values: Tensor
    order: Tensor
    lags: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens up to the last cue."""
        return self.lags[-1] + SLOTS

    @property
    def wanted(self) -> Tensor:
        """(B, K, S) values at the cues."""
        return self.values[:, None].expand(self.order.shape).gather(2, self.order)

    def tokens(self, begin: int, end: int, generator: torch.Generator) -> Tensor:
        """Ids (B, end - begin) of a part of the streams; what tells nothing is drawn anew."""
        device = self.values.device
        shape = len(self.values), end - begin
        ids = torch.randint(OTHERS, shape, generator=generator, device=device, dtype=torch.uint8)
        marks = _FIRST_MARK + torch.arange(SLOTS, device=device) * VALUES + self.values
        cues = [(lag, _FIRST_CUE + self.order[:, k]) for k, lag in enumerate(self.lags)]
        for at, block in [(0, marks), *cues]:
            low, high = max(at, begin), min(at + SLOTS, end)
            if low < high:
                ids[:, low - begin : high - begin] = block[:, low - at : high - at].to(ids.dtype)
        return ids


def draw(batch: int, lags: Sequence[int], generator: torch.Generator) -> Episodes:
    """Random values and orders of cues."""
    device = generator.device
    values = torch.randint(VALUES, (batch, SLOTS), generator=generator, device=device)
    keys = torch.rand(batch, len(lags), SLOTS, generator=generator, device=device)
    return Episodes(values, keys.argsort(-1), tuple(lags))


class Copier(nn.Module):
    """A causal backbone and a layer that names a value.

    Args:
        layout: Mixers.
        longest: Longest lag; the initial time steps reach from its inverse to 0.1.
    """

    def __init__(self, layout: str, longest: int):
        super().__init__()
        sizes = {"d_model": 32, "headdim": 16, "attention_headdim": 16, "d_state": 16, "vocab_size": VOCABULARY}
        self.backbone = Backbone(BackboneConfig(layout=layout, dt_min=min(1e-3, 1 / longest), dt_max=0.1, **sizes))
        self.values = nn.Linear(32, VALUES)

    def forward(self, ids_BL: Tensor, positions: Tensor) -> Tensor:
        """Scores (B, positions, VALUES)."""
        return self.values(self.backbone(ids_BL)[0][:, positions])


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        lags: Ascending; a stream has cues behind each of them.
        batch: Streams in a step.
        steps: Most optimiser steps; fewer where nothing is wrong any more.
        rate: Learning rate.
    """

    lags: tuple[int, ...]
    batch: int
    steps: int
    rate: float


def stages(lags: Sequence[int], tokens: int) -> list[Stage]:
    """One stage for each lag and for those in between, half a decade apart; about ``tokens`` tokens a step."""
    rungs = list(lags[:1])
    for lag in lags[1:]:
        between = round(2 * math.log10(lag / rungs[-1]))
        rungs += [round(rungs[-1] * (lag / rungs[-1]) ** (k / between)) for k in range(1, between)] + [lag]
    return [
        Stage(
            tuple(rungs[: k + 1]), min(max(tokens // lag, LEAST_BATCH), MOST_BATCH), STEPS[min(k, 1)], RATES[min(k, 1)]
        )
        for k, lag in enumerate(rungs)
    ]


def train(
    model: Copier,
    curriculum: Sequence[Stage],
    window: int | None,
    generator: torch.Generator,
    steps: Sequence[int] | None = None,
) -> list[int]:
    """Fit a model to whole streams with cues behind all the lags, or to windows that end behind one of them.

    Args:
        model: What learns.
        curriculum: Stages; one optimiser goes through all of them.
        window: Tokens that are read; None for whole streams.
        generator: Of streams.
        steps: Of each stage; None ends a stage as soon as the answers at its longest lag are right.

    Returns:
        Steps that each stage took.
    """
    optimizer, taken = torch.optim.AdamW(parameter_groups(model, 0.0), betas=(0.9, 0.95)), []
    for number, stage in enumerate(curriculum):
        right = 0
        for step in range(stage.steps if steps is None else steps[number]):
            lags = stage.lags if window is None else (stage.lags[step % len(stage.lags)],)
            scores, wanted = read_part(model, draw(stage.batch, lags, generator), window, generator)
            _descend(model, optimizer, scores, wanted, stage.rate * min(1.0, (step + 1) / WARM_UP))
            if steps is None:
                wrong = (scores[:, -SLOTS:].argmax(-1) != wanted[:, -SLOTS:]).any().item()
                right = 0 if wrong else right + stage.batch * SLOTS
                if step + 1 >= WARM_UP and right >= ENOUGH:
                    break
        taken.append(step + 1)
    return taken


def _descend(model: Copier, optimizer: torch.optim.Optimizer, scores: Tensor, wanted: Tensor, rate: float) -> None:
    """One step of the optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = F.cross_entropy(scores.flatten(0, 1).float(), wanted.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


def read_part(
    model: Copier, episodes: Episodes, window: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Scores (B, cues, VALUES) and wanted values (B, cues) of whole streams, or of windows that end behind them."""
    begin = 0 if window is None else max(0, episodes.length - window)
    ids = episodes.tokens(begin, episodes.length, generator)
    cues = [torch.arange(lag - begin, lag - begin + SLOTS, device=ids.device) for lag in episodes.lags]
    return model(ids, torch.cat(cues)), episodes.wanted.flatten(1)


def carried_errors(model: Copier, lags: Sequence[int], streams: int, generator: torch.Generator) -> list[float]:
    """Share of wrong values behind each lag, read in one go through :func:`seqkit.inference.stream.stream`."""
    episodes = draw(streams, lags, generator)

    def chunks() -> Iterator[Tensor]:
        for begin in range(0, episodes.length, PIECE):
            yield episodes.tokens(begin, min(begin + PIECE, episodes.length), generator)

    wrong, cues = [0] * len(lags), [(k, s, lag + s) for k, lag in enumerate(lags) for s in range(SLOTS)]
    for result in stream(model.backbone, chunks(), piece=PIECE):
        for k, s, position in cues:
            at = position - result.start
            if 0 <= at < result.hidden.shape[1]:
                named = model.values(result.hidden[:, at]).argmax(-1)
                wrong[k] += int((named != episodes.wanted[:, k, s]).sum())
    return [count / (streams * SLOTS) for count in wrong]


def window_errors(
    model: Copier, lags: Sequence[int], streams: int, window: int, generator: torch.Generator
) -> list[float]:
    """Share of wrong values where only the window's tokens are read."""
    errors = []
    for lag in lags:
        with evaluating(model):
            scores, wanted = read_part(model, draw(streams, (lag,), generator), window, generator)
        errors.append((scores.argmax(-1) != wanted).float().mean().item())
    return errors


def best_error(lag: int, window: int | None) -> float:
    """The least error that any model can have."""
    return 0.0 if window is None or lag + SLOTS <= window else GUESSING


def measure(given: argparse.Namespace, window: int | None, seed: int, steps: Sequence[int] | None) -> list[dict]:
    """Train and test one model; one row a lag.

    Args:
        given: The command's options.
        window: Tokens that are read; None for a carried state.
        seed: Of weights and streams.
        steps: Training steps of each stage; None takes as many as it needs.
    """
    with torch.autocast(given.device, torch.bfloat16, enabled=given.dtype == "bfloat16"):
        return _measure(given, window, seed, steps)


def _measure(given: argparse.Namespace, window: int | None, seed: int, steps: Sequence[int] | None) -> list[dict]:
    torch.manual_seed(seed)
    generator = torch.Generator(given.device).manual_seed(seed)
    model, begun = Copier(given.layout, given.lags[-1]).to(given.device), time.perf_counter()
    taken = train(model, stages(given.lags, given.tokens), window, generator, steps)
    trained = time.perf_counter() - begun
    if window is None:
        errors = carried_errors(model, given.lags, given.streams, generator)
    else:
        errors = window_errors(model, given.lags, given.streams, window, generator)
    carried = {"what": "delayed-copy", "reads": f"window {window}" if window else "carried state", "seed": seed}
    carried |= {"layout": given.layout, "dtype": given.dtype, "answers": given.streams * SLOTS, "steps": taken}
    carried |= {"train_s": round(trained, 1)}
    carried |= {"test_s": round(time.perf_counter() - begun - trained, 1)}
    return [
        carried | {"lag": lag, "error": round(error, 4), "best": best_error(lag, window)}
        for lag, error in zip(given.lags, errors, strict=True)
    ]


def table(rows: Sequence[dict]) -> str:
    """Mean error by lag, with the least and the most of the seeds, beside the best one."""
    lines = ["| reads | " + " | ".join(f"lag {lag:,}" for lag in sorted({r["lag"] for r in rows})) + " |"]
    lines.append("| --- |" + " ---: |" * (lines[0].count("|") - 2))
    for reads in dict.fromkeys(row["reads"] for row in rows):
        cells = []
        for lag in sorted({row["lag"] for row in rows}):
            own = [row for row in rows if (row["reads"], row["lag"]) == (reads, lag)]
            errors = [row["error"] for row in own]
            spread = f" ({min(errors):.2f} to {max(errors):.2f})" if max(errors) - min(errors) > 0.005 else ""
            cells.append(f"{statistics.mean(errors):.2f}{spread}, best {own[0]['best']:.2f}")
        lines.append(f"| {reads} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict], stem: Path) -> None:
    """Error against lag: the mean of the seeds, their range, and the best error dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for number, reads in enumerate(dict.fromkeys(row["reads"] for row in rows)):
        lags = sorted({row["lag"] for row in rows})
        own = [[row for row in rows if (row["reads"], row["lag"]) == (reads, lag)] for lag in lags]
        errors, color = [[row["error"] for row in part] for part in own], f"C{number}"
        panel.plot(lags, [statistics.mean(e) for e in errors], marker="o", color=color, label=reads)
        panel.fill_between(lags, list(map(min, errors)), list(map(max, errors)), color=color, alpha=0.2)
        panel.plot(lags, [part[0]["best"] for part in own], linestyle="--", linewidth=1, color=color)
    panel.set(xscale="log", ylim=(-0.03, 1), xlabel="lag, tokens", ylabel="share of wrong values (dashed: best)")
    panel.legend()
    first = rows[0]
    figure.suptitle(f"{first['device']}, torch {first['torch']}, {first['date']}", fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix))
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    cuda = torch.cuda.is_available()
    options = argparse.ArgumentParser(prog="seqkit bench delayed-copy", description=__doc__.splitlines()[0])
    options.add_argument("--lags", type=int, nargs="+", default=LAGS, help="ascending, more than a few tokens apart")
    options.add_argument("--reads", nargs="+", default=("carried", "512", "4096"), help="carried, or a window's tokens")
    options.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    options.add_argument("--layout", default="mamba2*2")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    options.add_argument("--tokens", type=int, default=1 << 20 if cuda else 1 << 13, help="in a training step, about")
    options.add_argument("--streams", type=int, default=64, help="of the test; each asks four values behind every lag")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--out", type=Path, help="append JSON lines to this file, plot beside it; default: print them")
    return options


def main(argv: list[str] | None = None) -> int:
    """Train, test, write rows, table and plot."""
    argv = sys.argv[1:] if argv is None else argv
    given = parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    command, rows = " ".join(["seqkit bench delayed-copy", *argv]), []
    for seed in given.seeds:
        steps = None  # of a carried state that was trained before; without one a window takes the most
        for reads in given.reads:
            found = measure(given, None if reads == "carried" else int(reads), seed, steps)
            steps = steps or (found[0]["steps"] if reads == "carried" else None)
            found = [row | environment(given.device, seed, command) for row in found]
            errors = ", ".join(f"{row['lag']:,}: {row['error']:.3f}" for row in found)
            print(f"seed {seed}, {found[0]['reads']}, {found[0]['train_s']} s: {errors}", file=sys.stderr, flush=True)
            write_lines(found, given.out)
            rows += found
    print(table(rows))
    if given.out:
        plot(rows, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
