"""Memory beforehand: counted bytes, shortcuts over length and depth, limits, advice."""

import pytest
import torch

from seqkit.backbones import BackboneConfig
from seqkit.errors import ConfigError, MemoryLimitError
from seqkit.estimate import advice, limits, memory, rates
from seqkit.estimate.live import LiveBytes
from seqkit.estimate.workload import Workload

GIB = 1 << 30
CPU = torch.device("cpu")


def workload(length=1 << 17, *, layout="mamba2*6", batch=1, precision="bf16-true", training=True, **model):
    config = BackboneConfig(**{"d_model": 64, "layout": layout, "headdim": 32, "slab": 16_384, **model})
    return Workload(model=config, length=length, batch=batch, precision=precision, training=training)


def test_live_bytes_follow_tensors_and_views():
    with LiveBytes() as live:
        x = torch.zeros(1000)
        y = x.view(10, 100)[2:]
        z = y + 1
        assert (live.now, live.peak) == (4000 + 3200, 4000 + 3200)
        del x, z
        assert live.now == 4000
        del y
    assert (live.now, live.peak) == (0, 7200)


@pytest.mark.parametrize(
    "given",
    [
        workload(),
        workload(checkpoint=True, bidirectional=True, rc_equivariant=True),
        workload(layout="mamba1*2 attention mamba1*2", length=4096, precision="32-true"),
        workload(sequence_chunk=16_384, checkpoint=True),
        workload(training=False),
    ],
    ids=["plain", "both-strands", "hybrid", "chunks", "forward"],
)
def test_short_and_shallow_counts_extend_to_the_whole(given):
    """Fewer blocks and fewer slabs tell what the whole model would have counted."""
    kept, passing = memory._by_blocks(given, gpu=True)
    whole = sum(memory._count(given, gpu=True))
    assert kept + passing == pytest.approx(whole, rel=0.02)


def test_parts_are_known_by_hand():
    found = memory.peak_memory(workload(checkpoint=True, precision="32-true"), gpu=False)
    assert found.parameters == sum(p.numel() for p in memory.Step(workload()).backbone.parameters())
    assert (found.weights, found.optimiser) == (4 * found.parameters, 8 * found.parameters)
    one_sum = (1 << 17) * 64 * 4  # embedding or sum in front of 6 blocks and of the last norm, hidden states
    assert found.kept == pytest.approx(8 * one_sum, rel=0.05)
    assert found.total == sum(found.parts().values())


