from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from seqkit.data.series import load_panel, panel_of_array
from seqkit.data.series_frames import as_polars, find_roles
from seqkit.data.series_grid import GridConfig
from seqkit.errors import ConfigError, InputError

HOURS = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 1, 1, 3), "1h", eager=True)
LONG = pl.DataFrame({
    "unique_id": ["b"] * 4 + ["a"] * 3,
    "ds": pl.concat([HOURS, HOURS[:3]]),
    "y": [1.0, 2.0, np.nan, 4.0, 10.0, 11.0, 12.0],
    "x": [1, 2, 3, 4, 5, 6, 7],
})  # fmt: skip


def ints(ds, y=None, name="a"):
    y = [float(i) for i in range(len(ds))] if y is None else y
    return pl.DataFrame({"unique_id": [name] * len(ds), "ds": ds, "y": y})


def sources(folder):
    LONG.write_csv(folder / "t.csv")
    LONG.write_csv(folder / "t.tsv", separator="\t")
    LONG.write_parquet(folder / "t.parquet")
    LONG.write_ipc(folder / "t.arrow")
    yield from (folder / f"t.{suffix}" for suffix in ("csv", "tsv", "parquet", "arrow"))
    yield from (LONG, LONG.lazy(), LONG.to_pandas(), LONG.to_pandas().set_index("unique_id"), LONG.to_arrow())


@pytest.mark.parametrize("number", range(9))
def test_every_kind_of_source_gives_the_same_panel(number, tmp_path):
    panel = load_panel(list(sources(tmp_path))[number], exogenous=("x",))
    assert panel.ids == ["a", "b"]
    assert panel.offsets.tolist() == [0, 3, 7]
    np.testing.assert_array_equal(panel.y, [10, 11, 12, 1, 2, np.nan, 4])
    assert panel.exogenous["x"].to_list() == [5, 6, 7, 1, 2, 3, 4]
    assert str(panel.frequency) == "1h"


@pytest.mark.parametrize(
    ("frame", "kind"),
    [(LONG, pl.DataFrame), (LONG.lazy(), pl.DataFrame), (LONG.to_pandas(), pd.DataFrame), (LONG.to_arrow(), pa.Table)],
)
def test_frames_go_back_to_their_kind(frame, kind):
    _, restore = as_polars(frame)
    assert isinstance(restore(LONG), kind)


def test_usual_names_are_found_and_others_can_be_named():
    assert find_roles(["timestamp", "value"]) == (None, "timestamp", "value")
    assert find_roles(["k", "t", "v", "y"], {"id": "k", "time": "t", "target": "v"}) == ("k", "t", "v")
    with pytest.raises(InputError, match=r"a time column.*time_col"):
        find_roles(["unique_id", "y"])
    with pytest.raises(InputError, match=r"target: z"):
        find_roles(["ds", "y"], {"target": "z"})


def test_missing_rows_become_missing_values():
    panel = load_panel(ints([0, 1, 2, 5, 6]))
    np.testing.assert_array_equal(panel.y, [0, 1, 2, np.nan, np.nan, 3, 4])
    assert panel.ds.to_list() == list(range(7))
    assert panel.notes == ("2 missing rows filled in as missing values",)


def test_filled_rows_have_no_covariates():
    frame = ints([0, 1, 2, 4]).with_columns(x=pl.col("y") + 1, c=pl.lit("red"))
    panel = load_panel(frame, exogenous=("x", "c"))
    assert panel.exogenous["x"].to_list() == [1, 2, 3, None, 4]
    assert panel.exogenous["c"].to_list() == ["red", "red", "red", None, "red"]


