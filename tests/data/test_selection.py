import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqkit.data.genome import Interval
from seqkit.data.selection import Regions, Shard, read_regions
from seqkit.errors import ConfigError, InputError

spans = st.lists(st.tuples(st.sampled_from(["chr1", "1", "chr2"]), st.integers(0, 60), st.integers(0, 20)), max_size=8)


@given(spans, st.sampled_from(["1", "chr2", "chr3"]), st.integers(-2, 90))
def test_a_position_is_kept_where_any_region_holds_it(drawn, contig, place):
    regions = Regions([Interval(c, s, s + n) for c, s, n in drawn])
    bare = contig.removeprefix("chr")
    expected = any(c.removeprefix("chr") == bare and s <= place < s + n for c, s, n in drawn)
    assert regions.keeps(contig, place) == expected
    found = regions.spans(contig)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


@given(st.integers(0, 1000), st.integers(1, 40))
def test_shards_follow_each_other_and_leave_nothing_out(records, count):
    ranges = [Shard(i, count).range(records) for i in range(1, count + 1)]
    assert [i for low, high in ranges for i in range(low, high)] == list(range(records))
    assert max(high - low for low, high in ranges) - min(high - low for low, high in ranges) <= 1


def test_regions_as_text_and_as_bed(tmp_path):
    regions = read_regions("chr1:11-20;chr2 1:15-30")
    assert regions.spans("1") == [(10, 30)]
    assert regions.keeps("2", 10**9)
    assert regions.keeps("HLA-A*01:01", 1) is False
    bed = tmp_path / "r.bed"
    bed.write_text("# x\nchr1\t10\t20\tname\n\n1 30 40\n")
    assert read_regions(str(bed)).spans("chr1") == [(10, 20), (30, 40)]
    for text in ("chr1\t10\n", "chr1\ta\tb\n", "# nothing\n"):
        bed.write_text(text)
        with pytest.raises(InputError, match=r"r\.bed"):
            read_regions(str(bed))


@pytest.mark.parametrize("text", ["", " ", "chr1:5", "chr1:9-3", "chr1:a-b"])
def test_unreadable_regions(text):
    with pytest.raises(ConfigError, match="--regions"):
        read_regions(text)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/2"])
def test_unreadable_shards(text):
    with pytest.raises(ConfigError, match="--shard"):
        Shard.parse(text)
