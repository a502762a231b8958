"""What `shardtune plan` prints: memory by tier and kind, the ds_configs, steps, time and checkpoints."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.plan.choose import Candidate, choose
from training.plan.duration import Duration
from training.plan.plan import GIB, TIER_WORDS, TIERS, Plan


def gib(size: float) -> str:
    """Return bytes as GiB, with three digits where they are few."""
    value = size / GIB
    return f"{value:,.1f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.3f}"


def print_plan(own: Candidate, found: Sequence[Candidate], took: Duration, console: Console) -> None:
    """Print the plan of the run's own ds_config, then what all of `found` would do."""
    plan = own.plan
    assert plan is not None
    _say(console, f"{plan.parameters / 1e6:,.1f} M weights, {plan.trained / 1e6:,.1f} M of them trained")
    _say(
        console,
        f"{plan.ranks.size} ranks ({plan.ranks.nodes} nodes x {plan.ranks.per_node}"
        f"{' GPUs' if plan.ranks.on_gpu else ' CPU ranks'}); a forward takes {plan.micro_packs} packs: up to "
        f"{plan.row_tokens:,} tokens, {plan.row_targets:,} of them targets; a step is {plan.accumulation} of them",
    )
    console.print(memory_table(plan, title=f"memory with {own.path.name}"))
    for line in verdicts(plan):
        _say(console, line)
    if len(found) > 1:
        console.print(candidate_table(found))
    chosen = choose(found)
    if chosen is not None and chosen.plan is not None:
        _say(
            console, f"would choose {chosen.path}: the fastest that fits; up to micro_packs {chosen.largest}"
        )
    elif any(item.largest is not None for item in found):
        _say(
            console,
            "no ds_config here fits: take more ranks, fewer packs in a forward, shorter packs, or an adapter",
        )
    for line in time_lines(plan, took):
        _say(console, line)
    if plan.ranks.on_gpu:
        _say(console, "The figures for a GPU are arithmetic: they were not measured on a GPU.")


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def memory_table(plan: Plan, *, title: str) -> Table:
    """Return the bytes on each tier by kind; of the moment at which a rank needs most."""
    table = Table(title=title)
    table.add_column("tier")
    table.add_column("kind")
    table.add_column("GiB", justify="right")
    table.add_column("what")
    for tier in TIERS:
        needs = [need for need in plan.needs if need.tier == tier and need.bytes]
        if not needs:
            continue
        for number, need in enumerate(needs):
            table.add_row(TIER_WORDS[tier] if number == 0 else "", need.kind, gib(need.bytes), need.what)
        table.add_row("", "all", gib(plan.needed(tier)), "", end_section=True)
    table.caption = f"at its highest, {plan.moment}"
    return table


def verdicts(plan: Plan) -> list[str]:
    """Return for each tier that is needed whether there is enough of it."""
    lines = []
    for tier in TIERS:
        needed, size = plan.needed(tier), plan.tiers.size(tier)
        if not needed:
            continue
        if size is None:
            lines.append(f"{TIER_WORDS[tier]}: needs {gib(needed)} GiB; what there is was not stated")
        elif needed <= size:
            lines.append(f"{TIER_WORDS[tier]}: fits, {gib(needed)} GiB of {gib(size)} GiB")
    if plan.misfit is not None:
        lines.append(f"does not fit: {plan.misfit}")
    return lines


def candidate_table(found: Sequence[Candidate]) -> Table:
    """Return a row for each ds_config, the fastest first."""
    table = Table(title="ds_configs, the fastest first (GiB)")
    table.add_column("ds_config")
    for name in ("GPU", "host", "NVMe"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    table.add_column("largest micro_packs", justify="right")
    for item in found:
        if item.plan is None:
            table.add_row(item.path.name, "", "", "", Text(item.mistake), "")
            continue
        largest = "?" if item.largest is None else str(item.largest or "none")
        fits = "no" if not item.plan.fits else "?" if item.largest is None else "yes"
        table.add_row(item.path.name, *(gib(item.plan.needed(tier)) for tier in TIERS), fits, largest)
    return table


def time_lines(plan: Plan, took: Duration) -> list[str]:
    """Return steps, hours and checkpoints as lines."""
    steps = "unknown, without shards" if plan.num_steps is None else f"{plan.num_steps:,}"
    lines = [
        f"steps: {steps}, of about {plan.tokens_per_step:,.0f} tokens and {plan.flops_per_step:.3g} operations"
    ]
    if took.step_seconds is not None:
        whole = "" if took.run_seconds is None else f", {took.run_seconds / 3600:,.2f} hours in all"
        lines.append(f"time: {took.step_seconds:,.3g} s a step{whole}")
    else:
        lines.append(
            "time: unknown; state --tokens-per-second, or --calibrate with the folder of an earlier run"
        )
    saves = "" if took.save_seconds is None else f", {took.save_seconds:,.3g} s a save"
    lines.append(f"checkpoint: {gib(plan.checkpoint_bytes)} GiB{saves}")
    if took.source:
        lines.append(f"from {took.source}")
    return lines


def as_json(own: Candidate, found: Sequence[Candidate], took: Duration) -> str:
    """Return all of it for programs; sizes in bytes, times in seconds."""
    chosen = choose(found)
    return json.dumps(
        {
            "ds_config": str(own.path),
            **_plan_fields(own),
            "duration": asdict(took),
            "chosen": None if chosen is None else str(chosen.path),
            "ds_configs": {str(item.path): _plan_fields(item) for item in found},
        },
        indent=2,
    )


def _plan_fields(item: Candidate) -> dict[str, Any]:
    if item.plan is None:
        return {"mistake": item.mistake}
    fields = asdict(item.plan)
    misfit = item.plan.misfit
    return fields | {
        "needed": {tier: item.plan.needed(tier) for tier in TIERS},
        "fits": item.plan.fits,
        "misfit": None if misfit is None else asdict(misfit) | {"text": str(misfit)},
        "largest_micro_packs": item.largest,
    }
