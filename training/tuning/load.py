"""An export loaded as plain transformers and peft load it: a whole model, or an adapter beside its base."""

import importlib.util
import logging
import pickle
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from data_tools.errors import RunError
from training.json_file import read_json
from training.tuning.adapter_files import CONFIG, PROVENANCE, WEIGHTS
from training.tuning.bottleneck import load_adapter
from training.tuning.methods import keep_quantized_layers_training, quantization
from training.tuning.settings import AdapterTuning, QloraTuning

logger = logging.getLogger(__name__)

# What the libraries raise for files that are damaged, of another kind or do not fit each other.
LOADING_ERRORS = (
    *(
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        UserWarning,
    ),
    *(pickle.PickleError, SafetensorError, StrictDataclassError),
)
MOST_SAID = 300  # characters of their message


def load_exported(folder: Path, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """Return the model of a folder in evaluation mode: a whole one, or an adapter of peft's or of `shardtune export`.

    With virtual tokens (prompt tuning) its logits begin with those of them. Raises RunError for a damaged folder.
    """
    if not (folder / CONFIG).exists():
        return _load_whole(folder, {"dtype": dtype}).eval()
    base = Path(read_json(folder / CONFIG)["base_model_name_or_path"])
    made = read_json(folder / PROVENANCE)
    options: dict[str, Any] = {"dtype": dtype}
    if made.get("method") == QloraTuning().method:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RunError(
                f"{folder}: its base is loaded in 4 bits, as it was trained (qlora), which needs bitsandbytes, and "
                "that is not installed; run: pip install bitsandbytes"
            )
        options["quantization_config"] = quantization(double=made["double_quant"], dtype=dtype)
    model = _load_whole(base, options)
    with damage_in(folder), warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")  # they would be drawn anew
        if not any((folder / name).exists() for name in (WEIGHTS, "adapter_model.bin")):
            raise FileNotFoundError(f"there is no {WEIGHTS}")  # peft would ask the hub for it
        if made.get("method") == AdapterTuning().method:
            load_adapter(model, folder)
            return model.eval()
        tuned = PeftModel.from_pretrained(model, folder).eval()
    keep_quantized_layers_training(tuned)
    return tuned


@contextmanager
def damage_in(folder: Path) -> Iterator[None]:
    """Turn what transformers, peft and safetensors raise for a folder's files into a RunError of one line."""
    try:
        yield
    except LOADING_ERRORS as error:
        said = textwrap.shorten(str(error), MOST_SAID, placeholder=" …")
        raise RunError(
            f"{folder}: cannot be loaded: {type(error).__name__}: {said}; expected a whole folder that transformers "
            "or peft can load; do: export or fetch it again"
        ) from error


def _load_whole(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    """Return the model of a folder. Raise RunError if some of its weights would be drawn at random."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of what does not fit; it is told below in one line
    try:
        with damage_in(folder):
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    wrong = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    wrong += [
        f"{name} is {list(there)}, not {list(expected)}"
        for name, there, expected in sorted(found["mismatched_keys"])
    ]
    if wrong:
        raise RunError(
            f"{folder}: the weights do not fit config.json: {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; expected all tensors of the model in their "
            "shapes; do: export or fetch it again"
        )
    if found["unexpected_keys"]:
        logger.warning(
            "%s: has weights that the model does not use: %s", folder, sorted(found["unexpected_keys"])[:3]
        )
    return model
