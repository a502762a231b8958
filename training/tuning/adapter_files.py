"""The folder of an adapter, as peft lays it out: adapter_config.json and adapter_model.safetensors.

peft is not needed here: what its files call things is known by heart. `shardtune.json` beside them says to which
weights the adapter belongs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_tools.errors import RunError
from training.base_model import base_fingerprint
from training.json_file import read_json
from training.tuning.settings import (
    AdaloraTuning,
    AdapterTuning,
    AddedTuning,
    Ia3Tuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    QloraTuning,
)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PROVENANCE = "shardtune.json"  # what peft's own file has no place for

ADAPTER_NAME = "default"  # peft's name for the only one
VIRTUAL_TOKENS = "virtual.embedding.weight"


def tensor_name(name: str) -> str:
    """Return what an adapter's file calls a trained parameter that the model calls `name`."""
    if name == VIRTUAL_TOKENS:
        return "prompt_embeddings"
    if ".bottleneck." in name:  # ours; there is no name of peft's for it
        return name
    name = name.replace(f"lora_magnitude_vector.{ADAPTER_NAME}.weight", "lora_magnitude_vector")
    return "base_model.model." + name.replace(f".{ADAPTER_NAME}", "")


def described_as(tuning: AddedTuning) -> dict[str, Any]:
    """Return what adapter_config.json says of an adapter of this method, as far as it decides what it computes."""
    match tuning:
        case LoraTuning() | QloraTuning():
            return {
                "peft_type": "LORA",
                "r": tuning.rank,
                "lora_alpha": tuning.alpha,
                "use_rslora": tuning.rslora,
                "use_dora": isinstance(tuning, LoraTuning) and tuning.dora,
            }
        case AdaloraTuning():
            return {"peft_type": "ADALORA", "init_r": tuning.initial_rank, "lora_alpha": tuning.alpha}
        case PrefixTuning():
            return {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": tuning.num_virtual_tokens}
        case PromptTuning():
            return {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": tuning.num_virtual_tokens}
        case Ia3Tuning():
            return {"peft_type": "IA3"}
        case AdapterTuning():
            return {"peft_type": "HOULSBY", "size": tuning.size}
    raise AssertionError(tuning)


def continuation_mistakes(tuning: AddedTuning, folder: Path, model: Path) -> Iterator[str]:
    """Yield what keeps the adapter in `folder` from being trained on beside the weights in `model`."""
    where = f"tuning.continue_from: {folder}"
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]
    if missing:
        yield f"{where}: has no {' and no '.join(missing)}; expected the folder of an adapter"
        return
    settings = read_json(folder / CONFIG)
    for key, value in described_as(tuning).items():
        if settings.get(key) != value:
            yield f"{where}: adapter of another kind: got {key} {settings.get(key)!r}; expected {value!r}"
    if (folder / PROVENANCE).exists():
        base = _made_beside(folder)
    else:
        named = Path(str(settings.get("base_model_name_or_path") or ""))
        if not any(named.glob("*.safetensors")):
            return  # of no folder that is here; whether its tensors fit is seen when they are loaded
        base = base_fingerprint(named)
    if base != base_fingerprint(model):
        yield f"{where}: {_of_another_base(base, model)}; set model to the adapter's base"


def base_mistake(folder: Path, model: Path) -> str | None:
    """Return what is wrong if the adapter in `folder` says that it was trained beside other weights than `model`'s."""
    if not (folder / PROVENANCE).exists() or (base := _made_beside(folder)) == base_fingerprint(model):
        return None
    return (
        f"{folder}: {_of_another_base(base, model)}; do: correct base_model_name_or_path in {folder / CONFIG}, or put "
        "the weights back that it was trained on"
    )


def _made_beside(folder: Path) -> str:
    made = read_json(folder / PROVENANCE)
    if "base_fingerprint" not in made:
        raise RunError(
            f"{folder / PROVENANCE}: damaged: has no base_fingerprint; do: export the adapter again"
        )
    return str(made["base_fingerprint"])


def _of_another_base(base: str, model: Path) -> str:
    return (
        f"adapter of another base: got one trained beside weights with the fingerprint {base[:12]}; "
        f"expected {base_fingerprint(model)[:12]}, those in {model}"
    )
