"""Fused kernels in place of a model's rotations, norms and SwiGLU: Liger's, or what torch compiles of them.

Only functions without parameters are compiled. Around every module ZeRO-3 has hooks that gather its weights; compiling
the model (`engine.compile()`) traces into these, and had not ended one step of a tiny model after four minutes
(DeepSpeed 0.19.8, torch 2.13). Attention and loss stay ours.
"""

import importlib
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig


def use_liger(config: PretrainedConfig) -> None:
    """Make the models of this type that are built from here on in this process use Liger's kernels.

    They keep the names of their parameters. Liger has a function for each of SUPPORTED_MODEL_TYPES.
    """
    from liger_kernel.transformers import monkey_patch

    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{config.model_type}")
    apply(
        rope=True,
        rms_norm=True,
        swiglu=config.hidden_act == "silu",
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )


def use_compiled(config: PretrainedConfig) -> None:
    """Make all models of this type in this process compute these parts with compiled functions."""
    _compile_parts(config.model_type, gated=config.hidden_act == "silu")


@cache
def _compile_parts(model_type: str, *, gated: bool) -> None:
    modeling: ModuleType = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    prefix = model_type.capitalize()
    # Rows differ in length: without `dynamic` each length would be compiled for itself.
    normalise, gate = torch.compile(_normalise, dynamic=True), torch.compile(_gate, dynamic=True)

    def norm_forward(self: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return normalise(hidden, self.weight, self.variance_epsilon)  # type: ignore[arg-type]

    def mlp_forward(self: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(gate(self.gate_proj(hidden), self.up_proj(hidden)))  # type: ignore[no-any-return, operator]

    getattr(modeling, f"{prefix}RMSNorm").forward = norm_forward
    if gated:
        getattr(modeling, f"{prefix}MLP").forward = mlp_forward
    rotate = torch.compile(modeling.apply_rotary_pos_emb, dynamic=True)
    modeling.apply_rotary_pos_emb = rotate  # type: ignore[attr-defined]


def _normalise(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return the root mean square norm as transformers computes it: in float32, scaled in the model's type."""
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def _gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up
