"""Every Triton kernel compiles for cards that are not here, and its shared memory fits them."""

import importlib
import os

import pytest

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # of one block, bytes
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NARROW = {"u", "delta", "B", "C", "z", "x", "y", "dy", "du", "ddelta", "dx", "dz"}  # held in bfloat16
SCAN = {"N": 16, "NP": 16, "BLOCK": 32, "CHUNK": 256, "STEPS": 2, "SOFTPLUS": True, "PACKED": True, "REVERSE": False}
CONV = {"W": 4, "SILU": True, "CHUNK": 64, "BLOCK": 64, "PACKED": True, "REVERSE": True}
NORM = {"ROWS": 4, "BLOCK": 1024, "GATE_LAST": False}
KERNELS = {
    "selective.forward.summary_kernel": ({**SCAN, "STEPS": 4}, 1),
    "selective.forward.chain_kernel": (
        {"N": 16, "BLOCK": 64, "CHUNK": 256, "STEPS": 16, "PACKED": True, "FLIP": True},
        2,
    ),
    "selective.forward.output_kernel": ({**SCAN, "STEPS": 1}, 1),
    "selective.backward.adjoint_kernel": ({**SCAN, "STEPS": 4}, 1),
    "selective.backward.gradient_kernel": (SCAN, 1),
    "conv.triton_provider.forward_kernel": (CONV, 4),
    "conv.triton_provider.activation_kernel": (CONV, 4),
    "conv.triton_provider.input_kernel": (CONV, 4),
    "conv.triton_provider.state_kernel": ({**CONV, "SLOTS": 4, "GRADIENT": True}, 4),
    "norm.triton_provider.norm_kernel": (NORM, 4),
    "norm.triton_provider.gradient_kernel": (NORM, 4),
}


def type_of(name: str) -> str:
    if name in ("segment_ptr", "table_ptr"):
        return "*i64"
    if name.endswith("_ptr"):
        return "*bf16" if name.removesuffix("_ptr") in NARROW else "*fp32"
    return "fp32" if name == "eps" else "i32"


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_and_fits(kernel, capability):
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    constants, warps = KERNELS[kernel]
    module, name = kernel.rsplit(".", 1)
    function = getattr(importlib.import_module("seqkit.kernels." + module), name)
    names = [parameter.name for parameter in function.params]
    constants = {key: value for key, value in constants.items() if key in names}
    signature = {n: "constexpr" if n in constants else type_of(n) for n in names}
    source = triton.compiler.ASTSource(function, signature=signature, constexprs=constants)
    target = compiler.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    assert compiled.metadata.shared <= SHARED_MEMORY[capability]
    assert f".target sm_{capability}" in compiled.asm["ptx"]
