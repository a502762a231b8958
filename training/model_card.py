"""The model card of an export: what was trained, on what, how, and by which fingerprints that can be proved.

Written from files alone: the run folder, its checkpoint and the index of the shards. It names folders and files by
their names, never by their paths, and shows counts of rejected rows, never the rows.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_tools.shard_index import Index
from training.base_model import base_fingerprint
from training.checkpoint_files import Progress
from training.config import RunConfig
from training.data import epoch_permutation
from training.json_file import read_json
from training.metrics import read_metrics
from training.report.tables import Section, data_sections, evaluation_section, read_shards_index
from training.run_folder import RunFolder, flatten
from training.tuning.settings import AdapterTuning

FILE_NAME = "README.md"
# Keys of run.yaml that say where and when, not what was trained.
NOT_SHOWN = (
    *("name", "model", "shards", "runs", "launch", "slurm", "log", "save", "evaluate"),
    *("watchdog", "max_bad_steps"),
)
QUANTIZED_NOTE = (
    "The linear layers have int8 weights; to load them, `pip install compressed-tensors` (vLLM has it)."
)
HUB_CACHE = "models--"  # of the hub's own cache: models--owner--name/snapshots/commit
LOAD_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("exported")
tokenizer = AutoTokenizer.from_pretrained("exported")
"""
LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("exported")
tokenizer = AutoTokenizer.from_pretrained("exported")
"""
LOAD_BOTTLENECK = """\
from pathlib import Path
from training.tuning.bottleneck import load_adapter
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("base")  # the model that it was trained beside
load_adapter(model, Path("exported"))
"""


def write_card(
    config: RunConfig,
    run: RunFolder,
    progress: Progress,
    folder: Path,
    *,
    name: str,
    is_adapter: bool,
    quantized: Section | None = None,
) -> None:
    """Write README.md into the folder of an export whose weights are there already.

    name: of the folder that it becomes. quantized: what was measured of weights that were quantised.
    """
    environment = read_json(run.environment_path)
    index = read_shards_index(config, progress.shards_fingerprint)
    # A run that went on has measured more than its checkpoint knows of.
    metrics = [row for row in read_metrics(run.path) if row["step"] <= progress.step]
    base_card = {} if config.from_scratch else read_front_matter(config.model / FILE_NAME)
    sections = [
        _trained_section(config, progress, metrics, index, base_card),
        *([quantized] if quantized is not None else []),
        *data_sections(index, metrics),
        _pairs("How the data was made", _data_settings(index)) if index else None,
        evaluation_section(metrics),
        _pairs("Hyper-parameters", _hyper_parameters(config, progress)),
        _pairs("Versions", _versions(environment, progress)),
        _pairs("Fingerprints", _fingerprints(progress, environment, index, folder), FINGERPRINTS_NOTE),
    ]
    front = _front_matter(config, index, base_card, is_adapter=is_adapter, is_quantized=quantized is not None)
    load = LOAD_MODEL
    if is_adapter:
        load = LOAD_BOTTLENECK if isinstance(config.tuning, AdapterTuning) else LOAD_ADAPTER
    load = load.replace('"exported"', json.dumps(name))
    blocks = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_cell(config.name)}, step {progress.step}",
        f"Fine-tuned with shardtune: {_describe_kind(config, is_adapter=is_adapter)}. This card was written by "
        "`shardtune export` from the files of the run and the index of its shards.",
        f"```python\n{load}```",
        *([QUANTIZED_NOTE] if quantized is not None else []),
        *(_as_markdown(section) for section in sections if section is not None),
    ]
    (folder / FILE_NAME).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


FINGERPRINTS_NOTE = (
    "`shardtune verify` counts shards with this fingerprint again, file by file. The ledger is a hash of the "
    "conversations that training has consumed, in their order: runs with the same ledger have seen the same rows."
)


# --- front matter ------------------------------------------------------------------------------------------


def read_front_matter(card: Path) -> dict[str, Any]:
    """Return the YAML at the head of a model card; nothing where there is no such card, or it cannot be read."""
    try:
        found = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        value = yaml.safe_load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def model_name(folder: Path) -> str:
    """Return what a model is called: owner/name for a folder of the hub's cache, else the folder's name."""
    cached = next((part for part in folder.parts if part.startswith(HUB_CACHE)), None)
    return cached.removeprefix(HUB_CACHE).replace("--", "/") if cached else folder.name


def _front_matter(
    config: RunConfig,
    index: Index | None,
    base_card: Mapping[str, Any],
    *,
    is_adapter: bool,
    is_quantized: bool,
) -> dict[str, Any]:
    """Return what the Hugging Face hub reads; the licence is that of the base, and only if its card states one."""
    front: dict[str, Any] = {}
    for key in ("license", "license_name", "license_link"):
        if isinstance(base_card.get(key), str):
            front[key] = base_card[key]
    name = model_name(config.model)
    if not config.from_scratch and "/" in name:  # on the hub a folder's name would be a wrong link
        front["base_model"] = name
        front["base_model_relation"] = "adapter" if is_adapter else "finetune"
    if names := list(dict.fromkeys(_hub_datasets(index))):
        front["datasets"] = names
    front["library_name"] = "peft" if is_adapter else "transformers"
    front["pipeline_tag"] = "text-generation"
    method = config.tuning.method
    front["tags"] = ["shardtune", "sft", *([method] if method != "full" else [])]
    front["tags"] += ["compressed-tensors"] if is_quantized else []
    return front


def _hub_datasets(index: Index | None) -> Iterator[str]:
    for source in index.settings.get("sources", []) if index else []:
        if source.get("hub"):
            yield source["hub"]


# --- sections ----------------------------------------------------------------------------------------------


def _describe_kind(config: RunConfig, *, is_adapter: bool) -> str:
    base = "drawn weights" if config.from_scratch else _cell(model_name(config.model))
    what = "an adapter beside" if is_adapter else "a whole model, from"
    return f"{what} {base}, tuning method `{config.tuning.method}`"


def _pairs(title: str, rows: Mapping[str, object], note: str = "") -> Section:
    return Section(title, ("", ""), tuple((key, str(value)) for key, value in rows.items()), note)


def _trained_section(
    config: RunConfig,
    progress: Progress,
    metrics: Sequence[Mapping[str, Any]],
    index: Index | None,
    base_card: Mapping[str, Any],
) -> Section:
    rows: dict[str, object] = {
        "base model": "none: the weights were drawn" if config.from_scratch else model_name(config.model),
        "licence of the base model": base_card.get("license_name")
        or base_card.get("license")
        or "not stated",
        "tuning method": config.tuning.method,
        "precision": config.precision,
        "step of the checkpoint": f"{progress.step:,}",
        "packs seen": f"{progress.packs_consumed:,}",
    }
    if index is not None:
        tokens, targets = tokens_seen(index, seed=progress.seed, consumed=progress.packs_consumed)
        rows["epochs"] = f"{progress.packs_consumed / len(index.splits['train'].tokens):.2f}"
        rows["tokens seen"] = f"{tokens:,}"
        rows["target tokens seen"] = f"{targets:,}"
    if progress.skipped_steps:
        rows["skipped steps"] = progress.skipped_steps
    logged = [row for row in metrics if row.get("train/loss") is not None]
    if logged:
        rows["training loss"] = f"{logged[-1]['train/loss']:.4g} (step {logged[-1]['step']:,})"
    return _pairs(
        "What was trained",
        rows,
        "The licence at the head of this card, if there is one, is the base model's. Those of the data are below.",
    )


def tokens_seen(index: Index, *, seed: int, consumed: int) -> tuple[int, int]:
    """Return the tokens and the target tokens of the first `consumed` packs that a run takes."""
    train = index.splits["train"]
    epochs, rest = divmod(consumed, len(train.tokens))
    last = epoch_permutation(index.fingerprint, seed, epochs, len(train.tokens))[:rest].tolist()
    tokens, targets = (
        epochs * sum(values) + sum(values[pack] for pack in last)
        for values in (train.tokens, train.target_tokens)
    )
    return tokens, targets


def _data_settings(index: Index) -> dict[str, object]:
    """Return the settings of data.yaml but those of its sources; the index keeps names of files, no paths."""
    settings = flatten({key: value for key, value in index.settings.items() if key != "sources"})
    return {key: value for key, value in settings.items() if value not in (None, [])}


def _hyper_parameters(config: RunConfig, progress: Progress) -> dict[str, object]:
    rows: dict[str, object] = {"ranks": progress.world_size}
    values = progress.settings or config.model_dump(mode="json")
    for key, value in flatten({key: values[key] for key in values if key not in NOT_SHOWN}).items():
        if value is not None and value != []:
            rows[key] = Path(value).name if key in ("deepspeed", "tuning.continue_from") else value
    return rows


def _versions(environment: Mapping[str, Any], progress: Progress) -> dict[str, object]:
    """Return those of the last start, but of what wrote the checkpoint, where that is known."""
    found = {**(environment.get("packages") or {}), **progress.versions}
    if environment.get("python"):
        found["python"] = environment["python"]
    return {name: version for name, version in found.items() if version != "not installed"}


def _fingerprints(
    progress: Progress, environment: Mapping[str, Any], index: Index | None, folder: Path
) -> dict[str, object]:
    rows = {
        "shards": progress.shards_fingerprint,
        "tokenizer and chat template": index.tokenizer.fingerprint if index else "",
        "ledger of the rows seen": progress.ledger,
        "config.json of the base model": environment.get("model_config_sha256", ""),
        "weights of the base model that were not trained": progress.base,
        "weights in this folder": base_fingerprint(folder),
    }
    return {key: value for key, value in rows.items() if value}


# --- Markdown ----------------------------------------------------------------------------------------------


def _as_markdown(section: Section) -> str:
    parts = [f"## {section.title}"]
    if section.note:
        parts.append(section.note)
    if section.rows:
        lines = [section.head, ("---",) * len(section.head), *section.rows]
        parts.append("\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    """Return text so that Markdown shows it as it is, on one line."""
    return re.sub(r"[\\`*<|\[\]]", r"\\\g<0>", " ".join(text.split()))
