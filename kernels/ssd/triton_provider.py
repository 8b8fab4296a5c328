"""The Triton provider of the SSD scan."""

import triton.language as tl

from seqkit.kernels.ssd.backward import backward, step_gradient_kernel, token_kernel, weight_kernel
from seqkit.kernels.ssd.forward import CHAIN_BLOCK, CHAIN_STEPS, chain_kernel, forward, output_kernel, sweep_kernel
from seqkit.kernels.ssd.tiles import CHUNK, SPANS, boundary_shape, step_kernel
from seqkit.kernels.triton_launch import CompileCase

__all__ = ["backward", "boundary_shape", "compile_cases", "forward"]
NARROW = ("x", "y", "z", "B", "C", "dy", "dx", "dz", "raw", "draw", "states", "adjoints")  # in the activations' dtype


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with 64 states and head channels, all operands, packed segments and 16-bit numbers."""
    types = {f"{name}_ptr": "*bf16" for name in NARROW} | {"segment_ptr": "*i64", "table_ptr": "*i64"}
    types |= {"dt_min": "fp32", "dt_max": "fp32"}
    where = {"SPAN": SPANS[0], "Q": CHUNK, "PARTS": 1, "PACKED": True, "REVERSE": True}
    walk = {**where, "P": 64, "PP": 64, "N": 64, "NP": 64, "DOT": tl.float16}
    chain = {"E": 4096, "BLOCK": CHAIN_BLOCK, "SPAN": SPANS[0], "STEPS": CHAIN_STEPS, "PACKED": True, "FLIP": True}
    states = {**types, "out_ptr": "*bf16"}
    return {
        "step_kernel": CompileCase(step_kernel, {**where, "SOFTPLUS": True}, 1, types),
        "summary": CompileCase(sweep_kernel, {**walk, "starts_ptr": None, "ADJOINT": True, "KEEP": False}, 4, types),
        "sweep_kernel": CompileCase(sweep_kernel, {**walk, "ADJOINT": False, "KEEP": True}, 4, states),
        "chain_kernel": CompileCase(chain_kernel, chain, 2, types),
        "output_kernel": CompileCase(output_kernel, {**walk, "PER_HEAD": False}, 4, types),
        "token_kernel": CompileCase(token_kernel, {**walk, "PER_HEAD": True}, 4, types),
        "weight_kernel": CompileCase(weight_kernel, walk, 4, types),
        "step_gradient_kernel": CompileCase(
            step_gradient_kernel, {**where, "SOFTPLUS": True, "SUM": tl.float32}, 1, types
        ),
    }
