"""The report as one HTML file: no network, no library, readable without JavaScript, light and dark.

All text of data goes through Jinja's autoescape; a content security policy in the file forbids every script
but the report's own and every address.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_tools.errors import SettingsError
from data_tools.pack import NOT_DESCRIBED
from data_tools.preview.marked_text import visible
from data_tools.preview.settings_view import SettingsViewer, find_files, view_settings
from data_tools.preview.shard_view import Files, PackViewer, choose_packs, view_shards
from data_tools.preview.treemap import group_of, make_treemap
from data_tools.preview.view import Sheet, View
from data_tools.settings import DataSettings
from data_tools.shard_index import INDEX_NAME
from data_tools.shards import Shards, open_shards

NUM_COLOURS = 8
MAX_TEXT = 4_000_000  # characters of documents in one report: no more packs are shown than fit
MAX_TASK_LINES = 2_000
_ASSETS = Path(__file__).parent / "html"


@dataclass(frozen=True, slots=True)
class SheetGroup:
    """The pages of one split or source, and how many packs it has."""

    name: str
    sheets: tuple[Sheet, ...]
    total: int | None


def report_shards(
    folder: Path, output: Path, *, num: int, split: str | None = None, settings: DataSettings | None = None
) -> None:
    """Write the report of a sealed folder with at most `num` packs of each split (or of one).

    With the `settings` that it was made from, origins become links to the files. Raises ShardError.
    """
    _check_output(output)
    shards = open_shards(folder)
    files: Files = find_files(settings) if settings else {}
    viewer = PackViewer(shards, files=files)
    if split is not None:
        viewer.check_split(split)
    splits = [split] if split else list(shards.splits)
    groups = [_choose_sheets(viewer, shards, name, num, MAX_TEXT // len(splits)) for name in splits]
    _write(view_shards(shards, notes=_differences(shards, settings)), groups, output)


def report_settings(settings: DataSettings, output: Path, *, num: int) -> None:
    """Write the report of a data.yaml: of its sealed folder, or of its first conversations where there is none."""
    if (settings.output / INDEX_NAME).is_file():
        report_shards(settings.output, output, num=num, settings=settings)
        return
    _check_output(output)
    view, sheets = view_settings(settings, SettingsViewer(settings), num=num)
    _write(view, [SheetGroup(sheet.group, (sheet,), None) for sheet in sheets], output)


def _check_output(output: Path) -> None:
    folder = output.absolute().parent
    if output.is_dir():
        raise SettingsError(f"--html: {output}: is a folder; expected the name of a file such as report.html")
    if not folder.is_dir():
        raise SettingsError(f"--html: {output}: there is no folder {folder}; do: make it first")


def _choose_sheets(viewer: PackViewer, shards: Shards, split: str, num: int, max_text: int) -> SheetGroup:
    total = shards.splits[split].num_packs
    taken: list[Sheet] = []
    num_chars = 0
    for sheet in viewer.sheets([(split, number) for number in choose_packs(total, num)]):
        num_chars += _count_text(sheet)
        if taken and num_chars > max_text:
            break
        taken.append(sheet)
    return SheetGroup(split, tuple(taken), total)


def _count_text(sheet: Sheet) -> int:
    runs = (run for document in sheet.documents for run in (*document.runs, *document.tail))
    references = (text for document in sheet.documents for text in document.references)
    return sum(len(run.text) for run in runs) + sum(map(len, references))


def _differences(shards: Shards, settings: DataSettings | None) -> list[str]:
    """Return a note if the settings are not those that the folder was made with (paths aside)."""
    if settings is None:
        return []
    now, then = settings.model_dump(mode="json", exclude=NOT_DESCRIBED), shards.index.settings
    changed = [key for key in now if key not in ("sources", "chat_template") and now[key] != then.get(key)]
    if [_without_path(source) for source in now["sources"]] != [_without_path(s) for s in then["sources"]]:
        changed.append("sources")
    if not changed:
        return []
    return [
        f"The settings file has changed since the folder was packed: {', '.join(changed)}. Shown is what was packed; "
        "shardtune pack makes it anew."
    ]


def _without_path(source: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in source.items() if key not in ("path", "options")}


# --- the file ----------------------------------------------------------------------------------------------


def _write(view: View, groups: Sequence[SheetGroup], output: Path) -> None:
    text = render(view, groups, link=_Linker(output))
    partial = output.with_name(output.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(output)


class _Linker:
    """Addresses of files as seen from where the report lies: they hold while the two stay where they are."""

    def __init__(self, output: Path) -> None:
        self._folder = output.absolute().parent

    def __call__(self, file: Path) -> str:
        return quote(os.path.relpath(file.absolute(), self._folder))


def render(view: View, groups: Sequence[SheetGroup], *, link: "_Linker") -> str:
    """Return the report as the text of an HTML file."""
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["percent"] = _percent
    environment.filters["visible"] = visible
    script = (_ASSETS / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    colours = {source.name: number % NUM_COLOURS for number, source in enumerate(view.sources)}
    total = {key: sum(getattr(source, key) for source in view.sources) for key in ("tokens", "target_tokens")}
    text: str = environment.get_template("report.html.jinja").render(
        view=view,
        groups=groups,
        link=link,
        colours=colours,
        treemap=make_treemap(view.tasks, colours, num_colours=NUM_COLOURS),
        tasks=view.tasks[:MAX_TASK_LINES],
        num_more_tasks=len(view.tasks) - MAX_TASK_LINES,
        total=total,
        peak=_peak,
        group_of=group_of,
        style=(_ASSETS / "report.css").read_text("utf-8"),
        script=script,
        script_hash=digest,
    )
    return text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _peak(counts: Iterable[int]) -> int:
    return max((*counts, 1))
