import json

import pytest
import torch

from seqkit.bench import claims, scaling, verdicts
from seqkit.bench.scaling import Contender, exponent, foreseen, measure
from seqkit.bench.transformer import Transformer
from seqkit.bench.verdicts import FAILS, HOLDS, UNDECIDED
from seqkit.errors import InputError

LENGTHS = (1024, 4096, 32_768, 131_072, 1_048_576)


def scaling_rows(model, us_per_token, *, mode=("forward", "training"), gib=1.0, lengths=LENGTHS, **more):
    rows = []
    for kind in mode:
        for length in lengths:
            us = us_per_token(length)
            rows.append({
                "what": "scaling", "model": model, "mode": kind, "d_state": None, "L": length, "ms": us * length / 1e3,
                "us_per_token": us, "tokens_per_s": 1e6 / us, "peak_gib": gib * length / 32_768, **more,
            })  # fmt: skip
    return rows


OUT = {"what": "scaling", "model": "attention", "mode": "training", "L": 32_768, "failed": "out of memory"}


def flat(length):
    return 2.0


def growing(length):
    return length / 8192


def test_the_exponent_of_a_power_law():
    rows = scaling_rows("x", lambda length: 3.0 * length**0.7, mode=("forward",))
    assert exponent(rows, 0) == pytest.approx(1.7)
    assert foreseen(rows[:2], 32_768, 2) == pytest.approx(2 * rows[2]["ms"])
    assert foreseen(rows[:1], 32_768, 2) == 0


@pytest.mark.parametrize(
    ("number", "rows", "verdict"),
    [
        (1, scaling_rows("mamba2", flat) + scaling_rows("attention", growing), "from length 4,096"),
        (1, scaling_rows("mamba2", growing) + scaling_rows("attention", growing), FAILS),
        (1, scaling_rows("mamba2", flat) + scaling_rows("attention", flat), "attention is below"),
        (1, scaling_rows("mamba2", flat, lengths=LENGTHS[:2]) + scaling_rows("attention", flat), UNDECIDED),
        (2, scaling_rows("mamba2", flat) + scaling_rows("attention", growing), "holds from length 65,536 (4 times"),
        (2, scaling_rows("mamba2", lambda _: 0.5) + scaling_rows("attention", growing), HOLDS),
        (2, scaling_rows("mamba2", flat) + scaling_rows("attention", flat), FAILS),
        (3, scaling_rows("mamba2", flat) + scaling_rows("attention", flat, gib=3.5), HOLDS),
        (3, scaling_rows("mamba2", flat) + scaling_rows("attention", flat), FAILS),
        (3, scaling_rows("mamba2", flat, lengths=(1024,)) + scaling_rows("attention", flat), UNDECIDED),
        (5, scaling_rows("mamba2", lambda _: 0.25) + scaling_rows("mamba1", flat), HOLDS),
        (5, scaling_rows("mamba2", lambda _: 1.0) + scaling_rows("mamba1", flat), "2.0 times at most"),
        (5, scaling_rows("mamba2", flat) + scaling_rows("mamba1", flat), FAILS),
        (12, scaling_rows("mamba2", flat) + scaling_rows("attention", flat, lengths=LENGTHS[:2]) + [OUT], HOLDS),
        (12, scaling_rows("mamba2", flat) + scaling_rows("attention", flat), "reaches further"),
        (12, scaling_rows("mamba2", flat) + scaling_rows("attention", flat, lengths=LENGTHS[:2]), UNDECIDED),
    ],
)  # fmt: skip
def test_verdicts_on_lengths(number, rows, verdict):
    figure, said = verdicts.decide(number, rows)
    assert verdict in said
    assert (figure == "") == (number == 3 and said == UNDECIDED)


@pytest.mark.parametrize(("late", "verdict"), [(103.0, HOLDS), (120.0, FAILS)])
def test_verdict_on_steps(late, verdict):
    steps = [
        {"what": "step", "position": p, "us": us, "state_bytes": 2**20} for p, us in ((10**3, 100.0), (10**7, late))
    ]
    cached = [{"what": "cached step", "position": 10**6, "us": 900.0, "state_bytes": 2**33}]
    figure, said = verdicts.decide(4, cached + steps)
    assert said == verdict
    assert "8,192.00 MiB behind 1,000,000 tokens" in figure


