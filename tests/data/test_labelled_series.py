import gzip

import numpy as np
import polars as pl
import pytest

from seqkit.data.labelled_series import (
    LabelledSeriesConfig,
    PackedSeries,
    fit_scaler,
    is_ucr,
    joined,
    read_labelled,
    scaled,
    split_series,
    with_labels,
)
from seqkit.data.synthetic_series import bursts
from seqkit.errors import ConfigError, InputError


@pytest.fixture
def long(tmp_path):
    """Series a (3 steps, one row missing) and b (1 step), two channels."""
    rows = {"unique_id": ["a", "a", "b"], "ds": [0, 2, 0], "y": [1.0, 3.0, 5.0], "x": [9.0, None, 7.0]}
    frame = pl.DataFrame(rows).with_columns(label=pl.Series(["up", "up", "down"]))
    frame.write_parquet(tmp_path / "long.parquet")
    return tmp_path / "long.parquet"


def config(**more):
    return LabelledSeriesConfig(**{"freq": 1, **more})


def test_a_long_table_by_hand(long):
    data = read_labelled(config(channels=("y", "x")), str(long))
    assert (data.ids, data.offsets.tolist(), data.labels.to_list()) == (["a", "b"], [0, 3, 4], ["up", "down"])
    np.testing.assert_array_equal(data.values_NC, [[1, 9], [np.nan, np.nan], [3, np.nan], [5, 7]])


def test_labels_from_a_second_table_may_be_missing(long, tmp_path):
    pl.DataFrame({"unique_id": ["a"], "weight": [2.5]}).write_csv(tmp_path / "labels.csv")
    data = read_labelled(config(labels=str(tmp_path / "labels.csv"), label="weight"), str(long))
    assert data.labels.to_list() == [2.5, None]
    kept = with_labels(data)
    assert (kept.ids, kept.offsets.tolist(), kept.notes[-1]) == (["a"], [0, 3], "1 series without a label left out")


def test_the_ucr_layout_by_hand(tmp_path):
    path = tmp_path / "Two_TRAIN.tsv.gz"
    path.write_bytes(gzip.compress(b"-1\t0.5\t1.5\tNaN\n2\t3\tNaN\t4\n"))
    assert is_ucr(str(path))
    data = read_labelled(LabelledSeriesConfig(), str(path))
    assert data.ids == ["Two_TRAIN-00000", "Two_TRAIN-00001"]
    assert data.labels.to_list() == ["-1", "2"]
    np.testing.assert_array_equal(data.values_NC[:, 0], [0.5, 1.5, 3, np.nan, 4])


def test_a_table_with_a_header_is_not_ucr(tmp_path):
    (tmp_path / "long.tsv").write_text("unique_id\tds\ty\n1\t2\t3\n")
    assert not is_ucr(str(tmp_path / "long.tsv"))


def test_drawn_parts_hold_every_class_and_repeat_themselves():
    data = read_labelled(LabelledSeriesConfig(), None, seed=3)
    classes = np.unique(data.labels.to_list(), return_inverse=True)[1]
    part_S = split_series(data, LabelledSeriesConfig(), 5, classes)
    table = np.stack([np.bincount(classes[part_S == part]) for part in range(3)])
    assert table.tolist() == [[72] * 3, [18] * 3, [30] * 3]
    np.testing.assert_array_equal(part_S, split_series(data, LabelledSeriesConfig(), 5, classes))
    assert (part_S != split_series(data, LabelledSeriesConfig(), 6, classes)).any()


def test_a_test_table_is_the_test_part(long):
    data = read_labelled(config(), str(long))
    other = data._replace(ids=["c", "d"])
    both = joined(data, other)
    assert split_series(both, config(), 0, None).tolist()[2:] == [2, 2]
    with pytest.raises(InputError, match="not in --table"):
        joined(data, data)


def test_scaling_by_series_and_by_the_training_series():
    frame = pl.DataFrame({"unique_id": list("aabb"), "ds": [0, 1, 0, 1], "y": [0.0, 2, 10, 30], "label": list("uuvv")})
    frame = read_labelled(config(), frame)
    by_series = scaled(frame, fit_scaler(frame, np.array([0]), "series"))
    np.testing.assert_allclose(by_series[:, 0], [-1, 1, -1, 1])
    by_training = scaled(frame, fit_scaler(frame, np.array([0]), "global"))
    np.testing.assert_allclose(by_training[:, 0], [-1, 1, 9, 29])


def test_packed_batches_and_fillers_by_hand():
    packed = PackedSeries(np.arange(6.0)[:, None], np.array([0, 1, 3, 6]), np.array([7.0, 8, 9]), np.array([2, 0]))
    batch = packed.__getitems__([1, 0, -1])
    assert batch["z"][:, 0].tolist() == [0, 3, 4, 5, 3, 4, 5]
    assert batch["cu_seqlens"].tolist() == [0, 1, 4, 7]
    np.testing.assert_array_equal(batch["target"], [7, 9, np.nan])
    assert batch["index"].tolist() == [0, 2, -1]


def test_the_generated_set_depends_on_its_seed_alone():
    assert bursts(1).equals(bursts(1))
    assert not bursts(1).equals(bursts(2))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"label": ["up", "down", "up"]}, {}, "label: expected one value a series, got down, up in a"),
        ({}, {"split": "label"}, "columns: expected another column .* got label"),
        ({"label": [None, None, None]}, {}, "a label for some series"),
        ({"part": ["train", "train", "exam"]}, {"split": "part"}, "part: expected train, validation or test, got exam"),
        ({"part": ["train", "train", "test"]}, {"split": "part"}, "none for validation of 2 series"),
        ({"x": ["q", "r", "s"]}, {"channels": ("y", "x")}, "x: expected numbers"),
        ({"x": [1.0, np.inf, 2.0]}, {"channels": ("y", "x")}, "1 infinite"),
        ({}, {"channels": ("y", "z")}, "data.channels: expected columns among"),
        ({}, {"label": "class"}, "class"),
        ({}, {"columns": {"id": "who"}}, "who"),
    ],
)
def test_broken_tables_are_refused(long, change, settings, message):
    frame = pl.read_parquet(long).with_columns(**{name: pl.Series(values) for name, values in change.items()})

    def read():
        data = read_labelled(config(**settings), frame)
        split_series(with_labels(data), config(**settings), 0, None)

    with pytest.raises(InputError, match=message):
        read()


@pytest.mark.parametrize(
    ("settings", "argument"),
    [({"test": 1.0}, "data.test"), ({"scaler": "running"}, "data.scaler"), ({"channels": ("y", "y")}, "data.channels"),
     ({"test_table": "b"}, "--test-table"), ({"batch_size": 0}, "data.batch_size")],
)  # fmt: skip
def test_settings_out_of_range(settings, argument):
    with pytest.raises(ConfigError, match=argument):
        LabelledSeriesConfig(**settings)
