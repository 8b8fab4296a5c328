import pytest

from seqkit.report.curve import plot_learning

HEADER = "step,tokens,seconds,length,learning_rate,train_bits,held_out_bits\n"
ROWS = "1,1000,0.5,32,0.01,2.5,2.4\n2,2000,1.0,64,0.005,1.9,1.95\n"


@pytest.mark.parametrize(("rows", "words"), [(ROWS, ["held out", "training", "bar (1.800)", "64"]), ("", ["nothing"])])
def test_lines_bars_and_lengths_are_drawn(tmp_path, rows, words):
    (tmp_path / "history.csv").write_text(HEADER + rows)
    files = plot_learning(tmp_path / "curve", tmp_path / "history.csv", {"bar": 1.8})
    assert [path.name for path in files] == ["curve.png", "curve.svg"]
    text = files[1].read_text()
    assert all(word in text for word in words)
