"""Curves as inline SVG: what is drawn of a run, and where each line goes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[float, float]
Row = Mapping[str, Any]

WIDTH, HEIGHT = 600, 200
# A line has no more points than a screen can show: of each stretch the lowest and the highest stay.
MOST_POINTS = 1200
NUM_TICKS = 5
SMALLEST = 1e-300  # what is closer to zero has no more digits to draw


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: SVG coordinates of each unbroken piece, and its last value. colour: a number from 0."""

    name: str
    colour: int
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: where it is, in percent from the left or the top, and its label."""

    percent: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: its lines in WIDTH x HEIGHT, the marks on its axes, and the x at which the run was started again."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    restarts: tuple[float, ...] = ()


def make_chart(
    title: str, x_label: str, series: Mapping[str, Sequence[Point]], *, restarts: Iterable[float] = ()
) -> Chart | None:
    """Return the chart of named series of (x, y); a y that is not finite breaks its line. None if there is no point."""
    points = [point for line in series.values() for point in line if math.isfinite(point[1])]
    if not points:
        return None
    x_ticks = ticks(min(0.0, *(x for x, _ in points)), max(x for x, _ in points))
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    left, right, low, high = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]
    right = max(x for x, _ in points) or right

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round((x - left) / (right - left) * WIDTH, 1),
            round((high - y) / (high - low) * HEIGHT, 1),
        )

    lines = []
    for colour, (name, line) in enumerate(series.items()):
        pieces = [[place(*point) for point in thin(piece)] for piece in unbroken(line)]
        known = [y for _, y in line if math.isfinite(y)]
        if known:
            lines.append(
                Line(
                    name=name,
                    colour=colour,
                    pieces=tuple(" ".join(f"{x},{y}" for x, y in piece) for piece in pieces),
                    dots=tuple(point for piece in pieces for point in piece)
                    if len(known) <= 30
                    else (pieces[-1][-1],),
                    last=number(known[-1]),
                )
            )
    return Chart(
        title=title,
        x_label=x_label,
        lines=tuple(lines),
        x_ticks=tuple(
            Tick(100 * (x - left) / (right - left), number(x)) for x in x_ticks if left <= x <= right
        ),
        y_ticks=tuple(Tick(100 * (high - y) / (high - low), number(y)) for y in y_ticks),
        restarts=tuple(place(x, low)[0] for x in restarts if left < x <= right),
    )


def unbroken(line: Sequence[Point]) -> list[list[Point]]:
    """Return the stretches of a line between points that are not finite."""
    pieces: list[list[Point]] = [[]]
    for x, y in line:
        if math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def thin(line: Sequence[Point]) -> list[Point]:
    """Return a line with at most MOST_POINTS points: of equal stretches the lowest and the highest, so peaks stay."""
    if len(line) <= MOST_POINTS:
        return list(line)
    length = math.ceil(2 * len(line) / MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(line), length):
        stretch = line[start : start + length]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers that enclose a range, about NUM_TICKS of them: steps of 1, 2 or 5 times a power of ten."""
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-9 * largest, SMALLEST):  # one value, as far as a chart and a float can tell
        margin = largest / 2 if largest > SMALLEST else 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def number(value: float) -> str:
    """Return a number for an axis or a label: 1234567 is 1.23M, 0.00002 is 2e-05."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}" if suffix != "k" else f"{value / 1e3:.3g}k"
    return f"{value:.4g}"


def values(rows: Sequence[Row], key: str, x: Sequence[float] | None = None) -> list[Point]:
    """Return (step or `x`, value) of a metric; one that was not finite when it was written is infinite."""
    places = x if x is not None else [float(row["step"]) for row in rows]
    return [
        (place, math.inf if row[key] is None else float(row[key]))
        for place, row in zip(places, rows, strict=True)
        if key in row
    ]


def training_hours(rows: Sequence[Row]) -> list[float]:
    """Return the hours of training up to each line; steps that were not logged took as long as the next that was."""
    hours, total, step = [], 0.0, 0
    for row in rows:
        total += (row["step"] - step) * float(row.get("time/step_seconds") or 0.0) / 3600
        step = row["step"]
        hours.append(total)
    return hours


def run_charts(rows: Sequence[Row], restarts: Sequence[float]) -> list[Chart]:
    """Return the charts of a run's metrics; restarts: the steps after which it was started again."""
    splits = sorted(
        {key for row in rows for key in row if key.count("/") == 1 and key.endswith("/loss")} - {"train/loss"}
    )
    losses = {"train": values(rows, "train/loss")}
    losses |= {key.removesuffix("/loss"): values(rows, key) for key in splits}
    accuracies = {name: values(rows, f"{name}/token_accuracy") for name in losses}  # in the same colours
    hours = training_hours(rows)
    speeds = {
        name: values(rows, f"speed/{key}", hours)
        for name, key in (
            ("all tokens", "tokens_per_second"),
            ("target tokens", "target_tokens_per_second"),
        )
    }
    parts = ("step", "forward", "backward", "optimizer", "data", "save")
    memory = {"host of rank 0": "memory/host_gib", "device of rank 0": "memory/device_peak_gib"}
    found = [
        make_chart("loss", "step", losses, restarts=restarts),
        make_chart("token accuracy", "step", accuracies, restarts=restarts),
        make_chart("learning rate", "step", {"learning rate": values(rows, "train/lr")}, restarts=restarts),
        make_chart(
            "gradient norm, before clipping",
            "step",
            {"gradient norm": values(rows, "train/grad_norm")},
            restarts=restarts,
        ),
        make_chart("tokens per second", "hours of training", speeds),
        make_chart(
            "seconds of a step on rank 0, by part",
            "step",
            {part: values(rows, f"time/{part}_seconds") for part in parts},
            restarts=restarts,
        ),
        make_chart(
            "memory (GiB)",
            "step",
            {name: values(rows, key) for name, key in memory.items()},
            restarts=restarts,
        ),
    ]
    return [chart for chart in found if chart is not None]
