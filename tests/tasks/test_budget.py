import pytest

from seqkit.errors import ConfigError
from seqkit.tasks.budget import Budget, cosine_after_warmup, seconds_of


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_whichever_limit_is_nearer_counts():
    clock = Clock()
    budget = Budget(10, 60.0, clock)
    assert budget.seconds == 0.0
    budget.start()
    assert budget.progress(5) == 0.5
    clock.now += 45
    assert budget.progress(5) == 0.75
    assert budget.progress(9) == 0.9
    clock.now += 100
    assert budget.progress(0) == 1.0


def test_a_resumed_clock_counts_what_was_used():
    clock = Clock()
    budget = Budget(None, 60.0, clock)
    budget.resume(30.0)
    budget.start()
    clock.now += 15
    assert (budget.seconds, budget.progress(10**9)) == (45.0, 0.75)


def test_no_limit_is_refused():
    with pytest.raises(ConfigError, match="max_time"):
        Budget(None)


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("0:30", 30), ("00:04:00", 240), ("1:00:00:01", 86_401), ("00:00:1.5", 1.5)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1:x", "0:0", "-1:00", "1:2:3:4:5"])
def test_what_is_no_duration(text):
    with pytest.raises(ConfigError, match="HH:MM:SS"):
        seconds_of(text)


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, 0.5), (1.0, 0.0)])
def test_rate_rises_then_falls_to_zero(progress, factor):
    assert cosine_after_warmup(progress, 0.2) == pytest.approx(factor)


def test_no_warmup_starts_at_the_peak():
    assert cosine_after_warmup(0.0, 0.0) == 1.0
