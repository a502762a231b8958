"""`shardtune report`: the files of a run folder, put together as one page that needs no network."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from data_tools.errors import RunError
from training.json_file import read_json
from training.report.curves import HEIGHT, WIDTH, run_charts
from training.report.tables import (
    Section,
    data_sections,
    evaluation_section,
    plan_section,
    read_shards_index,
    result_sections,
    starts_section,
)
from training.run_folder import RunFolder
from training.status.facts import RunFacts, read_facts
from training.status.report import read_status, to_text

TEMPLATES = Path(__file__).parent / "html"
FILE_NAME = "report.html"
BEGIN_BYTES = 2000  # of a report: more than its title, which holds the name of a run


def write_report(run_folder: Path, output: Path | None, evaluations: Sequence[Path] = ()) -> Path:
    """Write the report of a run; return its path, by default RUN_FOLDER/report.html.

    evaluations: folders of `shardtune eval`, beside those below the run folder's `eval*`. Raises RunError.
    """
    facts = read_facts(run_folder)
    path = output or run_folder / FILE_NAME
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise RunError(f"--output: {path}: {what}; expected the name of a file such as report.html")
    if path.exists() and not _is_report(path):
        raise RunError(
            f"--output: {path}: got a file that is not a report of shardtune; expected such a one, or none; do: name "
            "another file, or remove it"
        )
    text = render(run_folder, facts, evaluations)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(BEGIN_BYTES)
    return begin.startswith(b"<!doctype html>") and b"run report</title>" in begin


def render(run_folder: Path, facts: RunFacts, evaluations: Sequence[Path]) -> str:
    """Return the page."""
    run = RunFolder(run_folder)
    environment, ds_config = read_json(run.environment_path), read_json(run.ds_config_path)
    headline, *status = to_text(read_status(run_folder)).splitlines()
    steps = [start.last("training") for start in facts.starts]
    restarts = [float(event["step"]) for event in steps if event is not None and event["step"] > 0]
    own = sorted(path.parent for path in run_folder.glob("eval*/**/results.json"))
    index = read_shards_index(facts.config, environment.get("shards_fingerprint"))
    groups: list[tuple[str, list[Section]]] = [
        ("plan", [plan_section(facts, ds_config)]),
        ("starts", [starts_section(facts)]),
        ("data", list(data_sections(index, facts.metrics))),
        ("evaluation", [evaluation_section(facts.metrics), *result_sections([*own, *evaluations])]),
    ]
    packages = environment.get("packages") or {}
    place = {key: environment.get(key) for key in ("host", "platform", "cpu_cores", "memory_gib", "python")}
    loader = jinja2.FileSystemLoader(TEMPLATES)
    template = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    ).get_template("report.html.jinja")
    return template.render(
        name=run_folder.absolute().name,
        headline=headline.partition(": ")[2],
        status=status,
        charts=run_charts(facts.metrics, restarts),
        width=WIDTH,
        height=HEIGHT,
        groups=groups,
        settings=_text_of(run.config_path),
        ds_config=_text_of(run.ds_config_path),
        versions=[(str(key), str(value)) for key, value in (packages | place).items() if value is not None],
    )


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else "there is none"
