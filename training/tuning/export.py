"""From a checkpoint to the folder of an adapter: what peft (for bottlenecks, bottleneck.py) puts beside the base."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import AutoConfig

from training.checkpoint_files import CheckpointReader
from training.config import RunConfig
from training.safetensors_file import SafetensorsWriter, TensorSpec
from training.tuning.adapter_files import CONFIG, PROVENANCE, WEIGHTS, described_as, tensor_name
from training.tuning.merge import BaseWeights, principal_parts
from training.tuning.peft_layers import make_peft_config
from training.tuning.settings import (
    AdapterTuning,
    AddedTuning,
    LoraTuning,
    PrefixTuning,
    PromptTuning,
    QloraTuning,
)


def write_adapter(config: RunConfig, reader: CheckpointReader, dtype: torch.dtype, folder: Path) -> None:
    """Write the adapter of a checkpoint; its tensors are rounded to `dtype`, as the engine has them."""
    tuning = config.tuning
    assert isinstance(tuning, AddedTuning)
    base = BaseWeights(config.model)
    pissa = isinstance(tuning, LoraTuning) and tuning.init == "pissa"
    if isinstance(tuning, AdapterTuning):
        settings: dict[str, Any] = described_as(tuning) | {"base_model_name_or_path": str(config.model)}
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    else:
        peft_config = _peft_config(tuning, config.model, base)
        peft_config.inference_mode = True
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(names := getattr(peft_config, key, None), set):
                setattr(peft_config, key, sorted(names))  # the same file each time
        peft_config.save_pretrained(folder)
    provenance: dict[str, Any] = {
        "base_fingerprint": reader.progress.base,
        "run": config.name,
        "step": reader.progress.step,
        "method": config.tuning.method,
    }
    if isinstance(tuning, QloraTuning):
        provenance["double_quant"] = tuning.double_quant
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")

    # The two products of a PiSSA adapter nearly cancel: what is taken off must not be rounded more than the base was.
    file_dtype = torch.float32 if pissa else dtype
    factor = 2 if pissa else 1
    specs = {}
    for name, shape in reader.progress.shapes.items():
        rank_axis = 0 if ".lora_A." in name else 1
        wider = tuple(size * factor if axis == rank_axis else size for axis, size in enumerate(shape))
        specs[tensor_name(name)] = TensorSpec(file_dtype, wider)
    with SafetensorsWriter(folder / WEIGHTS, specs) as file:
        tensors = (
            _pissa_tensors(reader, base, tuning, dtype)
            if isinstance(tuning, LoraTuning) and pissa
            else ((name, reader.weight(name).to(dtype)) for name in reader.progress.shapes)
        )
        for name, tensor in tensors:
            file.write(tensor_name(name), tensor)


def _peft_config(tuning: AddedTuning, model: Path, base: BaseWeights) -> PeftConfig:
    hf_config = AutoConfig.from_pretrained(model)
    heads, kv_heads = hf_config.num_attention_heads, hf_config.num_key_value_heads
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // heads
    common: dict[str, Any] = {
        "base_model_name_or_path": str(model),
        "task_type": "CAUSAL_LM",
        "num_layers": hf_config.num_hidden_layers,
        "num_transformer_submodules": 1,
    }
    if isinstance(tuning, PromptTuning):
        return PromptTuningConfig(
            num_virtual_tokens=tuning.num_virtual_tokens,
            token_dim=hf_config.hidden_size,
            num_attention_heads=heads,
            **common,
        )
    if isinstance(tuning, PrefixTuning):
        return PrefixTuningConfig(
            num_virtual_tokens=tuning.num_virtual_tokens,
            token_dim=kv_heads * head_dim,
            num_attention_heads=kv_heads,
            **common,
        )
    peft_config = make_peft_config(tuning, model, base.shapes)
    assert peft_config is not None, tuning
    if isinstance(peft_config, LoraConfig) and isinstance(tuning, LoraTuning) and tuning.init == "pissa":
        peft_config.init_lora_weights = True
        peft_config.r = 2 * tuning.rank
        peft_config.lora_alpha = tuning.alpha * (math.sqrt(2) if tuning.rslora else 2)
    return peft_config


def _pissa_tensors(
    reader: CheckpointReader, base: BaseWeights, tuning: LoraTuning, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a plain LoRA of twice the rank: the trained product less the one that training started from.

    A PiSSA adapter itself would need a base that has its beginning taken out.
    """
    for name in reader.progress.shapes:
        layer = name.partition(".lora_")[0]
        trained = reader.weight(name).to(dtype).float()
        beginning = principal_parts(base.weight(f"{layer}.weight").to(dtype).float(), tuning)
        if ".lora_A." in name:
            yield name, torch.cat([trained, beginning[0]], 0)
        else:
            yield name, torch.cat([trained, -beginning[1]], 1)
