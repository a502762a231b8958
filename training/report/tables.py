"""The tables of a run's report: plan against measured, starts, data, evaluations. Each is (head, rows) of text."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import SettingsError, ShardError, ShardtuneError
from data_tools.formats import get_format
from data_tools.shard_index import REJECTS_NAME, ROWS_NAME, Index, SourceInfo, SplitInfo, read_index
from data_tools.shards import open_shards
from training.config import RunConfig
from training.metrics import duration
from training.plan.plan import GIB, Plan, Ranks, Tiers, plan_run
from training.report.curves import number
from training.status.facts import RunFacts
from training.status.starts import Start

# The first steps of a process allocate and compile: no measure of speed.
FIRST_STEPS = 3
ENDS = ("done", "stopped", "failed", "stuck")


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its heading, or the reason why there is none."""

    title: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def plan_section(facts: RunFacts, ds_config: Mapping[str, Any]) -> Section:
    """Return what the plan said beside what was measured."""
    title = "Plan against measured"
    rows = facts.metrics
    start = next((start for start in reversed(facts.starts) if start.num_ranks is not None), None)
    if facts.config is None or not rows or start is None:
        return Section(title, note="The run has not trained yet.")
    on_gpu = any("memory/device_peak_gib" in row for row in rows)
    try:
        plan = plan_run(
            facts.config,
            ds_config,
            open_shards(facts.config.shards),
            _ranks(start, on_gpu=on_gpu),
            Tiers(),
        )
    except (ShardtuneError, OSError) as error:
        return Section(title, note=f"There is no plan: {' '.join(str(error).split())}")
    lines = _compare(plan, facts, on_gpu=on_gpu)
    note = f"The plan is that of {plan.ranks.size} ranks with the settings as they are now, at its highest moment "
    return Section(title, ("", "plan", "measured", ""), tuple(lines), note + f"({plan.moment}).")


