"""Speed and memory of the training half, in one command: tables on the terminal, the numbers in a JSON file.

    python benchmarks/train.py                 this trainer, a bare DeepSpeed loop and TRL, side by side, on CPU ranks
    python benchmarks/train.py --tiers         this trainer with each offload tier, on CPU ranks
    python benchmarks/train.py --gpu           the large cases; what a machine with a GPU does by itself
    python benchmarks/train.py --gpu --list    what memory each of these needs, by arithmetic; nothing is run

Models are configs with drawn weights, packs are made of invented rows: nothing is downloaded. docs/performance.md says
what is compared and how to read it. `--scale tiny` runs the large cases' way with a model of no size.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from benchmarks.trainers.cases import GPU_CASES, GPU_SEQ_LEN, SMALL, TIERS, TINY, Case, tier_cases
from benchmarks.trainers.project import Project
from benchmarks.trainers.tables import PARTS, case_table, comparison_table, needs_table
from benchmarks.trainers.turns import Racer, Step, TrainerError, race
from data_tools.errors import ShardtuneError
from training.launch import visible_gpus
from training.metrics import read_metrics

Result = dict[str, Any]

# Name in the tables: the worker and its environment. The first is what the others are held against.
COMPARED: dict[str, tuple[str, dict[str, str]]] = {
    "shardtune": ("shardtune", {}),
    "bare": ("bare", {}),
    "bare at targets": ("bare", {"BENCHMARK_HEAD": "targets"}),
    "TRL": ("trl_sft", {}),
    "TRL our attention": ("trl_sft", {"BENCHMARK_ATTENTION": "packed"}),
}
# Dense bf16 TFLOP/s, by the vendor's datasheets.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0}
WARM_UP = 2  # rounds of a comparison that are not counted


def describe_machine() -> Result:
    """Return what the figures depend on, in general terms."""
    import torch

    packages = ("torch", "deepspeed", "transformers", "trl")
    found: Result = {"cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    if visible_gpus():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def peak_tflops(machine: Result) -> float | None:
    """Return what the device can do at most; None where that is not known, as on a CPU."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in machine.get("gpu", "")), None)


# Summaries


def summarise(
    steps: Sequence[Step], case: Case, project: Project, *, skip: int, peak: float | None, num_ranks: int
) -> Result:
    """Return a trainer's speed from its steps, the first `skip` of them left out; medians."""
    sizes = project.step_sizes(case.packs_per_step, len(steps))
    rows = list(zip(steps, sizes, strict=True))[skip:]
    if not rows:
        return {"steps": 0}
    found: Result = {
        "steps": len(rows),
        "step_seconds": statistics.median(step.seconds for step, _ in rows),
        "cpu_seconds": statistics.median(step.cpu_seconds for step, _ in rows),
        "tokens_per_second": statistics.median(tokens / step.seconds for step, (tokens, _) in rows),
        "tflops": statistics.median(
            case.shape.operations(*size) / step.seconds / 1e12 for step, size in rows
        ),
        "tokens_per_step": statistics.median(tokens for _, (tokens, _) in rows),
        "all_seconds": [round(step.seconds, 4) for step in steps],
        "all_cpu_seconds": [round(step.cpu_seconds, 2) for step in steps],
    }
    if peak is not None:
        found["mfu"] = found["tflops"] / peak / num_ranks
    return found


def step_parts(run_folder: Path, *, skip: int, every: int | None) -> Result:
    """Return the medians of the parts of this trainer's steps, and the mean stall of a save, from its own metrics."""
    rows = read_metrics(run_folder)
    found: Result = {}
    for name in PARTS:
        values = [row[f"time/{name}_seconds"] for row in rows[skip:] if f"time/{name}_seconds" in row]
        if values:
            found[f"{name}_seconds"] = statistics.median(values)
    # A save's stall stands in the rows of the steps after it.
    saves = (len(rows) - 1) // every if every else 0
    if saves:
        found["save_stall_seconds"] = sum(row["time/save_seconds"] for row in rows) / saves
    return found