def test_settings_that_save_memory_do():
    sizes = [
        memory.peak_memory(workload(**settings), gpu=True).total
        for settings in (
            {},
            {"checkpoint": True},
            {"checkpoint": True, "residual_in_fp32": False},
            {"checkpoint": True, "residual_in_fp32": False, "offload": True},
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]
    assert memory.peak_memory(workload(checkpoint=True, offload=True), gpu=True).host > 0
    assert memory.peak_memory(workload(checkpoint=True, offload=True), gpu=False).host == 0


def test_a_large_model_on_short_sequences_is_its_weights():
    given = workload(64, d_model=512, layout="mamba2*8", checkpoint=True, precision="32-true")
    found = memory.peak_memory(given, gpu=True)
    assert 4 * found.weights < found.total < 4.5 * found.weights


@pytest.mark.parametrize(
    ("name", "gib", "known"), [("h100-80gb", 78.6, True), ("24gb", 23.16, False), ("RTX4090-24GB", 23.16, False)]
)
def test_cards_by_kind_and_memory(name, gib, known):
    found = rates.card(name)
    assert found.memory / GIB == pytest.approx(gib, abs=0.01)
    assert (found.rates is not None) == known


@pytest.mark.parametrize("name", ["h100", "80", "gb", "0gb", "cpu-"])
def test_cards_that_are_none(name):
    with pytest.raises(ConfigError, match="--for"):
        rates.card(name)


def test_time_grows_with_tokens_and_for_attention_with_their_square():
    hopper = rates.RATES["h100"]
    short, once, twice = (rates.seconds(workload(n), hopper) for n in (1, 1 << 20, 1 << 21))
    assert twice - once == pytest.approx(once - short, rel=1e-5)  # on top of launches, which no length changes
    assert short > hopper.pass_seconds
    once, twice = (rates.seconds(workload(n, layout="attention"), hopper) for n in (1 << 24, 1 << 25))
    assert twice == pytest.approx(4 * once, rel=0.05)


def cgroup(root, *, version, limit, use, cache):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 64 kB\nMemAvailable: 1048576 kB\n")
    names = {2: ("0::/job/step", "", "max", "current"), 1: ("4:cpu,memory:/job/step", "memory", "limit", "usage")}
    line, base, limit_name, use_name = names[version]
    suffix = "_in_bytes" if version == 1 else ""
    (root / "proc/self/cgroup").write_text(f"1:name=systemd:/\n{line}\n" if version == 1 else line + "\n")
    for folder, bound in (("job", limit), ("job/step", "max" if version == 2 else 1 << 62)):
        group = root / "sys/fs/cgroup" / base / folder
        group.mkdir(parents=True)
        (group / f"memory.{limit_name}{suffix}").write_text(f"{bound}\n")
        (group / f"memory.{use_name}{suffix}").write_text(f"{use}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_jobs_limit_counts_its_parents_and_the_file_cache(tmp_path, version):
    cgroup(tmp_path, version=version, limit=1000, use=900, cache=300)
    assert limits.host_bytes(tmp_path) == 400


def test_without_a_limit_the_machine_decides_and_without_proc_nobody(tmp_path):
    cgroup(tmp_path / "a", version=2, limit="max", use=900, cache=300)
    assert limits.host_bytes(tmp_path / "a") == GIB
    assert limits.host_bytes(tmp_path / "b") is None


def test_advice_is_the_first_change_that_fits_and_names_it():
    given = workload(1 << 20, precision="32-true")
    needed = memory.peak_memory(given, gpu=True).total
    assert advice.fits(given, 2 * needed, gpu=True) is not None
    assert advice.what_fits(given, int(0.9 * needed), gpu=True).startswith("fits with --model.checkpoint true: ")
    tight = advice.what_fits(given, needed // 12, gpu=True)
    assert "--precision bf16-true" in tight
    assert "--model.sequence_chunk 131072" in tight


def test_advice_for_a_fixed_model_is_a_smaller_batch():
    given = workload(1 << 12, batch=8, training=False)
    limit = int(advice.MARGIN * memory.peak_memory(workload(1 << 12, batch=2, training=False), gpu=True).total) + 1
    flags = {"batch": "--batch-size {}".format}
    assert advice.what_fits(given, limit, gpu=True, flags=flags, fixed_model=True) == "fits with --batch-size 2"
    assert advice.what_fits(given, 10, gpu=True, flags=flags, fixed_model=True) == "nothing but a smaller model fits"


def test_work_that_cannot_fit_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(advice, "free_bytes", lambda device: 300 << 20)
    ran = []
    line, given = r"131,072 tokens\. Fits with --model\.checkpoint true", workload(precision="32-true", slab=None)
    with pytest.raises(MemoryLimitError, match=line) as caught, advice.within_memory(given, CPU, "--length"):
        ran.append(1)
    assert not ran
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryLimitError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MemoryLimitError),
        (MemoryError(), MemoryLimitError),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_running_out_later_ends_in_the_same_line(error, expected):
    with pytest.raises(expected) as caught, advice.within_memory(workload(256), CPU, "--length"):
        raise error
    assert type(caught.value) is expected


def test_small_work_is_not_counted(monkeypatch):
    monkeypatch.setattr(advice, "peak_memory", lambda *_, **__: pytest.fail("counted"))
    with advice.within_memory(workload(256), CPU, "--length"):
        pass
