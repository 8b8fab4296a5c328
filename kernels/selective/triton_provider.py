"""The Triton provider of the selective scan."""

from seqkit.kernels.selective.backward import GRADIENT_STEPS, adjoint_kernel, backward, gradient_kernel
from seqkit.kernels.selective.forward import (
    CHAIN_BLOCK,
    OUTPUT_STEPS,
    boundary_shape,
    chain_kernel,
    forward,
    output_kernel,
    summary_kernel,
)
from seqkit.kernels.selective.tiles import BLOCK, CHUNK, SUMMARY_STEPS
from seqkit.kernels.triton_launch import CompileCase

__all__ = ["backward", "boundary_shape", "compile_cases", "forward"]
NARROW = ("u", "delta", "B", "C", "z", "y", "dy", "du", "ddelta", "dz")  # operands in the dtype of the activations


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with 16 states, all operands, packed segments and bfloat16."""
    types = {f"{name}_ptr": "*bf16" for name in NARROW} | {"segment_ptr": "*i64", "table_ptr": "*i64"}
    shape = {"N": 16, "NP": 16, "BLOCK": BLOCK, "CHUNK": CHUNK, "SOFTPLUS": True, "PACKED": True, "REVERSE": False}
    steps = {
        summary_kernel: SUMMARY_STEPS,
        output_kernel: OUTPUT_STEPS,
        adjoint_kernel: SUMMARY_STEPS,
        gradient_kernel: GRADIENT_STEPS,
    }
    cases = {
        kernel.__name__: CompileCase(kernel, {**shape, "STEPS": count}, num_warps=1, types=types)
        for kernel, count in steps.items()
    }
    chain = {"N": 16, "BLOCK": CHAIN_BLOCK, "CHUNK": CHUNK, "STEPS": 16, "PACKED": True, "FLIP": True}
    return cases | {"chain_kernel": CompileCase(chain_kernel, chain, num_warps=2, types=types)}
