"""What users get wrong, and the sentence they read."""

import pytest
import torch

from seqkit.errors import ConfigError, ShapeError
from seqkit.kernels import causal_conv, dispatch, gated_rms_norm, provider_for, rms_norm, selective_scan, ssd_scan
from seqkit.kernels.testing import make_problem


def expect(match, problem, error=ShapeError):
    with pytest.raises(error, match=match):
        problem.run()


def replaced(op, name, change, **options):
    problem = make_problem(op, length=8, **options)
    problem.tensors[name] = change(problem.tensors[name])
    return problem


@pytest.mark.parametrize(
    ("op", "name", "change", "match"),
    [
        ("selective_scan", "u", lambda x: x[0], r"u: expected 3 dimensions \(B, L, D\), got 2"),
        ("selective_scan", "delta", lambda x: x[:, 1:], r"delta: expected shape .* = \(2, 8, 5\), got \(2, 7, 5\)"),
        ("selective_scan", "A", lambda x: x.bfloat16(), r"A: expected dtype float32, float64, got bfloat16"),
        ("selective_scan", "u", lambda x: x.int(), r"u: expected dtype float32, bfloat16, float16, float64, got int32"),
        ("selective_scan", "B", lambda x: torch.ones(2, 8, 3, 3), r"B: expected .* groups that divides D = 5, got 3"),
        ("selective_scan", "C", lambda x: x[:, :, None], r"C: expected the shape of B"),
        ("selective_scan", "z", lambda x: x.mT.contiguous().mT, r"z: expected a contiguous last .*z.contiguous\(\)"),
        ("selective_scan", "initial_state", lambda x: x[:1], r"initial_state: expected shape \(S, D, N\) ="),
        ("selective_scan", "delta_bias", lambda x: x.half(), r"delta_bias: expected dtype float32"),
        ("selective_scan", "D", lambda x: x.to("meta"), r"D: expected device cpu, got meta"),
        ("ssd_scan", "dt", lambda x: x[..., None], r"dt: expected shape \(B, L, H\)"),
        ("ssd_scan", "B", lambda x: x[:, :, 0], r"B: expected 4 dimensions \(B, L, G, N\)"),
        ("ssd_scan", "D", lambda x: x[:, :2], r"D: expected shape \(H, P\) = \(3, 5\)"),
        ("ssd_scan", "initial_state", lambda x: x.mT, r"initial_state: expected shape \(S, H, P, N\)"),
        ("causal_conv", "weight", lambda x: x[:3], r"weight: expected shape \(D, W\) = \(5, 4\)"),
        ("causal_conv", "initial_state", lambda x: x[:, 1:], r"initial_state: expected shape \(S, W - 1, D\)"),
        ("causal_conv", "bias", lambda x: x[1:], r"bias: expected shape \(D,\)"),
        ("rms_norm", "residual", lambda x: x.bfloat16(), r"residual: expected dtype float32"),
        ("rms_norm", "weight", lambda x: x[1:], r"weight: expected shape \(D,\) = \(7,\)"),
        ("gated_rms_norm", "z", lambda x: x[:1], r"z: expected shape"),
    ],
)  # fmt: skip
def test_wrong_operands(op, name, change, match):
    expect(match, replaced(op, name, change))


@pytest.mark.parametrize(
    ("boundaries", "match"),
    [
        (torch.tensor([0, 8]), r"cu_seqlens: expected dtype int32, got int64"),
        (torch.tensor([0], dtype=torch.int32), r"cu_seqlens: expected shape \(S \+ 1,\)"),
        (torch.tensor([0, 7], dtype=torch.int32), r"end at L = 8, got \[0, 7\]"),
        (torch.tensor([1, 8], dtype=torch.int32), r"start at 0"),
        (torch.tensor([0, 5, 3, 8], dtype=torch.int32), r"never fall"),
        (torch.arange(20, dtype=torch.int32), r"got \[0, 1, 2, 3, '...', 17, 18, 19\]"),
    ],
)
@pytest.mark.parametrize("op", ["selective_scan", "ssd_scan", "causal_conv"])
def test_wrong_boundaries(op, boundaries, match):
    problem = make_problem(op, batch=1, length=8).without("initial_state")
    expect(match, problem.having(cu_seqlens=boundaries))


