"""Every Triton kernel compiles for cards that are not here, and its shared memory fits them.

Each Triton provider names its kernels and the constants it launches them with in ``compile_cases()``; a kernel that it
leaves out fails a test here.
"""

import importlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from seqkit.errors import ConfigError
from seqkit.kernels import devices, dispatch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MODULES = (
    [
        *sorted(set(dispatch.PROVIDERS["triton"].values())),
        "seqkit.kernels.triton_sums",
        "seqkit.kernels.bench.triton_exponentials",
    ]
    if dispatch.triton_installed() and not INTERPRETED
    else []
)
CARDS = list(devices.ROWS)
CASES = [
    pytest.param(module, name, card, id=f"{module.removeprefix('seqkit.kernels.')}-{name}-sm_{card[0]}{card[1]}")
    for module in MODULES
    for name, case in importlib.import_module(module).compile_cases().items()
    for card in CARDS
    if card >= case.least
]
COMPILED = pytest.mark.skipif(not CASES, reason="needs Triton, and not its interpreter, which compiles nothing")


def type_of(name, types, bfloat16):
    found = types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
    return found if bfloat16 else found.replace("bf16", "fp16")


def compile_for(case, card):
    import triton
    from triton.backends.compiler import GPUTarget

    names = [parameter.name for parameter in case.kernel.params]
    assert case.constants.keys() <= set(names)
    bfloat16 = devices.has_bfloat16(card)
    signature = {n: "constexpr" if n in case.constants else type_of(n, case.types, bfloat16) for n in names}
    source = triton.compiler.ASTSource(case.kernel, signature=signature, constexprs=case.constants)
    target = GPUTarget("cuda", card[0] * 10 + card[1], 32)
    return triton.compile(source, target=target, options={"num_warps": case.num_warps})


@COMPILED
@pytest.mark.parametrize(("module", "name", "card"), CASES)
def test_compiles_and_fits(module, name, card):
    compiled = compile_for(importlib.import_module(module).compile_cases()[name], card)
    assert compiled.metadata.shared <= devices.ROWS[card].shared_memory
    assert f".target sm_{card[0]}{card[1]}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


def uniform_registers_of_nothing(cubin):
    """Instructions that read a uniform register which none above them writes."""
    import triton

    tool = [triton.knobs.nvidia.nvdisasm.path, "-c", str(cubin)]
    text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    written, found = set(), []
    for line in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(.*?) ;", text):
        operation, _, rest = line.partition(" ")
        target, *operands = rest.split(", ")
        # of the four registers of a product, two are those of a left operand that may lie in registers instead
        read = {int(n) for operand in operands if "gdesc" not in operand for n in re.findall(r"UR(\d+)", operand)}
        if not read <= written:
            found.append(line)
        if into := re.fullmatch(r"UR(\d+)", target):
            width = 2 if ".64" in operation or "WIDE" in operation else 1
            written |= {int(into[1]) + i for i in range(width)}
    return found


@COMPILED
@pytest.mark.parametrize(("module", "name"), [case.values[:2] for case in CASES if case.values[2] == (9, 0)])
def test_products_read_where_their_operands_are(module, name, tmp_path):
    """Triton 3.6's ptxas (12.8) lost the addresses of narrow operands, whose products then read anywhere."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compile_for(importlib.import_module(module).compile_cases()[name], (9, 0)).asm["cubin"])
    assert uniform_registers_of_nothing(cubin) == []


@COMPILED
@pytest.mark.parametrize(("states", "warps"), [(8, 1), (16, 1), (64, 4), (256, 8)])
def test_sums_over_lanes_find_tiles_as_they_expect_them(states, warps):
    """Channel d in lane d, rows dealt out to the warps in turn: what kernels/triton_lanes.py builds on."""
    case = importlib.import_module("seqkit.kernels.selective.triton_provider").compile_cases()["gradient_kernel-bf16"]
    sizes = {"N": states, "NP": states, "ROWS": min(16, states), "WARPS": warps}
    code = compile_for(replace(case, constants=case.constants | sizes, num_warps=warps), (9, 0)).asm["ttgir"]
    layouts = re.findall(r"elementwise_inline_asm \"\{ \.reg .* : tensor<(\d+)x32x\w+, (#\w+)>", code)
    assert {int(rows) for rows, _ in layouts} == {states}
    (layout,) = {name for _, name in layouts}
    kept = r" = #ttg\.blocked<\{sizePerThread = \[1, 1\], threadsPerWarp = \[1, 32\], warpsPerCTA = \[%d, 1\]"
    assert re.search(layout + kept % warps, code)


@COMPILED
@pytest.mark.parametrize("module", MODULES)
def test_no_kernel_is_left_out(module):
    """Kernels, unlike the device functions they call, are never called by name inside another."""
    from triton.runtime import JITFunction

    provider = importlib.import_module(module)
    package = module.rpartition(".")[0]
    listed = {case.kernel.__name__ for case in provider.compile_cases().values()}
    assert all(
        min(c.least for c in provider.compile_cases().values() if c.kernel.__name__ == n) == CARDS[0] for n in listed
    )
    there = set()
    for part in {case.kernel.__module__ for case in provider.compile_cases().values()} | {module}:
        assert part.startswith(package)
        there |= {k for k, v in vars(importlib.import_module(part)).items() if isinstance(v, JITFunction)}
    assert listed == {name for name in there if name.endswith("_kernel")}


@pytest.mark.parametrize(
    ("version", "row"),
    [((7, 0), (7, 5)), ((8, 7), (8, 6)), ((9, 0), (9, 0)), ((10, 3), (9, 0)), ((12, 1), (12, 0)), ((13, 0), (12, 0))],
)
def test_unlisted_cards_take_the_row_below(version, row):
    assert devices.row_for(version) is devices.ROWS[row]


@pytest.mark.parametrize(("warps", "registers", "programs"), [(1, 255, 8), (4, 64, 8), (8, 32, 6), (32, 255, 1)])
def test_resident_programs_of_an_8_6(warps, registers, programs):
    assert devices.row_for((8, 6)).programs_per_multiprocessor(warps, registers) == programs


def operand(dtype):
    return SimpleNamespace(is_cuda=True, dtype=dtype, device=torch.device("cuda", 0))


@pytest.mark.parametrize(("version", "provider"), [((7, 5), "reference"), ((8, 0), "triton")])
@pytest.mark.parametrize("wide_first", [True, False])
def test_bfloat16_needs_a_card_that_has_it(monkeypatch, version, provider, wide_first):
    monkeypatch.setattr(devices, "capability", lambda index: version)
    monkeypatch.setattr(dispatch, "triton_installed", lambda: True)
    narrow, wide = operand(torch.bfloat16), operand(torch.float32)
    operands = (wide, None, narrow) if wide_first else (narrow, wide)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "auto")
    assert dispatch.provider_for("selective_scan", *operands) == provider
    assert dispatch.provider_for("selective_scan", wide, operand(torch.float16)) == "triton"
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "triton")
    if provider == "triton":
        assert dispatch.provider_for("selective_scan", *operands) == "triton"
    else:
        with pytest.raises(ConfigError, match=r"8\.0 or higher for bfloat16.*Use float16 or float32 operands"):
            dispatch.provider_for("selective_scan", *operands)


def test_importing_the_ops_starts_no_compiler():
    code = "import sys, seqkit.kernels; print([name for name in ('triton', 'torch._dynamo') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
