"""The tables that `benchmarks/train.py` prints of its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.trainers.cases import Case

# How many times as fast as each of them this trainer shall be.
GOALS = {"bare": 0.97, "bare at targets": 0.97, "TRL": 1.0, "TRL our attention": 1.0}
PARTS = ("data", "forward", "backward", "optimizer")


def comparison_table(found: Mapping[str, Any]) -> Table:
    """Return the speed of each trainer, and how many times as fast the first one is."""
    table = Table(title="one step each by turns; ratio: how many times as fast shardtune is")
    table.add_column("trainer")
    for name in ("tokens/s", "step s", "CPU s", "ratio, clock", "ratio, CPU time", "goal", "host GiB"):
        table.add_column(name, justify="right")
    for name, row in found["trainers"].items():
        both = [found["ratios"][name].get(clock) for clock in ("seconds", "cpu_seconds")]
        spread = [f"{r['median']:.3f} ({r['low']:.2f}-{r['high']:.2f})" if r else "" for r in both]
        table.add_row(
            name,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['step_seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            *(spread if name in GOALS else ("", "")),
            f"{GOALS[name]:.2f}" if name in GOALS else "",
            f"{row['host_peak_gib']:.2f}",
        )
    return table


def case_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Return speed, parts of a step, and memory of each case."""
    table = Table(title=title)
    columns = {
        "tokens/s": ("tokens_per_second", "{:,.0f}"),
        "TFLOP/s": ("tflops", "{:.3g}"),
        "MFU": ("mfu", "{:.1%}"),
        "step s": ("step_seconds", "{:.2f}"),
        **{name: (f"{name}_seconds", "{:.2f}") for name in PARTS},
        "host GiB": ("host_peak_gib", "{:.1f}"),
        "device GiB": ("device_peak_gib", "{:.1f}"),
        "NVMe GiB": ("nvme_gib", "{:.1f}"),
        "save stall s": ("save_stall_seconds", "{:.2f}"),
    }
    table.add_column("case")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [form.format(row[key]) if key in row else "" for key, form in columns.values()]
        table.add_row(row["case"], *cells)
    return table


def needs_table(cases: Sequence[Case], seq_len: int) -> Table:
    """Return what each case needs by arithmetic."""
    table = Table(title="memory by arithmetic, GiB; one rank")
    for name in ("case", "parameters", "tokens a step", "device", "host", "NVMe", "at most s"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for case in cases:
        needs = case.memory_gib(seq_len)
        table.add_row(
            case.name,
            f"{case.shape.num_parameters / 1e9:.2f} G",
            f"{case.packs_per_step * seq_len:,}",
            *(f"{needs[where]:.1f}" for where in ("device", "host", "nvme")),
            str(case.limit_seconds),
        )
    return table
