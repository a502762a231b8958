"""A folder that holds a model, as `chat` and `eval` are given it: an export, a plain Hugging Face folder, an adapter.

Nothing in it has to come from this program. What belongs together is loaded together: the weights, the tokenizer with
its chat template, and how many positions the model has.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from training.json_file import read_json
from training.quantized import check_library, is_quantized
from training.tuning.adapter_files import base_mistake

Precision = Literal["auto", "bf16", "fp32"]
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# transformers' way to say that a tokenizer has no limit.
NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A loaded model in evaluation mode, with its tokenizer.

    base: the folder of the whole model, `path` itself unless that is an adapter's. max_positions: of prompt and answer
    together.
    """

    path: Path
    base: Path
    model: Any
    tokenizer: ChatTokenizer
    device: torch.device
    max_positions: int


def load_model_folder(
    path: Path,
    *,
    chat_template: str | None = None,
    device: str | None = None,
    precision: Precision = "auto",
) -> ModelFolder:
    """Load a model folder for generation on `device` (None: a GPU if there is one).

    precision `auto`: what the folder was saved in on a GPU, float32 on a CPU, which is the faster there. Raises
    RunError and TokenizerError.
    """
    base = base_folder(path)
    tokenizer = ChatTokenizer.load(tokenizer_folder(path, base), chat_template)
    place = _choose_device(device)
    if is_quantized(base):
        check_library(str(base))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
    from transformers import AutoConfig

    from training.tuning.load import damage_in, load_exported

    with damage_in(base):
        config = AutoConfig.from_pretrained(base)
    if base != path:
        with damage_in(path):
            mistake = base_mistake(path, base)
        if mistake:
            raise RunError(mistake)
    model = load_exported(path, _choose_dtype(precision, config, place)).to(place)
    return ModelFolder(
        path, base, model, tokenizer, place, getattr(config, "max_position_embeddings", NO_LIMIT)
    )


def base_folder(path: Path) -> Path:
    """Return the folder with the whole model: `path` itself, or the base of the adapter in it. Raises RunError."""
    if (path / ADAPTER_CONFIG).is_file():
        named = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
        base = Path(str(named))
        if not (base / "config.json").is_file():
            raise RunError(
                f"{path / ADAPTER_CONFIG}: base_model_name_or_path: no model folder there: got {named}; "
                "expected the folder of the model that the adapter was trained on; correct the path in that file"
            )
        return base
    if (path / "config.json").is_file():
        return path
    if (path / "config.yaml").is_file():
        raise RunError(f"{path}: is a run folder; do: shardtune export {path} --output DIR, and give DIR")
    what = "has no config.json" if path.is_dir() else "no such folder"
    raise RunError(f"{path}: {what}; expected a Hugging Face model folder, or an adapter's")


def tokenizer_folder(path: Path, base: Path) -> Path:
    """Return the folder whose tokenizer belongs to a model: its own, else that of its base."""
    return path if any((path / name).is_file() for name in TOKENIZER_FILES) else base


def _choose_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RunError(f"--device: got {name!r}; expected cpu, cuda, or one GPU such as cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"--device: got {name}; this machine has {torch.cuda.device_count()} GPUs to use")
    return device


def _choose_dtype(precision: Precision, config: Any, device: torch.device) -> torch.dtype:
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    if device.type == "cpu":
        return torch.float32
    saved = getattr(config, "dtype", None)
    return saved if isinstance(saved, torch.dtype) else torch.bfloat16
