"""From measurements to a figure and a verdict, claim by claim.

A measurement is a row of :mod:`seqkit.bench.scaling`, :mod:`seqkit.bench.stream`, :mod:`seqkit.bench.delayed_copy` or
of the kernels' benchmark. A verdict is ``holds``, ``holds from length X``, ``holds in part``, ``does not hold here``.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

from seqkit.bench.scaling import exponent

Rows = Sequence[dict]
Decided = tuple[str, str]
HOLDS, PARTLY, FAILS, UNDECIDED = "holds", "holds in part", "does not hold here", "not measured yet"
OURS, OTHERS = "mamba2", "attention"
MODES = ("forward", "training")
REACH = 32_768  # shorter measurements decide nothing about length


def timed(rows: Rows, model: str, mode: str, d_state: int | None = None) -> dict[int, dict]:
    """Scaling rows of a model by length, those that ran."""
    wanted = ("scaling", model, mode, d_state)
    own = [r for r in rows if (r["what"], r.get("model"), r.get("mode"), r.get("d_state")) == wanted and "ms" in r]
    return {row["L"]: row for row in own}


def slopes(rows: dict[int, dict]) -> dict[int, float]:
    """Exponent of time between each length and the one before it."""
    lengths = sorted(rows)
    return {high: exponent([rows[low], rows[high]], low) for low, high in itertools.pairwise(lengths)}


def crossing(ratios: dict[int, float], level: float) -> int | None:
    """Length from which a ratio stays at or above a level, interpolated between measured lengths; None for never."""
    lengths = sorted(ratios)
    first = next((i for i in range(len(lengths)) if all(ratios[x] >= level for x in lengths[i:])), None)
    if first in (None, 0):
        return None if first is None else lengths[0]
    low, high = lengths[first - 1], lengths[first]
    share = math.log(level / ratios[low]) / math.log(ratios[high] / ratios[low])
    return round(low * (high / low) ** share)


def linear_time(rows: Rows) -> Decided:
    """Claim 1: twice the length costs twice as much, attention four times."""
    found = {(model, mode): timed(rows, model, mode) for model in (OURS, OTHERS) for mode in MODES}
    lengths = sorted(found[OURS, "forward"])
    least = lengths[1 if len(lengths) > 2 else 0]  # at the shortest length a call's fixed costs count
    fits = {key: exponent(list(part.values()), least) for key, part in found.items()}
    told = []
    for model in (OURS, OTHERS):
        parts = [f"L^{fits[model, mode]:.2f} {mode} (to {max(found[model, mode]):,})" for mode in MODES]
        told.append(f"{model}: time as {', '.join(parts)}")
    figure = "; ".join(told)
    if max(found[OURS, "training"]) < REACH:
        return figure, UNDECIDED
    if not all(0.85 <= fits[OURS, mode] <= 1.1 for mode in MODES):
        return figure, FAILS
    steep = [length for length, slope in slopes(found[OTHERS, "training"]).items() if slope >= 1.8]
    return figure, f"{HOLDS}; attention's part from length {min(steep):,}" if steep else f"{PARTLY}: attention is below"


def throughput(rows: Rows) -> Decided:
    """Claim 2: 4 to 8 times a transformer's tokens a second at 32k, 15 to 30 times at 128k."""
    told, fourfold, reached = [], {}, 0
    for mode in MODES:
        ours, theirs = timed(rows, OURS, mode), timed(rows, OTHERS, mode)
        shared = sorted(ours & theirs.keys())
        ratios = {length: ours[length]["tokens_per_s"] / theirs[length]["tokens_per_s"] for length in shared}
        ahead, fourfold[mode], reached = crossing(ratios, 1.0), crossing(ratios, 4.0), max(shared)
        times = ", ".join(f"{ratio:.2g} times at {length:,}" for length, ratio in ratios.items())
        told.append(f"{mode}: {times}; " + (f"ahead from {ahead:,}" if ahead else "never ahead"))
    figure = "; ".join(told)
    if reached < REACH:
        return figure, UNDECIDED
    if fourfold["training"] is None:
        return figure, FAILS
    late = fourfold["training"] > 32_768
    return figure, f"holds from length {fourfold['training']:,} (4 times, training)" if late else HOLDS


def memory(rows: Rows) -> Decided:
    """Claim 3: 3 to 4 times less memory at 128k."""
    told, ratios = [], []
    for mode in MODES:
        ours, theirs = timed(rows, OURS, mode), timed(rows, OTHERS, mode)
        for length in sorted(ours & theirs.keys()):
            if length >= 32_768 and "peak_gib" in ours[length]:
                own, other = ours[length]["peak_gib"], theirs[length]["peak_gib"]
                told.append(f"{mode} at {length:,}: {own:.2f} and {other:.2f} GiB")
                ratios.append(other / own)
    if not ratios:
        return "", UNDECIDED
    figure = f"{OURS} and {OTHERS}, " + "; ".join(told)
    return figure, HOLDS if min(ratios) >= 3 else PARTLY if max(ratios) >= 3 else FAILS


def fixed_state(rows: Rows) -> Decided:
    """Claim 4: a step costs the same whatever lies behind it."""
    steps = sorted((row for row in rows if row["what"] == "step"), key=lambda row: row["position"])
    cached = sorted((row for row in rows if row["what"] == "cached step"), key=lambda row: row["position"])
    told = [
        f"{row['us']:.0f} us and {row['state_bytes'] / 2**20:,.2f} MiB behind {row['position']:,} tokens"
        for row in (*steps, *cached)
    ]
    figure = f"a step: {', '.join(told[: len(steps)])}; attention: {', '.join(told[len(steps) :])}"
    first, last = steps[0], steps[-1]
    if last["position"] < REACH:
        return figure, UNDECIDED
    same = first["state_bytes"] == last["state_bytes"] and abs(last["us"] / first["us"] - 1) <= 0.05
    return figure, HOLDS if same else FAILS