def ratios(first: Sequence[Step], other: Sequence[Step], *, skip: int) -> Result:
    """Return how many times as fast the first trainer was, round by round: median and quartiles, by both clocks."""
    found: Result = {}
    for clock in ("seconds", "cpu_seconds"):
        rounds = [getattr(b, clock) / getattr(a, clock) for a, b in zip(first, other, strict=False)][skip:]
        if len(rounds) >= 2:
            low, middle, high = statistics.quantiles(rounds, n=4, method="inclusive")
            found[clock] = {"median": middle, "low": low, "high": high}
    return found


# Measuring


def compare(folder: Path, names: Sequence[str], options: argparse.Namespace) -> Result:
    """Let the trainers take turns on the same packs; return the speed of each, and the first one's ratio to each."""
    case = Case("compared", SMALL, options.tier, 4, 1)
    project = Project.make(folder, seq_len=512, num_tokens=150_000, vocabulary=SMALL.vocabulary)
    steps: dict[str, list[Step]] = {}
    found: Result = {"documents": project.lengths(), "trainers": {}, "ratios": {}}
    with contextlib.ExitStack() as stack:
        racers: dict[str, tuple[Racer, Path]] = {}
        for name in names:
            module, env = COMPARED[name]
            racer, run = start(case, project, name, num_ranks=options.ranks, module=module, env=env)
            racers[name] = stack.enter_context(racer), run
        deadline = time.monotonic() + 60 * options.minutes
        try:
            race([racer for racer, _ in racers.values()], steps, rounds=options.rounds, deadline=deadline)
        except TrainerError as error:
            found["error"] = f"{error}; what was measured until then follows"
        if min(map(len, steps.values()), default=0) <= WARM_UP:
            return found
        for name, (racer, run) in racers.items():
            taken = steps[racer.name]
            summary = summarise(taken, case, project, skip=WARM_UP, peak=None, num_ranks=options.ranks)
            if name == "shardtune":
                summary |= step_parts(run, skip=WARM_UP, every=None)
            found["trainers"][name] = summary | {"host_peak_gib": racer.host_peak_gib}
            found["ratios"][name] = ratios(steps[racers[names[0]][0].name], taken, skip=WARM_UP)
    return found


def start(
    case: Case,
    project: Project,
    name: str,
    *,
    num_ranks: int | None,
    module: str,
    env: dict[str, str],
    **settings: Any,
) -> tuple[Racer, Path]:
    """Start a trainer on a case; return it and its run folder."""
    racer, run = project.start(
        name,
        case.shape,
        case.ds_config(project.folder / "nvme"),
        module=module,
        env=env,
        num_ranks=num_ranks,
        batch={"packs_per_step": case.packs_per_step, "micro_packs": case.micro_packs},
        optim={"lr": 1e-5, "schedule": "constant", "warmup": 0, "states": case.states},
        **settings,
    )
    return racer, run.path


def measure(
    case: Case,
    project: Project,
    *,
    num_ranks: int | None,
    limit: float,
    peak: float | None,
    every: int | None,
) -> Result:
    """Run one case for at most `limit` seconds; what it came to until then counts. every: steps between saves."""
    found: Result = {"case": case.name, "needs_gib": case.memory_gib(project.seq_len)}
    steps: dict[str, list[Step]] = {}
    nvme = project.folder / "nvme"
    nvme.mkdir()
    settings: Result = {"save": {"every_steps": every, "keep": 1}} if every else {}
    try:
        racer, run = start(
            case, project, case.name, num_ranks=num_ranks, module=case.module, env=dict(case.env), **settings
        )
        with racer:
            try:
                race([racer], steps, rounds=case.rounds, deadline=time.monotonic() + limit)
            except TrainerError as error:
                found["error"] = f"{error}; {last_line(run)}"
            ranks = num_ranks or 1
            taken = steps.get(racer.name, [])
            found |= summarise(taken, case, project, skip=1, peak=peak, num_ranks=ranks)
            found["host_peak_gib"] = racer.host_peak_gib
            found["device_peak_gib"] = racer.device_peak_gib
            found["nvme_gib"] = sum(p.stat().st_size for p in nvme.rglob("*") if p.is_file()) / 2**30
            if case.module == "shardtune" and taken:
                found |= step_parts(run, skip=1, every=every)
    except ShardtuneError as error:
        found["error"] = str(error)
    finally:
        shutil.rmtree(nvme)
        shutil.rmtree(project.folder / "runs", ignore_errors=True)  # the next case wants the disk
    return found


