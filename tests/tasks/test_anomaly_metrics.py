import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from seqkit.errors import ShapeError
from seqkit.tasks.anomaly_metrics import (
    event_curve,
    event_point,
    events_of,
    range_area,
    recall_at,
    volume_under_surface,
    windows_of,
)

WINDOWS = [(10, 20), (50, 60)]
COUNT = {"gap": 5, "steps_per_month": 40.0}


def scores(**at):
    values = np.zeros(100)
    for step, value in at.items():
        values[int(step[1:])] = value
    return values


def test_events_are_runs_with_a_gap():
    assert [events_of(t, 5) for t in ([], [3], [3, 8], [3, 9], [1, 2, 3, 40, 44, 90])] == [0, 1, 1, 2, 3]
    assert windows_of([0, 1, 1, 0, 0, 1]) == [(1, 3), (5, 6)]


def test_one_threshold_by_hand():
    values = scores(_12=9, _13=9, _30=9, _33=9, _70=9, _55=3)
    point = event_point(values, WINDOWS, 5, **COUNT)
    assert (point.recall, point.false_events, point.false_points) == (0.5, 2, 3)
    assert point.false_per_month == pytest.approx(2 / (80 / 40))


def test_an_alarm_does_not_mark_its_window():
    """Point adjustment would; here one alarm at a window's end changes the areas by one point alone."""
    lone = scores(_19=1)
    assert range_area(lone, WINDOWS).pr < 0.3
    assert event_point(lone, WINDOWS, 0.5, **COUNT).recall == 0.5


def test_curve_by_hand():
    values = scores(_12=9, _30=7, _55=5, _80=3)
    curve = event_curve(values, WINDOWS, **COUNT)
    assert [(p.recall, p.false_events) for p in curve] == [(0.5, 0), (1.0, 1)]
    assert (recall_at(curve, 0.0), recall_at(curve, 0.5), recall_at(curve[1:], 0.0)) == (0.5, 1.0, 0.0)


def test_a_start_excludes_what_lies_before():
    values = scores(_12=9, _5=9, _55=5)
    curve = event_curve(values, WINDOWS, start=25, **COUNT)
    assert [(p.recall, p.false_events) for p in curve] == [(1.0, 0)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_one_window_without_buffer_is_the_usual_roc_above_chance(seed):
    """With one window and every threshold, recall counts only once the window is touched, as in the plain ROC."""
    rng = np.random.default_rng(seed)
    values, labels = rng.normal(size=200), np.zeros(200)
    labels[60:90] = 1
    plain = roc_auc_score(labels, values)
    assert range_area(values, [(60, 90)]).roc == pytest.approx(plain, abs=0.01)


def test_a_perfect_score_has_the_areas_of_one():
    values = np.zeros(300)
    values[100:130] = 1
    area = range_area(values, [(100, 130)])
    assert area.roc == pytest.approx(1)
    assert area.pr == pytest.approx(1)


def test_a_buffer_forgives_a_near_miss():
    values = np.zeros(300)
    values[95:100] = 1  # five steps early
    strict, lenient = (range_area(values, [(100, 130)], buffer).pr for buffer in (0, 40))
    assert lenient > strict + 0.05


def test_a_random_score_stays_at_chance():
    rng = np.random.default_rng(0)
    windows = [(i, i + 50) for i in range(100, 5000, 500)]
    area = volume_under_surface(rng.normal(size=5000), windows, 20)
    assert 0.4 < area.roc < 0.6
    assert area.pr < 0.2


def test_soft_labels_by_hand():
    """One window of 2 steps, buffer 4: labels 2 steps around are sqrt(1 - d / 4)."""
    values = np.array([0.0, 1, 2, 5, 4, 3, 0, 0])
    soft = np.sqrt([0.5, 0.75])
    mass = (2 + 2 + 2 * soft.sum()) / 2
    found = np.array([1, 2, 2 + soft[1], 2 + 2 * soft[1], 2 + soft[1] * 2 + soft[0], 2 + 2 * soft.sum()])
    recall = np.minimum(found / mass, 1)  # one window, touched by the first
    taken = np.array([1, 2, 3, 4, 5, 8])
    expected = np.sum(np.diff(np.concatenate([[0], recall])) * found / taken)
    assert range_area(values, [(3, 5)], 4).pr == pytest.approx(expected)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ShapeError, match="windows"):
        range_area(np.zeros(5), [])
    with pytest.raises(ShapeError, match="NaN"):
        range_area(np.array([0, np.nan]), [(0, 1)])
