"""A chromosome through a causal backbone in constant memory; the unchunked pass beside it; steps of one token.

``seqkit bench stream --fasta chr20.fa.gz``, or ``python -m seqkit.bench.stream`` where torch and Triton are all there
is. Without a FASTA file random bases are read. One JSON line a measurement: ``pass``, ``equal``, ``step``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from seqkit.backbones import Backbone, BackboneConfig
from seqkit.errors import ConfigError
from seqkit.inference.generate import StepRunner
from seqkit.inference.stream import stream
from seqkit.inference.stream_state import StreamState
from seqkit.kernels.bench.measure import milliseconds
from seqkit.kernels.bench.report import environment, write_lines

RANDOM_BASES = 63_025_520
"""Length of human chromosome 20, GRCh37."""
STEP_POSITIONS = (1_000, 10_000_000)
_REPLAYS, _ROUNDS = 100, 11
_FIRST_BASE = 7  # id of A


def causal_model(layout: str, d_model: int, *, length: int, device: str, dtype: torch.dtype, seed: int) -> Backbone:
    """A causal DNA backbone with random weights and time steps for this length."""
    torch.manual_seed(seed)
    dt_min = max(min(1e-3, 1 / length), 1e-6)
    config = BackboneConfig(d_model=d_model, layout=layout, headdim=min(64, d_model), dt_min=dt_min)
    return Backbone(config).to(device=device, dtype=dtype).eval()


def read_bases(fasta: str | None, bases: int | None, piece: int, seed: int) -> Iterator[np.ndarray]:
    """Token ids (l,) of the longest run that was asked for: a FASTA's records joined, or random bases."""
    if fasta is None:
        chance, left = np.random.default_rng(seed), RANDOM_BASES if bases is None else bases
        while left:
            yield chance.integers(_FIRST_BASE, _FIRST_BASE + 4, min(piece, left), dtype=np.uint8)
            left -= min(piece, left)
        return
    from seqkit.data.sequential import read_sequences
    from seqkit.tokenizers.dna import DNATokenizer

    left = sys.maxsize if bases is None else bases
    for part in read_sequences(fasta, piece):
        yield DNATokenizer().encode(part.bases[:left])
        left -= min(len(part.bases), left)
        if not left:
            return


