import gzip
import sys

import numpy as np
import pytest

from seqkit.data.series import load_panel
from seqkit.errors import ConfigError, InputError

FORMAT = {"fs": 360, "units": ["mV", "mV"], "fmt": ["16", "16"], "adc_gain": [200, 200], "baseline": [0, 0]}


@pytest.fixture
def record(tmp_path):
    wfdb = pytest.importorskip("wfdb")
    signals = np.stack([np.arange(6) / 200, -np.arange(6) / 100], axis=1)
    signals[4, 1] = np.nan
    wfdb.wrsamp("two", p_signal=signals, sig_name=["MLII", "V5"], write_dir=str(tmp_path), **FORMAT)
    return tmp_path / "two.hea"


def test_a_record_is_a_series_a_signal_in_its_unit(record):
    panel = load_panel(record)
    assert panel.ids == ["MLII", "V5"]
    assert panel.ds.to_list() == [*range(6), *range(6)]
    assert str(panel.frequency) == "1"
    np.testing.assert_allclose(panel.y[:6], np.arange(6) / 200)
    assert np.flatnonzero(np.isnan(panel.y)).tolist() == [10]


def test_signals_of_one_name_are_told_apart(record):
    same = record.with_name("same.hea")
    same.write_text(record.read_text().replace("V5", "MLII"))
    assert load_panel(same).ids == ["MLII 0", "MLII 1"]


def test_a_missing_signal_file_is_one_line(record):
    record.with_name("two.dat").unlink()
    with pytest.raises(InputError, match="expected a readable WFDB record"):
        load_panel(record)


def test_without_the_extra_it_says_what_to_install(record, monkeypatch):
    monkeypatch.setitem(sys.modules, "wfdb", None)
    with pytest.raises(ConfigError, match=r"seqkit\[wfdb\]"):
        load_panel(record)


def test_record_100_equals_our_own_reading(shared_data, tmp_path):
    pytest.importorskip("wfdb")
    from seqkit.bench.series.files import ecg

    folder = shared_data / "mitbih-100-ecg"
    (tmp_path / "100.hea").write_bytes((folder / "100.hea").read_bytes())
    (tmp_path / "100.dat").write_bytes(gzip.decompress((folder / "100.dat.gz").read_bytes()))
    panel = load_panel(tmp_path / "100.hea")
    np.testing.assert_allclose(panel.y.reshape(2, -1), ecg(shared_data))