def last_line(run: Path) -> str:
    """Return the end of what a rank of a failed case wrote last."""
    logs = sorted((run / "logs").glob("*rank*.log"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(errors="replace").split("\n") if logs else []
    said = [line for line in lines if line.strip()]
    return f"the last line of its log: {said[-1][-300:]}" if said else "it has left no log"


def run_cases(
    cases: Sequence[Case],
    project: Project,
    options: argparse.Namespace,
    machine: Result,
    *,
    every: int | None,
) -> Iterator[Result]:
    """Yield what came of each case, within the time of the whole."""
    end = time.monotonic() + 60 * options.minutes
    on_gpu = "gpu" in machine
    for case in cases:
        left = end - time.monotonic()
        if left < min(case.limit_seconds, 60):
            yield {"case": case.name, "error": "left out: no time was left"}
            continue
        num_ranks = 1 if on_gpu else options.ranks
        limit = min(case.limit_seconds, left)
        yield measure(case, project, num_ranks=num_ranks, limit=limit, peak=peak_tflops(machine), every=every)


# The command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", action="store_true", help="what a machine without a GPU does by itself")
    what.add_argument("--tiers", action="store_true")
    what.add_argument("--gpu", action="store_true")
    parser.add_argument("--list", action="store_true", help="only print what the cases need")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--cases", nargs="*", default=[], help="only those whose name contains one of these")
    parser.add_argument("--trainers", nargs="*", default=list(COMPARED), choices=list(COMPARED))
    parser.add_argument("--tier", default="cpu", choices=list(TIERS), help="of the comparison")
    parser.add_argument("--rounds", type=int, default=16, help="steps of each trainer compared")
    parser.add_argument("--ranks", type=int, default=2, help="CPU ranks")
    parser.add_argument("--minutes", type=float, default=9.5, help="of the whole")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures, written after each case")
    options = parser.parse_args(arguments)
    if not (options.compare or options.tiers or options.gpu):
        options.gpu = bool(visible_gpus())
    return options


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the command line asks for."""
    cases = list(GPU_CASES if options.gpu else tier_cases())
    if not importlib.util.find_spec("trl"):
        cases = [case for case in cases if case.module != "trl_sft"]
    if options.scale == "tiny":
        cases = [
            replace(case, shape=replace(TINY, tied=case.shape.tied), packs_per_step=4, micro_packs=2)
            for case in cases
        ]
    return [case for case in cases if not options.cases or any(part in case.name for part in options.cases)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    options, console = parse(arguments), Console()
    if not sys.stdout.isatty():
        console.width = 160
    seq_len = GPU_SEQ_LEN if options.gpu and options.scale == "full" else 256
    if options.list:
        console.print(needs_table(chosen_cases(options), seq_len))
        return
    machine = describe_machine()
    found: Result = {"machine": machine, "command": sys.argv[1:]}

    def keep() -> None:
        if options.output:
            options.output.write_text(json.dumps(found, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.gpu or options.tiers:
            project = Project.make(folder, seq_len=seq_len, num_tokens=128 * seq_len, vocabulary=2048)
            rows = found["cases"] = []
            every = 3 if options.tiers else None
            for row in run_cases(chosen_cases(options), project, options, machine, every=every):
                rows.append(row)
                keep()
                console.print(case_table([row], row.get("error", "")))
            console.print(case_table(rows, "all cases"))
        else:
            names = [n for n in options.trainers if "TRL" not in n or importlib.util.find_spec("trl")]
            found |= compare(folder, names, options)
            keep()
            console.print(found.get("error", ""))
            console.print(comparison_table(found))


if __name__ == "__main__":
    main()
