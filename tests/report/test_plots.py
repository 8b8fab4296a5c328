import io
import itertools

import numpy as np
import pytest
from PIL import Image

from seqkit.report import figures, ranking, reliability, training, variants

ROWS = 240


def sample():
    rng = np.random.default_rng(0)
    labels = (np.arange(ROWS) % 4 == 0).astype(float)
    probability = 1 / (1 + np.exp(-(rng.normal(size=ROWS) + 2 * labels - 1.5)))
    return rng, labels, probability


def draw_ranking(path):
    rng, labels, p = sample()
    others = {f"method number {i}": p + rng.normal(scale=0.3, size=ROWS) for i in range(7)}
    return ranking.plot_ranking(path, labels, {"seqkit": p, **others})


def draw_confusion(path):
    _, labels, p = sample()
    return ranking.plot_confusion(path, labels, p > 0.4, ("FUNC or INT", "LOF"), title="Test rows at 0.40")


def draw_confusion_of_many(path):
    rng = np.random.default_rng(1)
    names = ["synonymous", "missense", "nonsense", "canonical splice", "intron"]
    return ranking.plot_confusion(path, rng.integers(0, 5, 99), rng.integers(0, 5, 99), names)


def draw_reliability(path):
    _, labels, p = sample()
    return reliability.plot_reliability(path, labels, {"before": np.sqrt(p), "calibrated": p})


def draw_consequence(path):
    rng, labels, p = sample()
    labels[::9] = np.nan
    kinds = rng.choice(["Missense", "Synonymous", "Canonical splice", ""], ROWS)
    return variants.plot_by_consequence(path, kinds, p, labels, threshold=0.4)


def draw_gene(path):
    _, labels, p = sample()
    positions = 41_197_000 + np.arange(ROWS) // 3 + 2_000 * (np.arange(ROWS) // 60)
    exons = [(41_197_000 + 2_020 * i + 5, 41_197_000 + 2_020 * i + 15, str(23 - i)) for i in range(4)]
    return variants.plot_along_gene(path, positions, p, labels, exons=exons, threshold=0.4)


def draw_scattered(path):
    _, labels, p = sample()
    return variants.plot_along_gene(path, np.arange(ROWS) * 1_000, p, labels)


def draw_training(path):
    history = [{"epoch": e, "val_loss": 1 / (e + 1), "val_auroc": 1 - 1 / (e + 2)} for e in range(9)]
    return training.plot_training(
        path, history, panels={"loss": ("val_loss",), "validation": ("val_auroc",)}, best_epoch=4
    )


PLOTS = [
    draw_ranking, draw_confusion, draw_confusion_of_many, draw_reliability, draw_consequence, draw_gene,
    draw_scattered, draw_training,
]  # fmt: skip


def texts_of(figure):
    """Every text that is drawn; ticks beyond the limits exist but are not."""
    for axes in figure.axes:
        texts = [axes.title, *axes.texts, *(axes.get_legend().get_texts() if axes.get_legend() else [])]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            texts += [axis.label, *(tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high)]
        yield from (text for text in texts if text.get_text().strip() and text.get_visible())


@pytest.fixture
def drawn(monkeypatch):
    """Figures in the order they were saved."""
    kept = []

    def keep(figure, path):
        kept.append(figure)
        return figures.save(figure, path)

    for module in (ranking, reliability, training, variants):
        monkeypatch.setattr(module, "save", keep)
    return kept


