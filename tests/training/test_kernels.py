"""Liger's kernels: what they replace, and what stays ours. Their numbers need a GPU."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
from transformers import AutoConfig, AutoModelForCausalLM
from training.config import SUPPORTED_MODEL_TYPES
from training.kernels import use_liger

for model_type in SUPPORTED_MODEL_TYPES:
    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                 num_key_value_heads=2, head_dim=8)
    config = AutoConfig.for_model(model_type, **sizes)
    plain = AutoModelForCausalLM.from_config(config)
    forward = type(plain).forward
    use_liger(config)
    ours = AutoModelForCausalLM.from_config(config)
    assert type(ours).forward is forward, "the loss must stay ours"
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    layer = ours.model.layers[0]
    assert all("liger" in type(module).__module__ for module in (layer.mlp, layer.input_layernorm, ours.model.norm))
"""


def test_norms_and_mlps_are_ligers_and_names_and_forward_stay() -> None:
    pytest.importorskip(
        "liger_kernel", reason="liger-kernel is not installed: pip install 'shardtune[liger]'"
    )
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, check=True)  # it changes transformers for good