def second_generation(rows: Rows) -> Decided:
    """Claim 5: Mamba-2 trains up to 8 times faster than Mamba-1, with larger states."""
    ours, before = timed(rows, "mamba2", "training"), timed(rows, "mamba1", "training")
    shared = sorted(ours & before.keys())
    ratios = {length: ours[length]["tokens_per_s"] / before[length]["tokens_per_s"] for length in shared}
    times = ", ".join(f"{ratio:.2f} times at {length:,}" for length, ratio in ratios.items())
    states = sorted({r["d_state"] for r in rows if r["what"] == "scaling" and r["d_state"] and r["model"] == "mamba2"})
    costs = {size: next(iter(timed(rows, "mamba2", "training", size).values()), None) for size in states}
    told = ", ".join(f"{size}: {row['us_per_token']:.3g} us a token" for size, row in costs.items() if row)
    figure = f"training, 64 states against 16: {times}; Mamba-2 by states {told}"
    if max(shared) < REACH:
        return figure, UNDECIDED
    best = max(ratios.values())
    return figure, HOLDS if best >= 7 else f"{PARTLY}: {best:.1f} times at most" if best > 1.1 else FAILS


def long_range(rows: Rows) -> Decided:
    """Claim 11: better than attention on long-range dependencies from 32k on."""
    copies = [row for row in rows if row["what"] == "delayed-copy"]
    kinds = {"carried": lambda r: r["reads"] == "carried state" and "attention" not in r["layout"],
             "attention": lambda r: "attention" in r["layout"] and r["best"] == 0}  # fmt: skip
    errors: dict[str, dict[int, float]] = {
        kind: {
            lag: statistics.mean(r["error"] for r in copies if belongs(r) and r["lag"] == lag)
            for lag in sorted({r["lag"] for r in copies if belongs(r)})
        }
        for kind, belongs in kinds.items()
    }
    told = [
        f"{kind} " + ", ".join(f"{error:.2f} at {lag:,}" for lag, error in part.items())
        for kind, part in errors.items()
        if part
    ]
    figure = "delayed copy, share of wrong values: " + "; ".join(told) if told else ""
    both = [lag for lag in errors["carried"] if lag >= 32_000 and lag in errors["attention"]]
    if not both:
        return figure, UNDECIDED
    better = [lag for lag in both if errors["carried"][lag] < errors["attention"][lag] - 0.05]
    return figure, HOLDS if better == both else PARTLY if better else FAILS


def longest_context(rows: Rows) -> Decided:
    """Claim 12: attention handles about ten thousand bases, Mamba millions."""
    told, longest = [], {}
    for model in (OURS, OTHERS):
        ran = timed(rows, model, "training")
        longest[model] = max(ran)
        own = [r for r in rows if r["what"] == "scaling" and (r["model"], r["mode"]) == (model, "training")]
        stopped = [f"at {r['L']:,} {r.get('failed') or r['skipped']}" for r in own if "failed" in r or "skipped" in r]
        seconds = ran[longest[model]]["ms"] / 1e3
        told.append(", ".join([f"{model} trains on {longest[model]:,} bases, {seconds:.1f} s a step", *stopped]))
    figure = "; ".join(told)
    if longest[OTHERS] < REACH and not any("failed" in row for row in rows):
        return figure, UNDECIDED
    if longest[OURS] < 1 << 20:
        return figure, FAILS
    return figure, HOLDS if longest[OTHERS] < REACH else f"{PARTLY}: attention reaches further than said"


def fast_memory(rows: Rows) -> Decided:
    """Claim 15: the state stays in fast memory, only results are written."""
    own = [row for row in rows if row["what"] == "kernel"]
    told = [
        f"{row['op']}: {row['forward_ms']:.2f} ms, {100 * row['forward_of_ceiling']:.0f} % of what "
        f"{row['forward_ceiling']} allows; operands and results {row['operand_gb']:.2f} GB; the states of all tokens "
        f"{row['states_gb']:.1f} GB, {row['states_ms']:.1f} ms of copying"
        for row in own
    ]
    if any(row["provider"] != "triton" for row in own):
        return "; ".join(told), UNDECIDED
    return "; ".join(told), HOLDS if all(row["forward_ms"] < row["states_ms"] for row in own) else FAILS


_LENGTHS = [{"what": "scaling", "model": model, "mode": mode} for model in (OURS, OTHERS) for mode in MODES]
_TRAINING = {"what": "scaling", "mode": "training"}
DECISIONS: dict[int, tuple[Callable[[Rows], Decided], Sequence[dict]]] = {
    1: (linear_time, _LENGTHS),
    2: (throughput, _LENGTHS),
    3: (memory, _LENGTHS),
    4: (fixed_state, [{"what": "step"}, {"what": "cached step"}]),
    5: (second_generation, [_TRAINING | {"model": "mamba2"}, _TRAINING | {"model": "mamba1"}]),
    11: (long_range, [{"what": "delayed-copy"}]),
    12: (longest_context, [_TRAINING | {"model": OURS}, _TRAINING | {"model": OTHERS}]),
    15: (fast_memory, [{"what": "kernel"}]),
}


def decide(number: int, rows: Rows) -> Decided:
    """Figure and verdict of a claim; an empty figure where a run was cut before it had what the claim needs."""
    function, needs = DECISIONS[number]
    for need in needs:
        found = [row for row in rows if need.items() <= row.items() and ("ms" in row or need["what"] != "scaling")]
        if len(found) < (2 if need["what"] == "scaling" else 1):
            return "", UNDECIDED
    return function(rows)
