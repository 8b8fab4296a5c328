import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkit.data.encoded import open_genome
from seqkit.data.genome_windows import GenomeWindows
from seqkit.data.held_out import split_genome
from seqkit.data.stages import StagedBatches, StagesConfig
from seqkit.errors import ConfigError
from seqkit.tokenizers import DNATokenizer


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A genome from lengths of contigs or letters, encoded."""
    folder = tmp_path_factory.mktemp("genomes")
    random = np.random.default_rng(0)

    def genome(records):
        path = folder / f"{len(list(folder.iterdir()))}.fa"
        letters = {
            name: bases if isinstance(bases, str) else "".join(random.choice(list("ACGT"), bases))
            for name, bases in records.items()
        }
        path.write_text("".join(f">{name}\n{bases}\n" for name, bases in letters.items()))
        return open_genome(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQKIT_CACHE", str(folder / "cache"))
        yield genome


@pytest.mark.parametrize(
    ("contigs", "held_out"),
    [
        ({"1": 1000}, ["1:951-1000"]),
        ({"1": 900, "2": 50, "3": 60}, ["2:1-50"]),
        ({"1": 500, "2": 500}, ["1:476-500", "2:476-500"]),
        ({str(i): 20 for i in range(60)}, ["19:1-20", "39:1-20", "59:1-20"]),
    ],
    ids=["one contig", "a small contig", "two large ones", "many"],
)
def test_default_split(make, contigs, held_out):
    genome = make(contigs)
    split = split_genome(genome)
    assert [str(genome.where(*span)) for span in split.held_out] == held_out
    assert sum(split.bases.values()) == len(genome)


def test_regions_shares_and_exclusions(make, tmp_path):
    genome = make({"chr1": 100, "chr2:501-600": 100})
    split = split_genome(genome, "1:91-200 chr2:551-560", "chr1:1-10")
    assert [str(genome.where(*span)) for span in split.held_out] == ["chr1:91-100", "chr2:551-560"]
    assert [str(genome.where(*span)) for span in split.train] == ["chr1:11-90", "chr2:501-550", "chr2:561-600"]
    (tmp_path / "out.bed").write_text("chr1\t90\t100\n")
    assert split_genome(genome, str(tmp_path / "out.bed")).held_out == split_genome(genome, "chr1:91-100").held_out
    assert split_genome(genome, "0.25").bases == {"train": 150, "held out": 50}


@pytest.mark.parametrize(
    ("held_out", "exclude", "message"),
    [
        ("chr9", None, "chr1"),
        ("chr1:200-300", None, "beyond its ends"),
        ("1.5", None, "between 0 and 1"),
        ("chr1", None, "empty train part"),
        ("chr1:1-10", "chr1:1-20", "empty held_out part"),
    ],
)
def test_impossible_splits_are_refused(make, held_out, exclude, message):
    with pytest.raises(ConfigError, match=message):
        split_genome(make({"chr1": 100}), held_out, exclude)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(2, 130), low=st.integers(1, 280), size=st.integers(1, 60), epoch=st.integers(0, 9),
    max_n=st.sampled_from([0.0, 0.1, 0.5]),
)  # fmt: skip
def test_no_window_leaves_the_training_part_or_has_too_many_unknown_bases(make, length, low, size, epoch, max_n):
    genome = make({"a": "ACGT" * 30 + "N" * 20 + "ACGGT" * 40, "b": "GATTACA" * 5})
    split = split_genome(genome, f"a:{low}-{low + size}")
    windows = GenomeWindows(genome, split.train, length, max_n=max_n)
    start_N, bases_N, mirrored_N = windows.plan(epoch)
    assert len(start_N) == len(mirrored_N)
    for start, bases in zip(start_N, bases_N, strict=True):
        assert any(span.start <= start and start + bases <= span.end for span in split.train)
        assert ((genome.ids(start, start + bases) > 10).sum()) <= max_n * bases


def test_windows_are_a_function_of_seed_epoch_and_index(make):
    genome = make({"a": 5000})
    split = split_genome(genome)
    first = GenomeWindows(genome, split.train, 64, seed=1)
    n = len(first.plan(0)[0])
    later = GenomeWindows(genome, split.train, 64, seed=1).take(n - 2, 5)["ids"]
    assert later.tolist() == first.take(0, n + 3)["ids"][n - 2 :].tolist()
    assert later.tolist() != GenomeWindows(genome, split.train, 64, seed=2).take(n - 2, 5)["ids"].tolist()
    assert first.plan(0)[0].tolist() != first.plan(1)[0].tolist()


def test_an_epoch_covers_the_training_part(make):
    genome = make({"a": 6400})
    windows = GenomeWindows(genome, split_genome(genome).train, 64)
    seen = np.zeros(len(genome), dtype=int)
    for start, bases, _ in zip(*windows.plan(3), strict=True):
        seen[start : start + bases] += 1
    assert (seen[64 : 6080 - 64] > 0).mean() > 0.98
    assert seen[6080:].sum() == 0


def test_half_of_the_windows_are_reverse_complements(make):
    tokenizer, genome = DNATokenizer(), make({"a": "AACCG" * 1000})
    spans = split_genome(genome).train
    plain = GenomeWindows(genome, spans, 50, reverse_complement=False).take(0, 90)["ids"]
    mixed = GenomeWindows(genome, spans, 50).take(0, 90)["ids"]
    assert not any("T" in tokenizer.decode(row) for row in plain)
    assert 20 < sum("T" in tokenizer.decode(row) for row in mixed) < 70


def test_tiny_genomes_fill_up_with_padding(make):
    genome = make({"a": 40, "b": 30, "c": 10, "d": 2})
    batch = GenomeWindows(genome, split_genome(genome, "d").train, 64).take(0, 4)
    assert sorted((row != DNATokenizer.pad_id).sum().item() for row in batch["ids"][:2]) == [30, 40]
    assert batch["ids"].shape == (4, 64)


def test_nothing_but_unknown_bases_is_an_error(make):
    genome = make({"a": "N" * 100, "b": "ACGT" * 2})
    with pytest.raises(ConfigError, match="max_n"):
        GenomeWindows(genome, split_genome(genome, "b").train, 16)


@pytest.mark.parametrize(
    ("settings_", "lengths"),
    [
        ({"length": 1 << 20, "ramp": (1024, 8192, 131_072)}, [1024, 8192, 131_072, 1 << 20]),
        ({"length": 4096, "ramp": (1024, 8192)}, [1024, 4096]),
        ({"length": 512, "ramp_share": 0.0, "ramp": (128,)}, [512]),
    ],
)
def test_stages_grow_to_the_final_length(settings_, lengths):
    stages = StagesConfig(**settings_)
    seen = [stages.length_at(i / 1000) for i in range(1001)]
    assert list(dict.fromkeys(seen)) == lengths
    assert seen.count(stages.length) == pytest.approx(1000 * (1 - stages.ramp_share * (len(lengths) > 1)), abs=2)


@pytest.mark.parametrize(
    "settings_",
    [
        {"length": 0},
        {"ramp": (8, 4)},
        {"ramp_share": 1.0},
        {"length": 1000, "ramp": (300,)},
        {"tokens_per_step": 0},
        {"tokens_at_once": 0},
    ],
)
def test_stages_that_cannot_be_are_refused(settings_):
    with pytest.raises(ConfigError, match="stages"):
        StagesConfig(**settings_)


def test_batches_start_at_any_step_and_hold_equal_tokens(make):
    genome = make({"a": 9000})
    spans = split_genome(genome).train
    stages = StagesConfig(length=64, ramp=(16, 32), ramp_share=0.5, tokens_per_step=128)

    def batches(first):
        found = StagedBatches(
            stages, lambda n: GenomeWindows(genome, spans, n), extra=1, first_step=lambda: first,
            progress=lambda step: step / 10,
        )  # fmt: skip
        return [batch["ids"] for batch, _ in zip(found, range(10 - first), strict=False)]

    whole = batches(0)
    assert [tuple(ids.shape) for ids in whole] == [(8, 17)] * 3 + [(4, 33)] * 2 + [(2, 65)] * 5
    assert [ids.tolist() for ids in batches(4)] == [ids.tolist() for ids in whole[4:]]


def test_a_window_longer_than_a_step_is_one_by_itself():
    stages = StagesConfig(length=64, ramp=(16, 32), tokens_per_step=32)
    assert [stages.step_tokens(length) for length in stages.lengths] == [32, 32, 64]
