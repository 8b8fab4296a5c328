"""Time of the first call of each op in a fresh process, with an empty and with a filled Triton cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

import torch

from seqkit.kernels import dispatch
from seqkit.kernels.bench.measure import Runner
from seqkit.kernels.bench.operations import OPERATIONS, Draw
from seqkit.kernels.bench.providers import SCANS
from seqkit.kernels.bench.suites import Case

LENGTH = 4096


def in_this_process(op: str, seed: int) -> dict[str, float]:
    """Seconds of the first forward and of the first backward pass, after imports and the start of CUDA."""
    case = Case(op, {**OPERATIONS[op].gpu, "L": LENGTH})
    dispatch.implementation(SCANS.get(op, op), "triton")  # imports Triton
    operands = OPERATIONS[op].operands(case.sizes, Draw(torch.bfloat16, torch.device("cuda"), seed))
    runner = Runner(case, "triton", operands)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    outputs = runner.outputs()
    torch.cuda.synchronize()
    middle = time.perf_counter()
    torch.autograd.grad(outputs, list(runner.leaves.values()), [torch.ones_like(y) for y in outputs])
    torch.cuda.synchronize()
    return {"forward_s": round(middle - begin, 3), "backward_s": round(time.perf_counter() - middle, 3)}


def rows(ops: list[str], seed: int) -> list[dict]:
    """One row per op and state of the cache; two processes each."""
    found = []
    for op in ops:
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                command = [sys.executable, "-m", "seqkit.kernels.bench", "--first-call-of", op, "--seed", str(seed)]
                done = subprocess.run(
                    command, env=os.environ | {"TRITON_CACHE_DIR": cache}, capture_output=True, text=True, check=False
                )
                row = {"op": op, "provider": "triton", "first_call": f"{state} cache"}
                if done.returncode:
                    found.append(row | {"failed": done.stderr.strip().splitlines()[-1][:300]})
                else:
                    found.append(row | json.loads(done.stdout.splitlines()[-1]))
    return found