def _ranks(start: Start, *, on_gpu: bool) -> Ranks:
    assert start.num_ranks is not None
    started = start.last("started") or {}
    count = started.get("nodes", 1)
    nodes = count if isinstance(count, int) and start.num_ranks % count == 0 else 1
    return Ranks(nodes=nodes, per_node=start.num_ranks // nodes, on_gpu=on_gpu)


def _compare(plan: Plan, facts: RunFacts, *, on_gpu: bool) -> Iterator[tuple[str, ...]]:
    rows = facts.metrics
    seconds = _median(rows, "time/step_seconds")
    tokens, flops = (
        _median_product(rows, key, "time/step_seconds")
        for key in ("speed/tokens_per_second", "speed/teraflops_per_second")
    )
    if plan.num_steps is not None:
        yield "steps", f"{plan.num_steps:,}", f"{rows[-1]['step']:,}", ""
    yield (
        "tokens a step",
        number(plan.tokens_per_step),
        _or_dash(tokens),
        _ratio(tokens, plan.tokens_per_step),
    )
    planned = plan.flops_per_step / 1e12
    yield "TFLOP a step", number(planned), _or_dash(flops), _ratio(flops, planned)
    if on_gpu:
        yield _memory("one GPU", plan.needed("gpu"), _most(rows, "memory/device_peak_gib"))
    host = _most(rows, "memory/host_gib")
    measured = None if host is None else host * plan.ranks.per_node
    yield _memory("host of a node, resident with mapped files, rank 0 × ranks", plan.needed("host"), measured)
    saved = facts.checkpoint
    yield _memory("a checkpoint", plan.checkpoint_bytes, None if saved is None else saved.num_bytes / GIB)
    if seconds is not None:
        yield "seconds a step", "–", f"{seconds:.3g}", ""


def _memory(what: str, planned: int, measured: float | None) -> tuple[str, ...]:
    return f"{what} (GiB)", f"{planned / GIB:.3g}", _or_dash(measured), _ratio(measured, planned / GIB)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def _ratio(measured: float | None, planned: float) -> str:
    return "" if measured is None or planned == 0 else f"{measured / planned:.0%} of the plan"


def _most(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    return max((row[key] for row in rows if row.get(key) is not None), default=None)


def _median(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    found = [row[key] for row in rows[FIRST_STEPS:] if row.get(key) is not None]
    return statistics.median(found) if found else None


def _median_product(rows: Sequence[Mapping[str, Any]], a: str, b: str) -> float | None:
    found = [row[a] * row[b] for row in rows[FIRST_STEPS:] if row.get(a) and row.get(b)]
    return statistics.median(found) if found else None


def starts_section(facts: RunFacts) -> Section:
    """Return a row for each start of the run: when, where, from which step, and how it ended."""
    rows = []
    for number_, start in enumerate(facts.starts, 1):
        training = start.last("training") or {}
        ended = next((event for event in reversed(start.events) if event["event"] in ENDS), None)
        said = str(ended.get("error", "")) if ended else ""
        rows.append(
            (
                str(number_),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.begin)),
                start.nodes or "–",
                start.job or "–",
                str(start.num_ranks or "–"),
                str(training.get("step", "–")),
                "–" if start.end is None else duration(start.end - start.begin),
                " ".join(filter(None, (ended["event"] if ended else "cut off, or going on", said))),
            )
        )
    head = ("", "began", "nodes", "job", "ranks", "from step", "took", "end")
    return Section("Starts", head, tuple(rows), "" if rows else "The run was never started.")


def read_shards_index(config: RunConfig | None, fingerprint: str | None) -> Index | None:
    """Return the index of the shards with that fingerprint; None where they are gone or other ones now."""
    if config is None:
        return None
    try:
        index = read_index(config.shards)
    except (ShardError, OSError):
        return None
    return index if index.fingerprint == fingerprint else None


def data_sections(index: Index | None, metrics: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """Yield the sources with their counts and licences, the rejected rows by reason, and the splits."""
    if index is None:
        yield Section("Sources", note="The shards are not where they were, or others now.")
        return
    last = metrics[-1] if metrics else {}
    rows = []
    for source in index.sources:
        seen = [last.get(f"data_by_source/{source.name}_{key}") for key in ("share", "epochs")]
        rejected, left_out = sum(source.rejected.values()), sum(source.left_out.values())
        counts = (source.rows, source.conversations, source.kept, rejected, source.duplicates, left_out)
        rows.append(
            (
                source.name,
                source.family,
                source.format,
                _license(source),
                *(f"{count:,}" for count in (*counts, source.documents, source.packed_tokens)),
                "–" if seen[0] is None else f"{seen[0]:.1%}",
                "–" if seen[1] is None else f"{seen[1]:.2f}",
            )
        )
    counted = ("rows", "conversations", "kept", "rejected", "duplicates", "left out", "documents", "tokens")
    head = ("source", "family", "format", "licence", *counted, "share seen", "epochs")
    yield Section("Sources", head, tuple(rows))
    reasons = [
        (source.name, what, reason, f"{count:,}")
        for source in index.sources
        for what, counts_by_reason in (("rejected", source.rejected), ("left out", source.left_out))
        for reason, count in counts_by_reason.items()
    ]
    if reasons:
        note = f"The rows are in the shard folder: rejected ones in {REJECTS_NAME}, those left out in {ROWS_NAME}."
        yield Section(
            "Rejected and left out", ("source", "", "reason", "conversations"), tuple(reasons), note
        )
    splits = [
        (name, *(f"{count:,}" for count in (split.documents, len(split.tokens), *_sums(split))))
        for name, split in index.splits.items()
    ]
    yield Section("Splits", ("split", "documents", "packs", "tokens", "target tokens"), tuple(splits))


def _sums(split: SplitInfo) -> tuple[int, int]:
    return sum(split.tokens), sum(split.target_tokens)


def _license(source: SourceInfo) -> str:
    """Return what data.yaml says of a source, else what the dataset of its format was published under."""
    if source.license:
        return source.license
    try:
        published = get_format(source.format).license
    except SettingsError:  # of another version
        published = ""
    return f"not stated; the dataset was published under {published}" if published else "not stated"


def evaluation_section(metrics: Sequence[Mapping[str, Any]]) -> Section:
    """Return the first, the best and the last loss of everything that was evaluated during training."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in metrics:
        for key, value in row.items():
            if value is not None and key.endswith("loss") and not key.startswith(("train/", "health/")):
                found.setdefault(key, []).append((row["step"], value))
    last = {key: value for row in metrics for key, value in row.items()}
    rows = []
    for key, series in found.items():
        step, best = min(series, key=lambda point: point[1])
        accuracy = last.get(key.removesuffix("loss") + "token_accuracy")
        rows.append(
            (
                key.removesuffix("loss").rstrip("/_").replace("_by_", ", by ").replace("/", ": "),
                f"{series[0][1]:.4g}",
                f"{best:.4g} (step {step})",
                f"{series[-1][1]:.4g}",
                "–" if accuracy is None else f"{accuracy:.1%}",
            )
        )
    head = ("during training", "first loss", "lowest", "last", "tokens right")
    return Section("Evaluation", head, tuple(rows), "" if rows else "There was no evaluation yet.")


def result_sections(folders: Sequence[Path]) -> Iterator[Section]:
    """Yield a table for each folder that `shardtune eval` has written. Raises RunError for one that it has not."""
    from training.evaluation.results import read_results, table_cells

    for folder in folders:
        results = read_results(folder)
        groups = [group for group in results.groups if group.kind in ("all", "family", "source", "category")]
        head, *rows = table_cells(groups, "of")
        title = f"shardtune eval: {results.about['split']}, answered by {results.about['model']}"
        yield Section(title, tuple(head), tuple(map(tuple, rows)))
