import math
from html.parser import HTMLParser

import numpy as np
import pytest

from seqkit.report.figures import new_figure, save
from seqkit.report.page import write_page
from seqkit.report.table import Table
from seqkit.report.thresholds import operating_points, threshold_for, threshold_table, wilson

LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, np.nan]
SCORES = [0.9, 0.8, 0.7, 0.2, 0.75, 0.3, 0.2, 0.1, 0.1, 0.5]


def test_counts_and_ratios_at_a_threshold():
    (point,) = operating_points(LABELS, SCORES, {"here": 0.7})
    assert point[1:] == (0.7, 3, 1, 4, 1)
    assert (point.sensitivity, point.specificity) == (0.75, 0.8)
    assert point.positive_ratio == pytest.approx(0.75 / 0.2)
    assert point.negative_ratio == pytest.approx(0.25 / 0.8)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.51, 0.75, 0.95, 1.0])
def test_chosen_thresholds_reach_their_share_and_no_neighbour_does_better(share):
    low = threshold_for(LABELS, SCORES, sensitivity=share)
    high = threshold_for(LABELS, SCORES, specificity=share)
    at_low, above, at_high, below = operating_points(
        LABELS, SCORES, {"a": low, "b": np.nextafter(low, 2), "c": high, "d": high - 1e-9}
    )
    assert at_low.sensitivity >= share > above.sensitivity
    assert at_high.specificity >= share > below.specificity or below.specificity == at_high.specificity


def test_no_false_call_and_no_class():
    table = threshold_table(operating_points([1, 0], [0.9, 0.1], {"clean": 0.5}))
    assert table.rows[0][-2:] == ("no false call", "0.00")
    empty = operating_points([1, 1], [0.9, 0.1], {"x": 0.5})[0]
    assert math.isnan(empty.specificity)
    assert math.isnan(empty.positive_ratio)
    assert math.isnan(threshold_for([1, 1], [0.9, 0.1], specificity=0.9))
    assert threshold_table([empty]).rows[0][4] == "undefined"


def test_wilson_against_the_published_example():
    # Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.scripts, self.images, self.text = [], [], 0, 0, ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.scripts += tag in ("script", "link", "iframe")
        self.images += tag == "img"
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    figure, axes = new_figure(2, 2)
    axes.plot([0, 1])
    image, _ = save(figure, tmp_path / "plot")
    table = Table(
        "Title <b>", ("method", "a & b"), (("ours", "0.5 [0.4, 0.6]"), ("<script>alert(1)</script>", "x")), "n"
    )
    write_page(
        tmp_path / "r.html", title="Run & report", lead="lead", tables=[table],
        figures=[(image, "a plot"), (tmp_path / "absent.png", "never drawn")], details={"seed": "0"},
    )  # fmt: skip
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    assert page.open == []
    assert page.scripts == 0
    assert page.images == 1
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in text.replace("http-equiv", "")
    assert "<script>alert(1)</script>" in page.text
    assert "never drawn" not in text