def memory_mib(field: str = "VmRSS") -> float:
    """Resident size of this process, or ``VmHWM``, its largest so far; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def measure_pass(model: Backbone, given: argparse.Namespace) -> dict:
    """Stream everything; the mean hidden state of each piece goes to the host, as an embedding would."""
    cuda = given.device == "cuda"
    first = np.full(given.piece, _FIRST_BASE, dtype=np.uint8)
    before = memory_mib()  # CUDA has started, the model is there; what compiling takes counts
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for result in stream(model, [first], piece=given.piece):
        result.hidden.float().mean(1).cpu()
    largest, count, means, begun = memory_mib(), 0, [], time.perf_counter()
    for result in stream(model, read_bases(given.fasta, given.bases, given.piece, given.seed), piece=given.piece):
        means.append(result.hidden.float().mean(1).cpu())
        count = result.state.position
        largest = max(largest, memory_mib())
    spent = time.perf_counter() - begun
    row = {
        "what": "pass", "bases": count, "seconds": round(spent, 2), "bases_per_s": round(count / spent),
        "state_bytes": result.state.nbytes, "finite": bool(torch.stack(means).isfinite().all()),
        "host_growth_mib": round(largest - before), "host_peak_mib": round(memory_mib("VmHWM")),
    }  # fmt: skip
    return row | ({"gpu_peak_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2)} if cuda else {})


def measure_equality(model: Backbone, given: argparse.Namespace) -> dict:
    """RMS of the difference between the streamed and the unchunked pass over that of the unchunked one."""
    ids = torch.from_numpy(np.concatenate(list(read_bases(given.fasta, given.equal, given.piece, given.seed))))
    ids = ids[None].to(given.device)
    with torch.no_grad():
        whole, _ = model(ids)
    error, scale = 0.0, whole.double().square().sum().item()
    for result in stream(model, [ids], piece=given.piece):
        own = whole[:, result.start : result.start + result.hidden.shape[1]]
        error += (result.hidden.double() - own.double()).square().sum().item()
    return {"what": "equal", "bases": ids.shape[1], "error_ratio": math.sqrt(error / scale)}


def measure_steps(model: Backbone, given: argparse.Namespace) -> list[dict]:
    """Latency of one-token steps behind 10^3 and 10^7 positions, in turns; bytes of state and of a cache."""
    runner = StepRunner(model, 1)
    states, state = {}, None
    for position in sorted(given.positions):
        missing = position - (0 if state is None else state.position)
        for result in stream(model, read_bases(None, missing, given.piece, position), state=state, piece=given.piece):
            state = result.state
        states[position] = state
    token = torch.full((1,), _FIRST_BASE, dtype=torch.int64, device=given.device)
    times = {position: [] for position in states}
    for _ in range(_ROUNDS):
        for position, before in states.items():
            times[position].append(_step_us(runner, before, token, given.device))
    return [_step_row(model, runner, position, states[position], spent[1:]) for position, spent in times.items()]


def _step_us(runner: StepRunner, state: StreamState, token: torch.Tensor, device: str) -> float:
    """Microseconds of a step, over many that follow each other."""
    runner.load(state)

    def steps() -> None:
        for _ in range(_REPLAYS):
            runner(token)

    return milliseconds(steps, device) * 1e3 / _REPLAYS


def _step_row(model: Backbone, runner: StepRunner, position: int, state: StreamState, spent: list[float]) -> dict:
    blocks, width = len(model.config.blocks), model.config.d_model
    return {
        "what": "step", "position": position, "cuda_graph": runner.graphed,
        "us": round(statistics.median(spent), 1), "us_least": round(min(spent), 1), "us_most": round(max(spent), 1),
        "state_bytes": state.nbytes,
        "cache_bytes": cache_bytes(blocks, width, position, next(model.parameters()).element_size()),
    }  # fmt: skip


def cache_bytes(blocks: int, d_model: int, position: int, element: int) -> int:
    """Keys and values of a transformer with as many weights: one attention layer for two Mamba blocks."""
    return 2 * math.ceil(blocks / 2) * d_model * position * element


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="seqkit bench stream", description=__doc__.splitlines()[0])
    options.add_argument("--fasta", help="plain, gzip or bgzip; default: random bases")
    options.add_argument("--bases", type=int, help="most bases; default: the whole file, or as many as chr20 has")
    options.add_argument("--layout", default="mamba2*8")
    options.add_argument("--d-model", type=int, default=256)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    options.add_argument("--piece", type=int, default=65_536, help="bases in one call of the model")
    options.add_argument("--equal", type=int, default=1_048_576, help="bases of the comparison; 0 for none")
    options.add_argument("--positions", type=int, nargs="*", default=STEP_POSITIONS, help="of the steps; none for none")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="append JSON lines to this file; default: print them")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure what the command line asks for; exit code 1 where streamed and unchunked pass differ."""
    argv = sys.argv[1:] if argv is None else argv
    given = parser().parse_args(argv)
    if given.piece < 1:
        raise ConfigError("--piece", expected="at least 1", got=str(given.piece))
    torch.set_num_threads(given.threads)
    dtype = given.dtype or ("bfloat16" if given.device == "cuda" else "float32")
    wanted = {"device": given.device, "dtype": getattr(torch, dtype), "seed": given.seed}
    model = causal_model(given.layout, given.d_model, length=RANDOM_BASES, **wanted)
    carried = {"layout": given.layout, "d_model": given.d_model, "dtype": dtype, "piece": given.piece}
    carried |= {"input": Path(given.fasta).name if given.fasta else "random bases"}
    carried |= environment(given.device, given.seed, " ".join(["seqkit bench stream", *argv]))
    rows = []
    for measure in (measure_pass, measure_equality, measure_steps):
        if (measure is measure_equality and not given.equal) or (measure is measure_steps and not given.positions):
            continue
        found = measure(model, given)
        for row in found if isinstance(found, list) else [found]:
            print(", ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr, flush=True)
            write_lines([row | carried], given.out)
            rows.append(row)
    limit = {"float32": 1e-5, "bfloat16": 1e-2}[dtype] * math.sqrt(len(model.config.blocks))
    return int(any(row.get("error_ratio", 0.0) > limit for row in rows))


if __name__ == "__main__":
    sys.exit(main())
