"""README and docs/ against the code: the tree, the commands, the links, the settings files that are shown."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from data_tools.settings import DataSettings, SourceSettings, Splits, load_data_settings
from tests.conftest import ROOT
from training.config import RunConfig, load_run_config
from training.tuning.settings import Tuning

README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_blocks(document: Path, language: str | None = None) -> list[str]:
    """Return the fenced blocks of a document; all of them, or those in one language."""
    found = FENCE.findall(document.read_text(encoding="utf-8"))
    return [text for name, text in found if language in (None, name)]


def code_parts(document: Path) -> list[str]:
    """Return everything in a document that is set as code: fenced blocks, and words in backquotes."""
    prose = FENCE.sub("", document.read_text(encoding="utf-8"))
    return [*code_blocks(document), *re.findall(r"`([^`\n]+)`", prose)]


def tree_files() -> list[str]:
    """Return the paths of the files in README's tree, relative to the project."""
    tree = next(block for block in code_blocks(README) if block.startswith("shardtune/\n"))
    folders: list[str] = []
    files = []
    for line in tree.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, *comment = line.split()
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
            assert comment or not folders[0].startswith(("data_tools", "training")), name
            assert (ROOT / "".join(folders)).is_dir(), (
                f"README's tree names a folder that is not there: {name}"
            )
        else:
            assert comment, f"README's tree says nothing about {name}"
            files.append("".join(folders) + name)
    return files


def test_every_file_in_the_tree_exists() -> None:
    files = tree_files()
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert len(files) == len(set(files))


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("data_tools", "*.py"),
        ("training", "*.py"),
        ("ds_configs", "*.json"),
        ("benchmarks", "*.py"),
        ("docs", "*.md"),
    ],
)
def test_every_module_is_in_the_tree(folder: str, pattern: str) -> None:
    # The modules of a package inside have the package's line.
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)}
    assert sorted(there - set(tree_files())) == []


@pytest.mark.parametrize("folder", ["data_tools", "training"])
def test_every_package_is_in_the_tree(folder: str) -> None:
    tree = next(block for block in code_blocks(README) if block.startswith("shardtune/\n"))
    for path in (ROOT / folder).rglob("__init__.py"):
        assert re.search(rf"^ +{path.parent.name}/ +\S", tree, re.MULTILINE), path.parent


def test_every_command_that_is_mentioned_exists_and_the_other_way_round() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "training.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    known = set(re.findall(r"^\S (\w+)  +\S", result.stdout, re.MULTILINE))
    assert "train" in known, result.stdout
    for document in DOCUMENTS:
        parts = code_parts(document)
        mentioned = {name for part in parts for name in re.findall(r"\bshardtune ([a-z]+)", part)}
        assert mentioned <= known, document.name
        if document == README:
            assert mentioned == known


def anchors(document: Path) -> set[str]:
    """Return where links into a document may lead: to headings, and to the anchors that headings carry."""
    text = document.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}
    return made | set(re.findall(r'^#+ .*<a id="([\w-]+)"></a>$', text, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_target_of_make_that_is_mentioned_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        lines = [line for part in code_parts(document) for line in part.splitlines()]
        called = [re.match(r"(?:\w+=\S+ )*make ([a-z-]+)", line) for line in lines]
        assert {match[1] for match in called if match} <= targets, document.name


def settings_block(first_key: str) -> str:
    """Return the settings file in README that begins with this key."""
    return next(block for block in code_blocks(README, "yaml") if block.startswith(f"{first_key}:"))


def missing_keys(shown: dict[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a settings model, with those of the models inside it, that a file does not show."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if name not in shown:
            yield f"{prefix}{name}"
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from missing_keys(shown[name], inner, f"{prefix}{name}.")


def wrong_defaults(shown: dict[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys that are shown with another value than the default they have."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from wrong_defaults(shown[name], inner, f"{prefix}{name}.")
        elif not field.is_required() and str(_plain(shown.get(name))) != str(_plain(field.default)):
            yield f"{prefix}{name}"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    return list(value) if isinstance(value, tuple) else value


def test_data_yaml_in_the_readme_shows_every_key_and_its_default(tmp_path: Path) -> None:
    text = settings_block("output")
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
    assert len(load_data_settings(tmp_path / "data.yaml").sources) == 4
    shown = yaml.safe_load(text)
    sources = {key: value for source in shown["sources"] for key, value in source.items()}
    assert list(missing_keys(shown, DataSettings)) == []
    assert list(missing_keys(shown["splits"], Splits)) == []
    assert list(missing_keys(sources, SourceSettings)) == []
    assert list(wrong_defaults(shown, DataSettings)) == []


def test_run_yaml_in_the_readme_shows_every_key_and_its_default(tmp_path: Path) -> None:
    text = settings_block("name")
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    load_run_config(tmp_path / "run.yaml")
    shown = yaml.safe_load(text)
    assert list(missing_keys(shown, RunConfig)) == ["steps"]  # which excludes epochs
    assert "`steps: 1000`" in text
    assert list(wrong_defaults(shown, RunConfig)) == ["epochs"]


def test_tuning_md_shows_every_method_with_every_key_and_its_default() -> None:
    blocks = [yaml.safe_load(text) for text in code_blocks(ROOT / "docs" / "tuning.md", "yaml")]
    shown = {block["tuning"]["method"]: block["tuning"] for block in blocks if "tuning" in block}
    methods: dict[str, type[BaseModel]] = {
        kind.model_fields["method"].default: kind for kind in get_args(get_args(Tuning)[0])
    }
    assert sorted(shown) == sorted(methods)
    for name, kind in methods.items():
        assert list(missing_keys(shown[name], kind)) == [], name
        assert list(wrong_defaults(shown[name], kind)) == [], name
        kind.model_validate(shown[name])
