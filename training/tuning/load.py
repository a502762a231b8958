"""An export loaded as plain transformers and peft load it: a whole model, or an adapter beside its base."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.tuning.adapter_files import CONFIG, PROVENANCE
from training.tuning.bottleneck import load_adapter
from training.tuning.methods import keep_quantized_layers_training, quantization
from training.tuning.settings import AdapterTuning, QloraTuning


def load_exported(folder: Path, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """Return the model of a folder in evaluation mode: a whole one, or an adapter of peft's or of `shardtune export`.

    With virtual tokens (prompt tuning) its logits begin with those of them.
    """
    if not (folder / CONFIG).exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    made = json.loads((folder / PROVENANCE).read_text("utf-8")) if (folder / PROVENANCE).exists() else {}
    options = {"dtype": dtype}
    if made.get("method") == QloraTuning().method:
        options["quantization_config"] = quantization(double=made["double_quant"], dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    if made.get("method") == AdapterTuning().method:
        load_adapter(model, folder)
        return model.eval()
    tuned = PeftModel.from_pretrained(model, folder).eval()
    keep_quantized_layers_training(tuned)
    return tuned
