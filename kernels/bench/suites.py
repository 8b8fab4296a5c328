"""Which sizes are timed by default, on a CPU and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from seqkit.kernels.bench.operations import OPERATIONS, Sizes

BFLOAT16, FLOAT32 = "bfloat16", "float32"


@dataclass(frozen=True)
class Case:
    """One op at one set of sizes, in one dtype."""

    op: str
    sizes: Sizes
    dtype: str = BFLOAT16

    def with_length(self, length: int) -> Case:
        """The same for another L."""
        return Case(self.op, {**self.sizes, "L": length}, self.dtype)


def _at(op: str, dtype: str = BFLOAT16, **sizes: int) -> Case:
    return Case(op, {**OPERATIONS[op].gpu, **sizes}, dtype)


TARGETS = (
    _at("selective_scan", D=512, L=131_072),
    _at("selective_scan", D=512, L=1_048_576),
    _at("selective_scan", FLOAT32, D=512, L=131_072),
    _at("selective_scan", D=256, L=4_194_304),
    _at("selective_scan", D=2048, L=131_072),
    _at("selective_scan", B=8, D=2048, L=8192),
    _at("selective_scan", B=32, D=512, L=1024),
    _at("selective_scan", D=512, L=4096),
    _at("mamba1_inner"),
    _at("mamba1_inner", slab=131_072),
    _at("mamba2_inner"),
    _at("mamba2_inner", M=512),
    _at("mamba2_inner", M=512, slab=131_072),
    _at("causal_conv"),
    _at("ssd_scan"),
    _at("ssd_scan", L=1_048_576),
    _at("ssd_scan", N=128, L=1_048_576),
    _at("ssd_scan", H=8, L=4_194_304),
    _at("ssd_scan", B=8, H=64, N=128, L=8192),
    _at("ssd_scan", B=32, H=8, L=1024),
    _at("rms_norm"),
    _at("gated_rms_norm"),
)
LENGTHS = tuple(_at("selective_scan", L=length) for length in (4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304))
SUITES = {"targets": TARGETS, "lengths": LENGTHS, "all": (*TARGETS, _at("attention"))}


def cases(device: str, ops: list[str] | None, suite: str | None, lengths: list[int] | None, dtype: str | None):
    """What the command line asks for: a suite, or the default sizes of ops at their own or the given lengths."""
    if suite or (device == "cuda" and not lengths):
        chosen = [case for case in SUITES[suite or "all"] if not ops or case.op in ops]
        return [Case(case.op, case.sizes, dtype or case.dtype) for case in chosen]
    chosen = []
    for name in ops or OPERATIONS:
        op = OPERATIONS[name]
        base = Case(name, op.gpu if device == "cuda" else op.cpu, dtype or (BFLOAT16 if device == "cuda" else FLOAT32))
        chosen += [base.with_length(length) for length in lengths or op.lengths]
    return chosen
