import io
import math

import pytest

from seqkit.report import table as t
from seqkit.tasks.metrics import Estimate

NAN = math.nan


def example():
    estimates = {
        "seqkit": {"auroc": Estimate(0.8612, 0.8401, 0.8799, 90, 1000), "mcc": Estimate(0.5, NAN, NAN, 1, 0)},
        "CADD": {"auroc": Estimate(NAN, NAN, NAN, 90, 0, "all 7 labels are 1")},
    }
    verdicts = {"CADD": "level"}
    columns = {"auroc": "AUROC", "mcc": "MCC"}
    return t.metric_table(estimates, columns, title="Test rows", note="Bootstrap.", verdicts=verdicts)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_cells():
    assert t.cell(0.8612, 0.84, 0.88) == "0.861 [0.840, 0.880]"
    assert t.cell(0.8612, NAN, NAN) == "0.861"
    assert t.cell(NAN, NAN, NAN) == "undefined"


def test_plain_is_aligned_and_gives_reasons():
    assert t.plain(example()).splitlines() == [
        "Test rows",
        "method  AUROC                 MCC    against the first",
        "------  --------------------  -----  -----------------",
        "seqkit  0.861 [0.840, 0.880]  0.500",
        "CADD    undefined                    level",
        "Bootstrap. Undefined: all 7 labels are 1.",
    ]


def test_markdown():
    lines = t.markdown(example()).splitlines()
    assert lines[2:5] == [
        "| method | AUROC | MCC | against the first |",
        "| --- | ---: | ---: | ---: |",
        "| seqkit | 0.861 [0.840, 0.880] | 0.500 |  |",
    ]
    assert t.markdown(t.Table("", ("a|b",), ())).startswith("| a\\|b |")


def test_a_pipe_gets_plain_text():
    stream = io.StringIO()
    t.show(example(), stream)
    assert stream.getvalue() == t.plain(example())


def test_standard_output_is_the_default(capsys):
    t.show(example())
    assert capsys.readouterr().out == t.plain(example())


@pytest.mark.parametrize("columns", ["100", "60"])
def test_a_terminal_gets_a_frame_with_every_number(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    t.show(example(), stream)
    text = stream.getvalue()
    for part in ("seqkit", "0.861", "[0.840,", "0.880]", "level", "┃"):
        assert part in text
