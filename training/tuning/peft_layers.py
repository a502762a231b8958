"""What peft puts into linear layers: LoRA and its kin, AdaLoRA, IA3."""

from pathlib import Path
from typing import Any

from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
from transformers import PreTrainedModel

from data_tools.settings import Settings
from training.base_model import Shapes, linear_layers
from training.tuning.adapter_files import ADAPTER_NAME
from training.tuning.settings import AdaloraTuning, Ia3Tuning, LoraTuning, QloraTuning


def inject(model: PreTrainedModel, tuning: Settings, base: Path, shapes: Shapes) -> None:
    """Put what the method adds into the model, in place; nothing for methods that add no layers."""
    if (peft_config := make_peft_config(tuning, base, shapes)) is not None:
        inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER_NAME)


def resolve_targets(targets: str | tuple[str, ...], shapes: Shapes) -> list[str]:
    """Return targets as peft takes them: names, or the last part of the name of each linear layer."""
    if isinstance(targets, tuple):
        return list(targets)
    return list(dict.fromkeys(layer.rpartition(".")[2] for layer in linear_layers(shapes)))


def make_peft_config(tuning: Settings, base: Path, shapes: Shapes) -> PeftConfig | None:
    """Return the settings of peft for a method that it injects into linear layers; None for other methods."""
    common: dict[str, Any] = {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    if isinstance(tuning, LoraTuning | QloraTuning | AdaloraTuning):
        common |= {
            "target_modules": resolve_targets(tuning.targets, shapes),
            "lora_alpha": tuning.alpha,
            "lora_dropout": tuning.dropout,
        }
    if isinstance(tuning, LoraTuning):
        return LoraConfig(
            r=tuning.rank,
            use_dora=tuning.dora,
            use_rslora=tuning.rslora,
            init_lora_weights="pissa" if tuning.init == "pissa" else True,
            **common,
        )
    if isinstance(tuning, QloraTuning):
        return LoraConfig(r=tuning.rank, use_rslora=tuning.rslora, **common)
    if isinstance(tuning, AdaloraTuning):
        # Our own allocator cuts the ranks back; peft's schedule is never run, but its settings must be there.
        return AdaLoraConfig(
            init_r=tuning.initial_rank,
            target_r=tuning.rank,
            tinit=tuning.warmup_steps,
            tfinal=tuning.final_steps,
            deltaT=tuning.every_steps,
            beta1=tuning.betas[0],
            beta2=tuning.betas[1],
            orth_reg_weight=tuning.orthogonality,
            total_step=tuning.warmup_steps + tuning.final_steps + 1,
            **common,
        )
    if isinstance(tuning, Ia3Tuning):
        return IA3Config(
            target_modules=list(tuning.targets), feedforward_modules=list(tuning.feedforward), **common
        )
    return None
