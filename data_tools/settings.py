"""Strict settings: a YAML file and `key=value` overrides become a frozen pydantic model.

All mistakes stand in one report, each with its line and with what to do. Paths are anchored here (at the
file's folder; on the command line at the current one): nothing behind this module asks where one was written.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from data_tools.errors import SettingsError
from data_tools.llamafactory import expand_sources
from data_tools.settings_report import Location, Origin, describe_mistakes
from data_tools.settings_report import did_you_mean as did_you_mean

SettingsModel = TypeVar("SettingsModel", bound="Settings")
# In a settings file a path is a string; everything else is checked without conversions.
AnyPath = Annotated[Path, Field(strict=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else _as_tuple(value)


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Settings(BaseModel):
    """The base of all settings: frozen, no unknown keys, no silent conversions such as `true` to 1.0."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (key, message) for what is wrong between keys of `raw`, which is not validated yet."""
        yield from ()

    @classmethod
    def expand(cls, raw: dict[str, Any], describe: Callable[[Location], str]) -> list[str]:
        """Replace, in place, what stands for other values; return the mistakes. `describe` tells where a key is."""
        return []

    @model_validator(mode="wrap")
    @classmethod
    def _report_all_at_once(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # A plain "after" validator would keep silent as long as any single key is wrong.
        details: list[InitErrorDetails] = []
        result: Self | None = None
        try:
            result = handler(raw)
        except ValidationError as error:
            details += [_as_details(line) for line in error.errors(include_url=False)]
        if isinstance(raw, Mapping):
            for key, message in cls.mistakes_between_keys(raw):
                kind = PydanticCustomError("between_keys", "{message}", {"message": message})
                details.append({"type": kind, "loc": (key,), "input": raw.get(key)})
        if details or result is None:
            raise ValidationError.from_exception_data(cls.__name__, details)
        return result


def _as_details(line: Mapping[str, Any]) -> InitErrorDetails:
    text = str(line["msg"]).removeprefix("Value error, ")
    kind = PydanticCustomError(line["type"], "{message}", {"message": text})
    return {"type": kind, "loc": line["loc"], "input": line["input"]}


def dump_settings(values: Mapping[str, Any]) -> str:
    """Return settings as YAML that is read back as they are.

    Plain PyYAML leaves texts such as 0E0 unquoted, which is a number to the reader.
    """
    return str(OmegaConf.to_yaml(OmegaConf.create(dict(values))))


# --- data.yaml ---------------------------------------------------------------------------------------------


class Splits(Settings):
    """What is held out of training: shares of the rows, and whole tasks (names, globs, or a share)."""

    validation: Share = 0.01
    test: Share = 0.01
    unseen_tasks: Strings | Share = ()

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a mistake if the splits leave nothing to train on."""
        shares = [raw.get(key, 0.0) for key in ("validation", "test")]
        if all(isinstance(share, int | float) for share in shares) and sum(shares) >= 1:
            yield (
                "validation",
                f"nothing is left to train on: got {sum(shares)} with test; expected less than 1",
            )


class SourceSettings(Settings):
    """One source: files (globs allowed), or a dataset of the hub, in one format.

    Weight 0.5 takes half its rows, 2 each row twice. `fields` says under which name the files keep a field of the
    format, `columns` names the columns of a table without a header, `options` are the format's own. `license` goes into
    the index and the model card, and decides nothing.
    """

    path: Annotated[tuple[AnyPath, ...], BeforeValidator(_one_or_more)] = ()
    hub: str | None = None
    subset: str | None = None
    split: str | None = None
    format: str
    name: str = ""  # left out: the format's name
    weight: float = Field(default=1.0, gt=0, le=10_000)
    max_per_task: int | None = Field(default=None, gt=0, le=2**62)
    language: str | None = None
    license: str | None = Field(default=None, min_length=1, max_length=200)
    fields: dict[str, str] = {}
    columns: Strings = ()
    options: dict[str, Any] = {}

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a mistake unless exactly one place is named where the rows are."""
        if bool(raw.get("path")) == bool(raw.get("hub")):
            found = "both" if raw.get("path") else "neither"
            yield "path", f"got {found} of `path` and `hub`; expected one of them"
        if raw.get("subset") and not raw.get("hub"):
            yield "subset", "belongs to `hub`; a file has no subsets"

    @model_validator(mode="before")
    @classmethod
    def _name_after_format(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("name") is None and isinstance(raw.get("format"), str):
            return {**raw, "name": raw["format"]}
        return raw


class Decontaminate(Settings):
    """Files of a benchmark: a conversation that shares a run of `ngram` words with one of their texts is left out."""

    path: Annotated[tuple[AnyPath, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    ngram: int = Field(default=13, ge=2)


class Filters(Settings):
    """Conversations to reject; all off by default.

    `languages` are names or globs of the language field; a conversation without one passes. `secrets` are keys and
    tokens of access; `personal_data` are e-mail addresses and phone numbers.
    """

    languages: Strings = ()
    min_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    secrets: bool = False
    personal_data: bool = False


class Mixture(Settings):
    """How much each task counts in the train split, before the sources' weights.

    `weigh_by`: what weights, cap and temperature measure. `cap`: a task counts as at most this much (examples-
    proportional mixing). `temperature` T: shares go with size ** (1 / T); 1 keeps the proportions.
    """

    weigh_by: Literal["documents", "target_tokens"] = "documents"
    cap: int | None = Field(default=None, gt=0)
    temperature: float = Field(default=1.0, ge=1)


class Replay(Settings):
    """Packs of an earlier shard folder, mixed into the train split so that they are `share` of its packs."""

    shards: AnyPath
    share: float = Field(gt=0, lt=1)


class DataSettings(Settings):
    """data.yaml: which rows become which shards."""

    path_keys: ClassVar[tuple[str, ...]] = (
        "output",
        "tokenizer",
        "chat_template:*.jinja",
        "sources.*.path",
        "sources.*.dataset_info",
        "sources.*.options.templates",
        "decontaminate.path",
        "replay.shards",
    )

    output: AnyPath
    tokenizer: AnyPath
    chat_template: str | None = None
    seq_len: int = Field(gt=1, le=2**24)
    seed: int = Field(default=17, ge=0)
    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    overlong: Literal["split", "truncate", "drop"] = "split"
    dedup: Literal["none", "exact", "near"] = "exact"
    near_threshold: float = Field(default=0.8, gt=0, lt=1)
    max_reject_rate: float = Field(default=0.05, ge=0, le=1)
    special_text: Literal["plain", "reject"] = "plain"
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    splits: Splits = Splits()
    filters: Filters = Filters()
    mixture: Mixture = Mixture()
    decontaminate: Decontaminate | None = None
    replay: Replay | None = None
    sources: Annotated[tuple[SourceSettings, ...], BeforeValidator(_as_tuple), Field(min_length=1)]

    @classmethod
    def expand(cls, raw: dict[str, Any], describe: Callable[[Location], str]) -> list[str]:
        """Replace each source that names a dataset_info.json by the sources that are described there."""
        return expand_sources(raw, describe)

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a mistake for each name that two sources share; their counts could not be told apart."""
        sources = raw.get("sources")
        entries = (
            [entry for entry in sources if isinstance(entry, Mapping)] if isinstance(sources, list) else []
        )
        # Several sources of `format: auto` get their names when their formats are known.
        names = [
            entry.get("name") or entry.get("format")
            for entry in entries
            if entry.get("name") or entry.get("format") != "auto"
        ]
        for name in dict.fromkeys(name for name in names if isinstance(name, str) and names.count(name) > 1):
            yield "sources", f"{names.count(name)} sources are named {name!r}; give each its own `name`"


def load_data_settings(path: Path, overrides: Sequence[str] = ()) -> DataSettings:
    """Read data.yaml with overrides. Raise SettingsError with all mistakes."""
    return load_settings(DataSettings, path, overrides, path_keys=DataSettings.path_keys)


# --- reading -----------------------------------------------------------------------------------------------


def load_settings(
    model: type[SettingsModel], path: Path, overrides: Sequence[str] = (), *, path_keys: Sequence[str]
) -> SettingsModel:
    """Read a YAML file and `key=value` overrides into `model`.

    `path_keys` are dotted patterns of the keys that hold paths (`sources.*.path`: a string or a list);
    with `:*.jinja` behind it a key counts as a path only where its value matches. `~` is expanded, and
    `${oc.env:X}` as OmegaConf does it. Raise SettingsError with one line for each mistake.
    """
    text = read_text(path)
    raw = _parse_yaml(path, text)
    origin = Origin(path, yaml.compose(text, Loader=yaml.SafeLoader))
    mistakes = _apply_overrides(raw, overrides, origin)
    try:
        data = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise SettingsError(f"{path}: {key}: {str(error).splitlines()[0]}") from None
    assert isinstance(data, dict)
    for key, field in model.model_fields.items():
        if key in path_keys and key not in data and isinstance(field.default, Path):
            data[key] = str(field.default)  # a default path is relative to the file too
    _anchor_paths(data, path_keys, origin)
    if unread := model.expand(data, origin.describe):
        raise SettingsError("\n".join([*mistakes, *unread]))
    try:
        settings = model.model_validate(data)
    except ValidationError as error:
        mistakes += describe_mistakes(error, model, data, origin)
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return settings


def read_text(path: Path) -> str:
    """Return a settings file's text. Raise SettingsError if there is none, naming a near neighbour."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SettingsError(f"{path}: no such file{did_you_mean(path.name, neighbours)}") from None
    except IsADirectoryError:
        raise SettingsError(f"{path}: is a folder; expected a settings file") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text: byte {error.start}; expected a YAML file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None


def _parse_yaml(path: Path, text: str) -> dict[Any, Any]:
    try:
        raw = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
        plain = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"{path}{line}: is not YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        # ValueError: of a date such as 2024-02-30, or a number of thousands of digits.
        raise SettingsError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from None
    # OmegaConf takes a lone word for a key without a value.
    if not isinstance(raw, dict) or isinstance(plain, str):
        raise SettingsError(
            f"{path}: holds no settings: got a {type(plain).__name__}; expected `key: value` lines"
        )
    return raw


def _apply_overrides(raw: dict[Any, Any], overrides: Sequence[str], origin: Origin) -> list[str]:
    """Set each `key=value` in `raw` and note it in `origin`; return the mistakes."""
    mistakes = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(key.split(".")):
            mistakes.append(
                f"command line: {override!r} is no setting; expected key=value such as optim.lr=1e-5"
            )
            continue
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={override[len(key) + 1 :]}"]))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            mistakes.append(
                f"command line: {key}: is not YAML: {problem}; quote the value, as in \"{key}='…'\""
            )
            continue
        assert isinstance(value, dict)
        location = _set(raw, key.split("."), value["value"])
        if location is None:
            mistakes.append(f"command line: {key}: there is no such place in {origin.path}")
        else:
            origin.overridden += (location,)
    return mistakes


def _set(raw: dict[Any, Any], parts: list[str], value: Any) -> Location | None:
    """Set a nested value, making mappings on the way; return its location, or None if there can be none."""
    place: Any = raw
    location: Location = ()
    for depth, part in enumerate(parts):
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                return None
            key: str | int = int(part)
        elif isinstance(place, dict):
            key = part
        else:
            return None
        location += (key,)
        if depth == len(parts) - 1:
            place[key] = value
        else:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = place[key]
    return location


def _anchor_paths(data: dict[Any, Any], path_keys: Sequence[str], origin: Origin) -> None:
    for pattern in path_keys:
        key, _, only = pattern.partition(":")
        for holder, name, location in _find(data, key.split(".")):
            base = Path.cwd() if origin.from_command_line(location) else origin.path.absolute().parent
            value = holder[name]
            if isinstance(value, str) and fnmatchcase(value, only or "*"):
                holder[name] = _anchor(base, value)
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    here = Path.cwd() if origin.from_command_line((*location, index)) else base
                    if isinstance(item, str) and fnmatchcase(item, only or "*"):
                        value[index] = _anchor(here, item)


def _anchor(base: Path, value: str) -> str:
    home = os.path.expanduser("~") if value == "~" or value.startswith("~/") else ""  # noqa: PTH111 - never ~user
    return os.path.normpath(base / (home + value[1:] if home else value))


def _find(data: Any, parts: list[str], location: Location = ()) -> Iterator[tuple[Any, str | int, Location]]:
    """Yield (container, key, location) for each place that matches a dotted pattern; `*` is any item."""
    if isinstance(data, dict):
        keys: list[str | int] = [key for key in data if parts[0] in ("*", key)]
    elif isinstance(data, list):
        keys = [index for index in range(len(data)) if parts[0] in ("*", str(index))]
    else:
        return
    for key in keys:
        if len(parts) == 1:
            yield data, key, (*location, key)
        else:
            yield from _find(data[key], parts[1:], (*location, key))
