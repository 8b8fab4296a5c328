from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

from seqkit.data.frequency import Frequency, infer_frequency
from seqkit.errors import ConfigError, InputError

DAY = datetime(2024, 3, 28)


def clock(step, zone=None):
    return pl.datetime_range(DAY, datetime(2024, 4, 1), step, time_zone=zone, eager=True)


def dates(step, start=date(2019, 1, 1), end=date(2023, 12, 31)):
    return pl.date_range(start, end, step, eager=True)


BUSINESS = dates("1d").filter(dates("1d").dt.weekday() <= 5)
CASES = {
    "30m": clock("30m"),
    "1h": clock("1h", "Europe/Berlin"),
    "1d": dates("1d"),
    "1w": dates("1w"),
    "1mo": dates("1mo"),
    "1ME": dates("1mo").dt.month_end(),
    "3mo": dates("1q"),
    "12mo": dates("1y"),
    "1bd": BUSINESS,
    "5": pl.Series(np.arange(3, 90, 5)),
    "250us": pl.Series(np.arange(40) * 250).cast(pl.Datetime("us")),
}


@pytest.mark.parametrize("name", CASES)
def test_inferred_frequency_is_the_one_of_the_stamps(name):
    ds = CASES[name]
    frequency = infer_frequency(ds, np.array([0, len(ds)]), ["a"])
    assert str(frequency) == name
    assert Frequency.parse(name if name != "5" else 5) == frequency


@pytest.mark.parametrize("name", CASES)
def test_positions_and_stamps_undo_each_other(name):
    ds = CASES[name]
    frequency = Frequency.parse(name if name != "5" else 5)
    first = ds[np.zeros(len(ds), dtype=int)]
    position, on_grid = frequency.positions(ds, first)
    assert on_grid.all()
    assert position.tolist() == list(range(len(ds)))
    assert frequency.stamps(first, position).to_list() == ds.to_list()


@pytest.mark.parametrize("name", CASES)
def test_stamps_behind_the_last_continue_the_series(name):
    ds = CASES[name]
    frequency = Frequency.parse(name if name != "5" else 5)
    assert frequency.after(ds[-4:-3], 3).to_list() == ds[-3:].to_list()
    assert frequency.after(ds[-4:-2], 2).to_list() == [*ds[-3:-1].to_list(), *ds[-2:].to_list()]


@pytest.mark.parametrize(
    ("text", "same"),
    [("min", "1m"), ("15T", "15m"), ("H", "1h"), ("D", "1d"), ("W-SUN", "1w"), ("MS", "1mo"), ("ME", "1ME"),
     ("QS", "3mo"), ("2Q", "6ME"), ("B", "1bd"), ("YS", "12mo"), (7, "7")],
)  # fmt: skip
def test_pandas_aliases(text, same):
    assert str(Frequency.parse(text)) == same


@pytest.mark.parametrize("text", ["", "0h", "fortnight", "-1", "1.5h", 0])
def test_nonsense_is_refused(text):
    with pytest.raises(ConfigError, match="freq"):
        Frequency.parse(text)


@pytest.mark.parametrize(
    ("text", "seasons"),
    [("30m", (48, 336)), ("h", (24, 168)), ("D", (7,)), ("MS", (12,)), ("QE", (4,)), ("w", (52,)), ("B", (5,)),
     ("s", (86400, 604800)), (1, (1,)), ("YS", (1,))],
)  # fmt: skip
def test_seasons(text, seasons):
    assert Frequency.parse(text).seasons == seasons


def test_hours_step_over_the_change_of_clocks_and_days_keep_midnight():
    hours = CASES["1h"]
    assert "+01:00" in str(hours[0].isoformat())
    assert "+02:00" in str(hours[-1].isoformat())
    days = pl.datetime_range(DAY, datetime(2024, 4, 3), "1d", time_zone="Europe/Berlin", eager=True)
    after = Frequency.parse("1d").after(days[:1], 6)
    assert after.to_list() == days[1:].to_list()
    assert set(after.dt.hour().to_list()) == {0}


def test_stamps_off_the_grid_are_found():
    ds = pl.Series([0, 2, 5, 6])
    position, on_grid = Frequency.parse(2).positions(ds, pl.Series([0] * 4))
    assert position.tolist() == [0, 1, 2, 3]
    assert on_grid.tolist() == [True, True, False, True]


def test_mixed_frequencies_name_both_series():
    ds = pl.concat([clock("30m")[:10], clock("1h")[:10]])
    with pytest.raises(InputError, match=r"30m in 'a' and 1h in 'b'"):
        infer_frequency(ds, np.array([0, 10, 20]), ["a", "b"])


def test_no_common_distance_asks_for_one():
    ds = pl.Series([0, 1, 3, 7, 20, 21])
    with pytest.raises(InputError, match=r"one common distance.*irregular=true"):
        infer_frequency(ds, np.array([0, 6]), ["a"])


def test_too_short_to_infer():
    with pytest.raises(InputError, match="at least 3 rows"):
        infer_frequency(pl.Series([1, 2]), np.array([0, 2]), ["a"])
