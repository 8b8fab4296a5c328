"""The Triton provider of the selective scan."""

from seqkit.kernels.selective.backward import (
    ADJOINT_BLOCK,
    GRADIENT_BLOCK,
    adjoint_kernel,
    backward,
    gradient_kernel,
)
from seqkit.kernels.selective.forward import (
    CHAIN_BLOCK,
    CHAIN_STEPS,
    OUTPUT_BLOCK,
    SUMMARY_BLOCK,
    boundary_shape,
    chain_kernel,
    forward,
    output_kernel,
    starts,
    summary_kernel,
)
from seqkit.kernels.selective.tiles import CHUNKS
from seqkit.kernels.triton_launch import CompileCase

__all__ = ["backward", "boundary_shape", "compile_cases", "forward", "starts"]
NARROW = ("u", "delta", "B", "C", "z", "y", "dy", "du", "ddelta", "dz")  # operands in the dtype of the activations


def compile_cases() -> dict[str, CompileCase]:
    """Every kernel with 16 states, all operands, packed segments and bfloat16."""
    types = {f"{name}_ptr": "*bf16" for name in NARROW} | {"segment_ptr": "*i64", "table_ptr": "*i64"}
    shape = {"N": 16, "NP": 16, "CHUNK": CHUNKS[0][1], "SOFTPLUS": True, "PACKED": True, "REVERSE": False}
    shape |= {"MASKED": True, "WIDE": True}
    blocks = {
        summary_kernel: {"BLOCK": SUMMARY_BLOCK},
        output_kernel: {"BLOCK": OUTPUT_BLOCK},
        adjoint_kernel: {"BLOCK": ADJOINT_BLOCK},
        gradient_kernel: {"BLOCK": GRADIENT_BLOCK, "SUMS": "shuffle", "ROWS": 16, "WARPS": 1},
    }
    cases = {k.__name__: CompileCase(k, {**shape, **own}, num_warps=1, types=types) for k, own in blocks.items()}
    for sums in ("bf16", "tf32x2"):
        constants = {**shape, **blocks[gradient_kernel], "SUMS": sums}
        cases[f"gradient_kernel-{sums}"] = CompileCase(
            gradient_kernel, constants, num_warps=1, types=types, least=(8, 0)
        )
    chain = {"N": 16, "BLOCK": CHAIN_BLOCK, "CHUNK": CHUNKS[0][1], "STEPS": CHAIN_STEPS, "PACKED": True, "FLIP": True}
    return cases | {"chain_kernel": CompileCase(chain_kernel, chain, num_warps=1, types=types)}
