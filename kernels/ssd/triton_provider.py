"""The Triton provider of the SSD scan."""

import triton.language as tl

from seqkit.kernels.ssd.backward import backward, step_gradient_kernel, token_kernel, weight_kernel
from seqkit.kernels.ssd.forward import CHAIN_BLOCK, CHAIN_STEPS, chain_kernel, forward, output_kernel, sweep_kernel
from seqkit.kernels.ssd.rotation import ADJACENT, HALVES, STILL
from seqkit.kernels.ssd.tiles import CHUNK, SPANS, boundary_shape, step_kernel
from seqkit.kernels.triton_launch import CompileCase

__all__ = ["backward", "boundary_shape", "compile_cases", "forward"]
NARROW = (
    "x",
    "y",
    "z",
    "B",
    "C",
    "dy",
    "dx",
    "dz",
    "raw",
    "draw",
    "states",
    "adjoints",
    "inner",
    "dscores",
)  # in the activations' dtype


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with 64 states and head channels, all operands, packed segments and 16-bit numbers.

    Those that Mamba-3 launches too, also with half of the states rotating.
    """
    types = {f"{name}_ptr": "*bf16" for name in NARROW} | {"segment_ptr": "*i64", "table_ptr": "*i64"}
    types |= {"dt_min": "fp32", "dt_max": "fp32", "phase_ptr": "*i16", "turn_ptr": "*i32"}
    where = {"SPAN": SPANS[0], "Q": CHUNK, "PARTS": 1, "PACKED": True, "REVERSE": True}
    turning = {**where, "P": 64, "PP": 64, "N": 64, "NP": 64, "DOT": tl.float16}
    turning |= dict.fromkeys(("sxl", "szl", "sgl", "sdl", "syl", "sBl", "sCl", "sil"), 1024)
    walk = {**turning, "M": 0, "PAIRING": STILL.value, "PARTIAL": False}
    walk |= dict.fromkeys(("bias_ptr", "B_bias_ptr", "C_bias_ptr", "phase_ptr", "turn_ptr", "direct_ptr"))
    walk |= dict.fromkeys(("ddirect_ptr", "dscores_ptr", "inner_ptr"))
    turning |= {"M": 16, "PAIRING": ADJACENT.value, "PARTIAL": True}

    def case(kernel, warps, constants, **more):
        named = {parameter.name for parameter in kernel.params}
        known = {name: value for name, value in constants.items() if name in named}
        narrow = {"out_ptr": "*bf16"} if more.get("KEEP") else {}
        return CompileCase(kernel, {**known, **more}, warps, types | narrow)

    chain = {"E": 4096, "BLOCK": CHAIN_BLOCK, "SPAN": SPANS[0], "STEPS": CHAIN_STEPS, "PACKED": True, "FLIP": True}
    return {
        "step_kernel": case(step_kernel, 1, where, SOFTPLUS=True),
        "summary": case(sweep_kernel, 4, walk, starts_ptr=None, ADJOINT=True, KEEP=False),
        "sweep_kernel": case(sweep_kernel, 4, walk, ADJOINT=False, KEEP=True),
        "chain_kernel": case(chain_kernel, 2, chain),
        "output_kernel": case(output_kernel, 4, walk, PER_HEAD=False),
        "token_kernel": case(token_kernel, 4, walk, PER_HEAD=True),
        "weight_kernel": case(weight_kernel, 4, walk),
        "rotated summary": case(sweep_kernel, 4, turning, starts_ptr=None, ADJOINT=True, KEEP=False),
        "rotated output": case(output_kernel, 4, turning, PER_HEAD=True),
        "output with halves": case(output_kernel, 4, turning | {"PAIRING": HALVES.value}, PER_HEAD=True),
        "rotated token": case(token_kernel, 4, turning, PER_HEAD=True, z_ptr=None),
        "step_gradient_kernel": case(step_gradient_kernel, 1, where, SOFTPLUS=True),
    }
