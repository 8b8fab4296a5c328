"""Whole training steps: rows, floors, what a series says."""

import json
import subprocess
import sys

import pytest
import torch

from seqkit.bench import model_report, models, step_parts, training_step
from seqkit.errors import ConfigError
from seqkit.kernels.bench.ceilings import Ceilings

TINY = ["--d-model", "64", "--layers", "1", "--repeats", "1", "--shape", "2x32", "1x64"]
RATES = Ceilings(copy_gb_s=1000, exp2_g_s=1000, matmul_tflop_s=100)


def row(length, peak_gib, step_s, **more):
    fixed = {"mixer": "mamba2", "batch": 1, "causal": False, "layers": 8, "d_model": 256, "residual": "float32"}
    rate = {"step_s": step_s, "tokens_per_s": round(length / step_s), "peak_gib": peak_gib, "bytes_per_token": 1.0}
    return fixed | {"length": length, "offload": False} | rate | more


def test_a_row_for_every_mixer_and_shape(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert models.main([*TINY, "--device", "cpu", "--out", str(out)]) == 0
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert [(r["mixer"], r["batch"], r["length"]) for r in rows] == [
        (mixer, *size) for mixer in models.MIXERS for size in ((2, 32), (1, 64))
    ]
    assert all(r["tokens_per_s"] > 0 and r["date"] and r["device"] for r in rows)
    assert capsys.readouterr().out.count("mamba3, 1 x 64") == 2


@pytest.mark.parametrize("causal", [False, True])
def test_a_step_changes_the_weights_and_a_causal_model_predicts_the_next_token(causal):
    setting = training_step.Setting(
        mixer="mamba2", batch=2, length=20, d_model=64, layers=1, causal=causal, dtype="float32"
    )
    step = training_step.TrainingStep(setting, "cpu")
    before = [p.detach().clone() for p in step.backbone.parameters()]
    step.run()
    assert all(not torch.equal(a, b) for a, b in zip(before, step.backbone.parameters(), strict=True))
    assert torch.equal(step.target[:, :-1], step.ids[:, 1:]) == causal
    assert step.backbone.is_causal == causal


def test_running_out_of_memory_is_tried_with_offloading_and_then_a_row(monkeypatch):
    tried = []

    def fail(setting, *options):
        tried.append(setting.offload)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(models, "measure", fail)
    found = models.guarded(training_step.Setting(mixer="mamba1", batch=1, length=8), "auto", "cpu", 1, 0, None)
    assert tried == [False, True]
    assert "out of memory" in found["failed"]
    assert found["offload"]


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("conv_gradient_kernel", "conv"),
        ("norm_kernel", "norms"),
        ("gradient_kernel", "scans"),
        ("output_kernel", "scans"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "projections"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "projections"),
        ("void cublasLt::splitKreduce_kernel<32>", "projections"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "scans"),
        ("void at::native::multi_tensor_apply_kernel<...>", "optimiser"),
        ("void (anonymous namespace)::softmax_warp_forward<float>", "loss"),
        ("Memcpy DtoH (Device -> Pinned)", "host copies"),
        ("Memcpy DtoD (Device -> Device)", "other"),
        ("void at::native::vectorized_elementwise_kernel<4, add>", "other"),
    ],
)
def test_kernels_are_sorted_by_name(kernel, part):
    assert step_parts.part_of(kernel) == part


@pytest.mark.parametrize("mixer", models.MIXERS)
def test_floors_grow_with_length_and_name_known_parts(mixer):
    found = []
    for length in (1024, 2048):
        setting = training_step.Setting(mixer=mixer, batch=1, length=length, layers=2)
        found.append(step_parts.floors(training_step.TrainingStep(setting, "cpu"), RATES))
    assert set(found[0]) <= set(step_parts.PARTS)
    # 8 operations for each of the projections' weights, token, strand: 2 forward twice, 4 backward
    weights = {"mamba2": 256 * 1160 + 512 * 256, "attention": 4 * 256 * 256}
    if mixer in weights:
        assert found[0]["projections"] == pytest.approx(8e-9 * 1024 * 2 * 2 * weights[mixer] / 100, abs=1e-3)
    for part in ("scans", "projections", "loss"):
        growth = 4 if (mixer, part) == ("attention", "scans") else 2
        assert found[1][part] == pytest.approx(growth * found[0][part], rel=0.1, abs=2e-3)


def test_a_straight_line_of_memory_and_a_flat_rate_are_reported():
    rows = [row(length, 2 + length * 2048 / 2**30, length / 1e6) for length in (131_072, 1_048_576, 2_097_152)]
    assert model_report.memory_line(rows) == pytest.approx((2, 2048, 0), abs=1e-6)
    text = " ".join(model_report.findings([*rows, row(4_194_304, 9.0, 99.0, offload=True)]))
    assert "differ by 0.0 %" in text
    assert "2.00 GiB + 2,048 bytes a token" in text


def test_a_shape_that_is_none():
    with pytest.raises(ConfigError, match="BATCHxLENGTH"):
        models.main(["--shape", "8192"])


def test_runs_without_the_packages_a_gpu_machine_lacks():
    names = ("polars", "pysam", "pyfaidx", "jsonargparse", "Bio", "lightning", "torchmetrics")
    block = f"import sys; sys.modules.update(dict.fromkeys({names}))\n"
    code = (
        block + f"from seqkit.bench import models; models.main({[*TINY[:-1], '--mixer', 'mamba1', '--device', 'cpu']})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert '"mixer": "mamba1"' in result.stdout
