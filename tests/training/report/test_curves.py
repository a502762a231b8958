"""Where lines and marks of a chart go."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from training.report.curves import (
    HEIGHT,
    MOST_POINTS,
    WIDTH,
    make_chart,
    number,
    run_charts,
    thin,
    ticks,
    training_hours,
    unbroken,
)

SIZES = st.floats(-1e9, 1e9, allow_nan=False)


@given(SIZES, SIZES)
@example(0.0, 5e-324)
@example(5e-324, 5e-324)
@example(1e9, math.nextafter(1e9, math.inf))
def test_marks_enclose_what_they_mark_and_are_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    marks = ticks(low, high)
    slack = 1e-6 * max(1e-300, high - low)
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))


def test_marks_are_round() -> None:
    assert ticks(0, 60) == [0, 20, 40, 60]
    assert [number(mark) for mark in ticks(0.0012, 0.0029)] == ["0.001", "0.0015", "0.002", "0.0025", "0.003"]
    assert [number(value) for value in (1234567, 20000, 0.00002, 5)] == ["1.23M", "20k", "2e-05", "5"]


def test_a_long_line_keeps_its_peaks() -> None:
    line = [(float(x), 1.0) for x in range(100_000)]
    line[54_321] = (54_321.0, 9.0)
    line[70_007] = (70_007.0, -3.0)
    kept = thin(line)
    assert len(kept) <= MOST_POINTS
    assert {(54_321.0, 9.0), (70_007.0, -3.0)} <= set(kept)
    assert kept == sorted(kept)


def test_what_is_not_finite_breaks_a_line() -> None:
    assert unbroken([(1, math.inf), (2, 1.0), (3, 2.0), (4, math.inf), (5, 3.0)]) == [
        [(2, 1.0), (3, 2.0)],
        [(5, 3.0)],
    ]
    chart = make_chart("loss", "step", {"a": [(0, 0.0), (1, math.inf), (2, 10.0)], "none": []})
    assert chart is not None
    (line,) = chart.lines
    assert line.pieces == (f"0.0,{HEIGHT:.1f}", f"{WIDTH:.1f},0.0")
    assert make_chart("loss", "step", {"a": [(1, math.inf)]}) is None


def test_a_restart_is_marked_where_it_was() -> None:
    chart = make_chart("loss", "step", {"a": [(0, 1.0), (10, 2.0)]}, restarts=[5])
    assert chart is not None
    assert chart.restarts == (WIDTH / 2,)


def test_steps_that_were_not_logged_count_as_time() -> None:
    rows = [{"step": 10, "time/step_seconds": 36.0}, {"step": 20, "time/step_seconds": 72.0}]
    assert training_hours(rows) == pytest.approx([0.1, 0.3])


def test_a_split_has_one_colour_in_all_charts() -> None:
    row = {"step": 1, "train/loss": 1.0, "validation/loss": 2.0, "validation/token_accuracy": 0.5}
    charts = {chart.title: chart for chart in run_charts([row], [])}
    (accuracy,) = charts["token accuracy"].lines
    assert accuracy.colour == next(line.colour for line in charts["loss"].lines if line.name == "validation")