def test_packing_needs_one_row():
    problem = make_problem("causal_conv", length=8).without("initial_state")
    cu_seqlens = torch.tensor([0, 8], dtype=torch.int32)
    expect(r"cu_seqlens: expected batch size 1 with packed sequences, got B = 2", problem.having(cu_seqlens=cu_seqlens))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"dt_min": 0.5, "dt_max": 0.1}, r"dt_min, dt_max: expected 0 <= dt_min <= dt_max, got 0.5, 0.1"),
        ({"dt_min": -1.0}, r"dt_min, dt_max"),
        ({"chunk_size": 0}, r"chunk_size: expected 1 to 1024 tokens, got 0"),
        ({"chunk_size": 4096}, r"chunk_size"),
    ],
)
def test_wrong_ssd_settings(settings, match):
    expect(match, make_problem("ssd_scan", length=8).having(**settings), ConfigError)


def test_wrong_activation_and_group_size():
    expect(
        "activation: expected None or 'silu', got 'gelu'",
        make_problem("causal_conv").having(activation="gelu"),
        ConfigError,
    )
    expect(r"group_size: .* divides D = 6, got 4", make_problem("gated_rms_norm").having(group_size=4))


def test_degenerate_sizes():
    none = torch.zeros(1, 4, 0)
    with pytest.raises(ShapeError, match="at least one channel"):
        causal_conv(none, torch.zeros(0, 4))
    with pytest.raises(ShapeError, match="at least one channel"):
        rms_norm(none, torch.zeros(0))
    with pytest.raises(ShapeError, match="at least one channel"):
        gated_rms_norm(none, none, torch.zeros(0))
    with pytest.raises(ShapeError, match="at least one channel"):
        selective_scan(none, none, torch.zeros(0, 2), torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
    with pytest.raises(ShapeError, match="at least one head"):
        ssd_scan(torch.zeros(1, 4, 2, 0), torch.zeros(1, 4, 2), torch.zeros(2), *[torch.zeros(1, 4, 1, 3)] * 2)


def test_provider_by_environment(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv("SEQKIT_KERNELS", raising=False)
    assert provider_for("selective_scan", x) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert provider_for("selective_scan", x) == "reference"
    monkeypatch.setenv("SEQKIT_KERNELS", "fast")
    with pytest.raises(ConfigError, match="SEQKIT_KERNELS: expected one of auto, reference, triton, got 'fast'"):
        provider_for("selective_scan", x)
    monkeypatch.setenv("SEQKIT_KERNELS", "auto")
    with pytest.raises(ConfigError, match=r"op: expected one of .*ssd_scan.*, got 'scan'"):
        provider_for("scan", x)


def test_triton_by_name_where_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(dispatch.PROVIDERS, "triton", {})
    monkeypatch.setenv("SEQKIT_KERNELS", "triton")
    expect(
        "expected a provider with a kernel for causal_conv, got 'triton'. Set SEQKIT_KERNELS=auto",
        make_problem("causal_conv"),
        ConfigError,
    )


def test_triton_by_name_for_float64_or_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(dispatch.PROVIDERS, "triton", {"causal_conv": "seqkit.kernels.conv.reference"})
    monkeypatch.setenv("SEQKIT_KERNELS", "triton")
    monkeypatch.setattr(dispatch, "triton_installed", lambda: True)
    expect("a provider that runs float64", make_problem("causal_conv", dtype=torch.float64), ConfigError)
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    expect("an installed Triton", make_problem("causal_conv"), ConfigError)