@pytest.mark.parametrize("draw", PLOTS)
def test_writes_a_bitmap_and_a_drawing_and_nothing_else(draw, tmp_path):
    png, svg = draw(tmp_path / "plot.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "plot.svg"]


@pytest.mark.parametrize("draw", PLOTS)
def test_text_lies_inside_the_figure_and_does_not_overlap(draw, tmp_path, drawn):
    draw(tmp_path / "plot")
    (figure,) = drawn
    figure.draw_without_rendering()  # saving used another resolution, and places of labels are kept in pixels
    width, height = figure.get_size_inches() * figure.dpi
    shown = [(text, text.get_window_extent()) for text in texts_of(figure)]
    for text, box in shown:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    level = [(t, box) for t, box in shown if t.get_rotation() % 90 == 0]
    for (a, left), (b, right) in itertools.combinations(level, 2):
        apart = left.x1 <= right.x0 or right.x1 <= left.x0 or left.y1 <= right.y0 or right.y1 <= left.y0
        assert apart, (a.get_text(), b.get_text())


@pytest.mark.parametrize("draw", PLOTS)
def test_same_data_same_bytes(draw, tmp_path):
    first = [path.read_bytes() for path in draw(tmp_path / "a")]
    assert first == [path.read_bytes() for path in draw(tmp_path / "b")]


def test_a_notebook_gets_the_picture_alone_and_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _ = draw_reliability(tmp_path / "whole")
    whole, small = file.read_bytes(), figures.png(draw_reliability)
    assert len(small) < len(whole)
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (whole, small)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1
    assert len(list(tmp_path.iterdir())) == 2


def test_ranking_names_each_method_with_its_area(tmp_path):
    labels, scores = [0, 0, 1, 1, np.nan], {"good": [1, 2, 3, 4, np.nan], "bad": [4, 3, 2, 1, 9]}
    _, svg = ranking.plot_ranking(tmp_path / "plot", labels, scores)
    text = svg.read_text()
    assert "good (1.000)" in text
    assert "bad (.000)" in text
    assert "chance (.500)" in text


def test_area_under_the_drawn_steps_is_the_average_precision(tmp_path, drawn):
    _, labels, p = sample()
    ranking.plot_ranking(tmp_path / "plot", labels, {"seqkit": np.round(p, 1)})
    line = drawn[0].axes[1].lines[0]
    recall, precision = line.get_data()
    assert line.get_drawstyle() == "steps-post"
    area = float((-np.diff(recall) * precision[:-1]).sum())
    assert f"({area:.3f})".replace("0.", ".") in line.get_label()


def test_one_class_says_so(tmp_path):
    _, svg = ranking.plot_ranking(tmp_path / "plot", [1, 1, np.nan], {"seqkit": [0.1, 0.2, 0.3]})
    assert "one class only" in svg.read_text()


def test_confusion_counts(tmp_path):
    _, svg = ranking.plot_confusion(tmp_path / "plot", [0, 0, 0, 1, np.nan], [0, 0, 1, 1, 1], ("no", "yes"))
    text = svg.read_text()
    for share in ("67%", "33%", "0%", "100%"):
        assert share in text


def test_reliability_points_by_hand(tmp_path, drawn):
    reliability.plot_reliability(tmp_path / "plot", [0, 1, 1, np.nan], {"p": [0.12, 0.18, 1.0, 0.5]})
    points = drawn[0].axes[0].containers[0].lines[0].get_data()
    np.testing.assert_allclose(points, [[0.15, 1.0], [0.5, 1.0]])


def test_gene_axis_is_cut_where_nothing_was_measured(tmp_path, drawn):
    positions = np.r_[np.arange(100), 10_000 + np.arange(100)]
    variants.plot_along_gene(
        tmp_path / "plot", positions, np.full(200, 0.5), np.zeros(200), exons=[(10_010, 10_020, "2")]
    )
    axes = drawn[0].axes[0]
    left, right = axes.get_xlim()
    assert right - left < 400
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "10,001"]
    (box,) = axes.patches
    assert box.get_width() == 10
    assert box.get_x() == 100 + variants.CUT_WIDTH + 10


@pytest.mark.parametrize("count", [0, 1])
def test_almost_no_variants(count, tmp_path):
    none = np.zeros(count)
    variants.plot_along_gene(tmp_path / "gene", none, none, none)
    variants.plot_by_consequence(tmp_path / "kinds", none.astype(str), none, none)
    reliability.plot_reliability(tmp_path / "reliability", none, {"p": none})


def test_training_curves_from_csv_with_empty_cells(tmp_path, drawn):
    table = tmp_path / "metrics.csv"
    table.write_text("epoch,step,train_loss,val_loss\n0,9,0.9,\n0,9,,0.8\n1,19,0.5,\n1,19,,nan\n")
    training.plot_training(tmp_path / "plot", table, panels={"loss": ("train_loss", "val_loss"), "other": ("none",)})
    train, validation = drawn[0].axes[0].lines
    np.testing.assert_array_equal(train.get_data(), [[0, 1], [0.9, 0.5]])
    np.testing.assert_array_equal(validation.get_data(), [[0], [0.8]])
    assert drawn[0].axes[1].texts[0].get_text() == "nothing was logged"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    figure, _ = figures.new_figure(2, 2)
    (tmp_path / "plot.png").write_bytes(b"old")
    monkeypatch.setattr(figure, "savefig", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.save(figure, tmp_path / "plot.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    assert (tmp_path / "plot.png").read_bytes() == b"old"