REFUSED = {
    "a gap": (ints([0, 1, 2, 5]), {"gaps": "refuse"}, r"2 missing, the first before a at 5.*gaps=fill"),
    "a double": (ints([0, 1, 1, 2]), {}, r"1 more: a at 1.*duplicates="),
    "an infinity": (ints([0, 1, 2], [1.0, np.inf, 2.0]), {}, r"1 infinite: a at 1.*infinite=missing"),
    "off the grid": (ints([0, 2, 4, 5, 6, 8]), {"freq": 2}, r"1 off the grid: a at 5.*irregular=true"),
    "an absurd grid": (ints([0, 1, 2, 10**7]), {}, r"missing, the first before a at 10000000.*another freq"),
    "text for numbers": (ints([0, 1, 2], ["1", "x", "3"]), {}, r"y: expected numbers, got String"),
    "text for stamps": (ints(["soon", "later", "never"]), {}, r"ds: expected dates, times or whole numbers, got text"),
    "a missing stamp": (ints([0, None, 2]), {}, r"ds: expected a value in every row, got none in row 2"),
    "no rows": (ints([0]).clear(), {}, "at least one row"),
    "hours for integers": (ints([0, 1, 2]), {"freq": "h"}, r"a frequency of whole numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_rows_are_refused_in_one_line(case):
    frame, options, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        load_panel(frame, grid=GridConfig(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("keep", "value"), [("first", 1.0), ("last", 2.0), ("mean", 1.5)])
def test_doubles_can_be_merged(keep, value):
    panel = load_panel(ints([0, 1, 1, 2], [0.0, 1.0, 2.0, 3.0]), grid=GridConfig(duplicates=keep))
    assert panel.y.tolist() == [0, value, 3]
    assert f"1 rows with a stamp seen before: {keep} kept" in panel.notes


def test_infinities_can_be_missing():
    panel = load_panel(ints([0, 1, 2], [1.0, -np.inf, 2.0]), grid=GridConfig(infinite="missing"))
    np.testing.assert_array_equal(panel.y, [1, np.nan, 2])


def test_unsorted_rows_are_sorted():
    shuffled = LONG.sample(fraction=1.0, shuffle=True, seed=1)
    np.testing.assert_array_equal(load_panel(shuffled).y, load_panel(LONG).y)


def test_a_doubled_hour_in_autumn_and_a_missing_one_in_spring():
    wall = ["2024-10-27 01:00", "2024-10-27 02:00", "2024-10-27 02:00", "2024-10-27 03:00"]
    frame = ints(pl.Series(wall).str.to_datetime())
    panel = load_panel(frame, grid=GridConfig(time_zone="Europe/Berlin"))
    assert panel.ds.dt.epoch("s").diff().drop_nulls().to_list() == [3600] * 3
    bad = ints(pl.Series(["2024-03-31 01:00", "2024-03-31 02:30", "2024-03-31 04:00"]).str.to_datetime())
    with pytest.raises(InputError, match="wall-clock times that exist in Europe/Berlin"):
        load_panel(bad, grid=GridConfig(time_zone="Europe/Berlin"))


def test_irregular_series_keep_their_stamps():
    panel = load_panel(ints([0, 1, 7, 9]), grid=GridConfig(irregular=True))
    assert panel.frequency is None
    assert panel.ds.to_list() == [0, 1, 7, 9]
    with pytest.raises(ConfigError, match="irregular"):
        GridConfig(irregular=True, freq=1)


def test_wide_arrays():
    panel = panel_of_array(np.arange(12.0).reshape(4, 3))
    assert panel.ids == ["0", "1", "2"]
    assert panel.aligned
    np.testing.assert_array_equal(panel.y.reshape(3, 4), np.arange(12.0).reshape(4, 3).T)
    assert panel_of_array(np.arange(4.0)).ids == ["series"]
    with pytest.raises(InputError, match=r"shape \(T,\)"):
        panel_of_array(np.zeros((2, 2, 2)))


def test_panels_of_unequal_series_are_not_aligned():
    panel = load_panel(LONG)
    assert not panel.aligned
    assert panel.take(np.array([1])).ids == ["b"]
    assert panel.take(np.array([1])).y.shape == (4,)
    assert panel.last().to_list() == [datetime(2024, 1, 1, 2), datetime(2024, 1, 1, 3)]


REAL = {
    "ambient_temperature_system_failure": (7888, "1h", "621 missing rows"),
    "machine_temperature_system_failure": (22683, "5m", "1 steps backward"),
    "rogue_agent_key_hold": (5338, "5m", "3,456 missing rows"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_series_with_jumps_and_steps_backward(name, shared_data):
    rows, frequency, note = REAL[name]
    panel = load_panel(shared_data / "nab-known-cause" / f"{name}.csv.gz", grid=GridConfig(duplicates="last"))
    assert (len(panel.y), str(panel.frequency)) == (rows, frequency)
    assert note in " ".join(panel.notes)
    assert (panel.ds.diff().drop_nulls() == panel.ds[1] - panel.ds[0]).all()