@pytest.mark.parametrize(("attention", "verdict"), [(0.75, HOLDS), (0.0, FAILS), (None, UNDECIDED)])
def test_verdict_on_delayed_copies(attention, verdict):
    row = {"what": "delayed-copy", "lag": 100_000, "best": 0.0}
    rows = [row | {"reads": "carried state", "layout": "mamba2*2", "error": e} for e in (0.0, 0.02)]
    rows.append(row | {"reads": "window 512", "layout": "mamba2*2", "error": 0.75, "best": 0.75})
    if attention is not None:
        rows.append(row | {"reads": "window 200000", "layout": "attention*2", "error": attention})
    figure, said = verdicts.decide(11, rows)
    assert said == verdict
    assert "carried 0.01 at 100,000" in figure


@pytest.mark.parametrize(
    ("ms", "provider", "verdict"), [(3.0, "triton", HOLDS), (9.0, "triton", FAILS), (3.0, "reference", UNDECIDED)]
)
def test_verdict_on_kernels(ms, provider, verdict):
    row = {"what": "kernel", "op": "ssd_scan", "provider": provider, "forward_ms": ms, "forward_of_ceiling": 0.5}
    row |= {"forward_ceiling": "copy", "operand_gb": 1.0, "states_gb": 10.0, "states_ms": 5.0}
    figure, said = verdicts.decide(15, [row])
    assert said == verdict
    assert "50 % of what copy allows" in figure


@pytest.mark.parametrize("fused", [False, True])
def test_a_transformers_steps_equal_its_pass(fused):
    torch.manual_seed(0)
    model, ids = Transformer(24, 32, 2, headdim=16).double(), torch.randint(7, 11, (2, 6))
    hidden, kept = model(ids), torch.zeros(2, 2, 2, 2, 6, 16, dtype=torch.float64)
    for t in range(6):
        cache = [(keys[:, :, : t + 1], values[:, :, : t + 1]) for keys, values in kept]
        step = model.step(ids[:, t], torch.tensor([t]), cache, fused=fused)
        torch.testing.assert_close(step, hidden[:, t], rtol=1e-5, atol=1e-6)
    assert [part.shape for part in model.cache(2, 6, torch.float32)[0]] == [(2, 2, 7, 16)] * 2


def test_contenders_have_about_the_same_weights():
    sizes = [sum(p.numel() for p in Contender(n).build("cpu").parameters()) for n in ("mamba1", "mamba2", "attention")]
    assert max(sizes) / min(sizes) < 1.15


def test_lengths_that_would_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(scaling, "SLOWEST_MS", 0.001)
    options = {"device": "cpu", "tokens": 32}
    rows = list(measure(Contender("mamba2", 64, 2), "forward", [32, 64, 128, 256], **options))
    assert [row["L"] for row in rows] == [32, 64, 128]
    assert "ms" in rows[1]
    assert "a call" in rows[2]["skipped"]


def test_everything_is_measured_and_tabled(tmp_path, monkeypatch, capsys):
    small = {"lengths": (32, 64), "tokens": 64, "positions": (10, 20), "cached": (10,), "states": (16,)}
    monkeypatch.setattr(claims, "CPU", claims.Scale(**small, d_model=64, blocks=2, dtype="float32"))
    monkeypatch.setattr(scaling, "ENOUGH_MS", 1.0)
    monkeypatch.setattr("seqkit.bench.stream._REPLAYS", 2)
    out = tmp_path / "claims.jsonl"
    assert claims.main(["--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["number"] for row in rows if row["what"] == "claim"] == list(claims.CLAIMS)
    assert {row["what"] for row in rows} == {"scaling", "step", "cached step", "kernel", "claim"}
    assert claims.main(["--decide", str(out), "--out", str(tmp_path / "again.jsonl")]) == 0
    assert capsys.readouterr().out == printed
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert again == [row for row in rows if row["what"] == "claim"]
    assert claims.main(["--table", str(out)]) == 0
    assert capsys.readouterr().out == printed
    assert printed.count(UNDECIDED) == len(claims.CLAIMS)  # a CPU decides nothing about length


@pytest.mark.parametrize("number", verdicts.DECISIONS)
@pytest.mark.parametrize("rows", [[], scaling_rows("mamba2", flat, lengths=(1024,))])
def test_a_run_that_was_cut_decides_nothing(number, rows):
    assert verdicts.decide(number, rows) == ("", UNDECIDED)


def test_a_table_of_something_else(tmp_path):
    (tmp_path / "x").write_text("no json")
    with pytest.raises(InputError, match="JSON lines"):
        claims.main(["--table", str(tmp_path / "x")])
