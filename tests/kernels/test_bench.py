"""The benchmark reports what is correct, and nothing else."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from seqkit import kernels
from seqkit.commands import bench as verb
from seqkit.errors import ConfigError
from seqkit.kernels import bench, oracle
from seqkit.kernels.bench import ceilings, command, exact, measure, report
from seqkit.kernels.bench.operations import OPERATIONS, Draw, Work, index_of
from seqkit.kernels.bench.providers import PROVIDERS, Implementation, available
from seqkit.kernels.bench.suites import TARGETS, Case, cases
from seqkit.kernels.testing import assert_close

TINY = {
    "selective_scan": {"B": 2, "D": 9, "N": 3, "L": 65},
    "ssd_scan": {"B": 2, "H": 3, "P": 5, "N": 4, "L": 33},
    "causal_conv": {"B": 2, "D": 9, "W": 4, "L": 30},
    "rms_norm": {"B": 2, "D": 7, "L": 300},
    "gated_rms_norm": {"B": 2, "D": 7, "L": 300},
    "mamba1_inner": {"B": 1, "M": 6, "N": 3, "W": 4, "R": 2, "slab": 0, "L": 300},
    "mamba2_inner": {"B": 1, "M": 24, "P": 4, "N": 3, "W": 4, "slab": 0, "L": 300},
    "attention": {"B": 2, "H": 2, "P": 8, "L": 300},
}
INNER = {"mamba1_inner": kernels.selective_inner, "mamba2_inner": kernels.ssd_inner}
CPU = torch.device("cpu")
BEST = ceilings.Ceilings(copy_gb_s=100.0, exp2_g_s=10.0, matmul_tflop_s=1.0)


def operands(op, dtype=torch.float32):
    return OPERATIONS[op].operands(TINY[op], Draw(dtype, CPU, 0))


def from_oracle(op, t):
    if op == "attention":
        return (torch.nn.functional.scaled_dot_product_attention(t["q"], t["k"], t["v"], is_causal=True),)
    if op in ("rms_norm", "gated_rms_norm"):
        return oracle.ORACLES[op](t, {})
    if op in INNER:
        return (INNER[op](**t)[0],)
    return oracle.ORACLES[op](t, {"delta_softplus": True, "dt_softplus": True, "activation": "silu"})[:1]


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_exact_values_are_the_oracle_s(op):
    """On the whole of outputs and gradients; then again on the sample, which must not lose anything."""
    wide = {name: x.double().requires_grad_() for name, x in operands(op).items()}
    want = from_oracle(op, wide)
    sample = OPERATIONS[op].sample(TINY[op], CPU)
    names = OPERATIONS[op].outputs
    weights = [torch.zeros_like(y) for y in want]
    for name, weight in zip(names, weights, strict=True):
        weight[index_of(sample, name, weight.dim())] = 1.5
    grads = torch.autograd.grad(want, list(wide.values()), weights)
    taken = {name: measure.taken(sample, name, x.detach()).requires_grad_() for name, x in wide.items()}
    got = OPERATIONS[op].exact(taken, sample)
    for name, a, b in zip(names, got, want, strict=True):
        assert_close(name, a, measure.taken(sample, name, b), 1e-10)
    got = torch.autograd.grad(got, list(taken.values()), [torch.full_like(y, 1.5) for y in got])
    for name, a, b in zip(wide, got, grads, strict=True):
        assert_close(f"d{name}", a, measure.taken(sample, name, b), 1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
def test_the_recurrence_and_its_gradient(length):
    decay, write = torch.rand(2, length, 3, dtype=torch.float64, requires_grad=True).unbind(0)
    h, want = torch.zeros(3, dtype=torch.float64), []
    for a, b in zip(decay, write, strict=True):
        h = a * h + b
        want.append(h)
    torch.testing.assert_close(exact.Recurrence.apply(decay, write), torch.stack(want))
    leaves = [x.detach().requires_grad_() for x in (decay, write)]
    assert torch.autograd.gradcheck(exact.Recurrence.apply, leaves)


@pytest.mark.parametrize(("op", "provider"), [(op, "sdpa" if op == "attention" else "reference") for op in OPERATIONS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_passes_its_own_gate(op, provider, dtype):
    case = Case(op, TINY[op], dtype)
    runner = measure.Runner(case, provider, operands(op, getattr(torch, dtype)))
    row = command.check(runner, seed=1)
    assert "failed" not in row
    assert set(row["errors"]) == {*OPERATIONS[op].outputs, *(f"d{name}" for name in runner.leaves)}
    assert dtype == "float32" or max(row["errors"].values()) > 1e-4  # it is bfloat16 that was measured


class Crooked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


def wrong_value(t, s):
    return (kernels.causal_conv(t["x"], t["weight"], bias=t["bias"], activation="silu") * 1.001,)


def wrong_gradient(t, s):
    return (kernels.causal_conv(t["x"], Crooked.apply(t["weight"]), bias=t["bias"], activation="silu"),)


def broken(t, s):
    raise RuntimeError("no kernel image\nlong story")


FAILURES = {
    wrong_value: r"y: RMS(error) / RMS(reference) is 0.001",
    wrong_gradient: r"dweight: RMS(error)",
    broken: "RuntimeError: no kernel image",
}


@pytest.mark.parametrize("run", FAILURES, ids=lambda run: run.__name__)
def test_a_wrong_provider_is_reported_and_not_timed(monkeypatch, capsys, tmp_path, run):
    monkeypatch.setitem(PROVIDERS["causal_conv"], "sdpa", Implementation(run))
    out = tmp_path / "rows.jsonl"
    options = ["--length", "64", "--repeats", "1", "--threads", "1", "--device", "cpu", "--out", str(out)]
    assert bench.main(["--op", "causal_conv", *options]) == 1
    rows = {row["provider"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["sdpa"]["failed"].startswith(FAILURES[run])
    assert "both_ms" not in rows["sdpa"]
    assert rows["reference"]["both_ms"] > 0
    assert f"causal_conv sdpa: not timed, {FAILURES[run]}" in capsys.readouterr().err


def test_channel_first_providers_get_and_give_their_layout(monkeypatch):
    def run(t, s):
        assert t["x"].shape == (2, 9, 30)
        assert t["x"].is_contiguous()
        y = kernels.causal_conv(t["x"].transpose(1, 2).contiguous(), t["weight"], bias=t["bias"], activation="silu")
        return (y.transpose(1, 2),)

    monkeypatch.setitem(PROVIDERS["causal_conv"], "sdpa", Implementation(run, ("x", "y")))
    runner = measure.Runner(Case("causal_conv", TINY["causal_conv"], "float32"), "sdpa", operands("causal_conv"))
    assert "failed" not in command.check(runner, seed=0)


def test_rows_are_json_with_everything_that_makes_them_repeatable(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    options = ["--op", "causal_conv", "--provider", "reference", "--length", "64", "128", "--repeats", "2"]
    assert verb.run(["kernels", *options, "--threads", "1", "--device", "cpu", "--seed", "3", "--out", str(out)]) == 0
    first, second = map(json.loads, out.read_text().splitlines())
    assert first["shape"] == {"B": 1, "D": 256, "W": 4, "L": 64}
    assert second["shape"]["L"] == 128
    assert first.keys() >= {"dtype", "device", "threads", "torch", "python", "date", "errors", "ceilings"}
    assert first["seed"] == 3
    assert first["command"].startswith("seqkit bench kernels --op causal_conv")
    for kind in ("forward", "both"):
        low, high = first[f"{kind}_quartiles_ms"]
        assert 0 < low <= first[f"{kind}_ms"] <= high
        assert first[f"{kind}_ceiling"] == "copy"
    assert "causal_conv" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "<svg" in out.with_suffix(".svg").read_text()


def test_without_rich_and_matplotlib_a_plain_table_and_no_plot(monkeypatch, tmp_path, capsys):
    for name in ("rich", "rich.console", "rich.table", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "rows.jsonl"
    options = ["--op", "causal_conv", "--length", "16", "32", "--repeats", "1", "--threads", "1", "--device", "cpu"]
    assert bench.main([*options, "--provider", "reference", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "causal_conv  reference  B=1 D=256 W=4 L=16 float32" in captured.out
    assert "(rich is not installed: plain table)" in captured.err
    assert "(matplotlib is not installed: no plot)" in captured.err
    assert not out.with_suffix(".png").exists()


def test_peak_memory_is_that_of_a_fresh_process():
    small = command.process_peak_gib(Case("causal_conv", TINY["causal_conv"], "float32"), "reference", 1, 0)
    large = {"B": 1, "D": 1024, "W": 4, "L": 32_768}  # 128 MiB an activation
    assert command.process_peak_gib(Case("causal_conv", large, "float32"), "reference", 1, 0) > small + 0.35


def test_nothing_to_report_is_an_error():
    with pytest.raises(ConfigError, match="--provider: expected one that is installed and has the op"):
        bench.main(["--op", "causal_conv", "--provider", "mambapy", "--device", "cpu"])
    with pytest.raises(ConfigError, match="--first-call: expected a GPU"):
        bench.main(["--first-call", "--device", "cpu"])


@pytest.mark.parametrize(
    ("op", "sizes", "forward", "both"),
    [
        ("causal_conv", {"B": 1, "D": 100, "W": 4, "L": 1000}, Work(4e5), Work(1e6)),
        ("gated_rms_norm", {"B": 1, "D": 100, "L": 1000}, Work(6e5), Work(1.6e6)),
        ("rms_norm", {"B": 1, "D": 100, "L": 1000}, Work(1.2e6), Work(2.8e6)),
        ("selective_scan", {"B": 1, "D": 100, "N": 10, "L": 1000}, Work(8.4e5, 1e6), Work(2.32e6, 2e6)),
        ("attention", {"B": 1, "H": 2, "P": 10, "L": 100}, Work(16_000, 0, 4e5), Work(48_000, 0, 1.4e6)),
    ],
)
def test_least_work_in_bfloat16(op, sizes, forward, both):
    assert OPERATIONS[op].work(sizes, 2) == (forward, both)


@pytest.mark.parametrize(
    ("work", "least"),
    [
        (Work(1e9, 1e6, 1e6), (10.0, "copy")),
        (Work(1e6, 1e9, 1e6), (100.0, "exp2")),
        (Work(1e6, 1e6, 1e12), (1000.0, "matmul")),
    ],
)
def test_the_ceiling_that_binds(work, least):
    time, name = BEST.least_ms(work)
    assert math.isclose(time, least[0])
    assert name == least[1]


def test_the_suite_holds_the_shapes_that_the_work_is_judged_by():
    rows = {(c.op, c.dtype, c.sizes["B"], c.sizes.get("D", c.sizes.get("M")), c.sizes["L"]) for c in TARGETS}
    scans = [(1, 512, 131_072), (1, 512, 1 << 20), (1, 256, 1 << 22), (1, 2048, 131_072)]
    scans += [(8, 2048, 8192), (32, 512, 1024), (1, 512, 4096)]
    assert rows >= {("selective_scan", "bfloat16", *sizes) for sizes in scans}
    assert ("selective_scan", "float32", 1, 512, 131_072) in rows
    assert {c.sizes["L"] for c in TARGETS if c.op == "ssd_scan"} == {1024, 8192, 131_072, 1 << 20, 1 << 22}
    assert rows >= {(op, "bfloat16", 1, 1024, 1 << 20) for op in ("causal_conv", "rms_norm", "gated_rms_norm")}
    for op in INNER:
        assert {c.sizes["slab"] > 0 for c in TARGETS if c.op == op and c.sizes["M"] == 512} == {True, False}
    assert all(OPERATIONS[c.op].gpu.keys() == c.sizes.keys() for c in TARGETS)


def test_cases_follow_the_command_line():
    assert [c.sizes["L"] for c in cases("cpu", ["ssd_scan"], None, [7, 8], None)] == [7, 8]
    assert {c.dtype for c in cases("cpu", None, None, None, None)} == {"float32"}
    assert {c.op for c in cases("cuda", None, None, None, None)} == set(OPERATIONS)
    assert cases("cuda", ["causal_conv"], "targets", None, "float16") == [
        replace(c, dtype="float16") for c in TARGETS if c.op == "causal_conv"
    ]


@pytest.mark.parametrize(
    ("sizes", "small"), [({"B": 1, "D": 512, "L": 4096}, True), ({"B": 1, "D": 512, "L": 131_072}, False)]
)
def test_graphs_are_timed_where_launches_may_set_the_pace(sizes, small):
    assert measure.small(Case("selective_scan", sizes)) is small


def test_ceilings_are_measured():
    row = ceilings.measure("cpu").row()
    assert row["copy_gb_s"] > 0.1
    assert row["exp2_g_s"] > 0.01
    assert row["matmul_tflop_s"] > 0.001


@pytest.mark.gpu
@pytest.mark.parametrize("op", [op for op in OPERATIONS if op != "attention"])
def test_on_cuda(op):
    if not available(op, "triton", "cuda"):
        pytest.skip(f"no Triton kernel for {op}")
    case = Case(op, {**OPERATIONS[op].gpu, "L": 1000})
    (row,) = command.rows_of(case, ["triton"], "cuda", 0, 2, BEST)
    assert not row.keys() & {"failed", "graph_failed"}, row
    assert row["both_graph_ms"] > 0
    assert 0 < row["forward_host_us"] < row["both_host_us"]
    assert 0 <= row["peak_beyond_results_gib"] <= row["peak_gib"]


@pytest.mark.gpu
def test_ceilings_on_cuda():
    row = ceilings.measure("cuda").row()
    assert row["copy_gb_s"] > 50
    assert row["exp2_g_s"] > 50
    assert report.environment("cuda", 0, "")["device"] == torch.cuda.get_device_name()
