"""Packed attention, and the checks of a model before it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data_tools.errors import RunError
from training.attention import ATTENTION_NAME
from training.base_model import read_weight_shapes
from training.config import SUPPORTED_MODEL_TYPES
from training.data import Batch
from training.model import (
    PackedCausalLM,
    check_weights,
)

LENGTHS = (37, 5, 1, 20)


def tiny(model_type: str, **keys: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        sliding_window=None,
        **keys,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def packed_batch(ids: torch.Tensor) -> Batch:
    none = torch.zeros(0, dtype=torch.int64)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return Batch(ids, positions, LENGTHS, none, none, none)


@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_documents_in_a_pack_have_the_logits_that_they_have_alone(model_type: str) -> None:
    model = tiny(model_type)
    ids = torch.randint(97, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = torch.cat([model(document, use_cache=False).logits[0] for document in ids.split(LENGTHS, 1)])
        model.set_attn_implementation(ATTENTION_NAME)
        packed = PackedCausalLM(model)(packed_batch(ids), output="logits")
    assert (packed - alone).abs().max() < 1e-4


def test_gradients_of_a_pack_are_those_of_its_documents() -> None:
    model = tiny("llama")
    ids = torch.randint(97, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    for document in ids.split(LENGTHS, 1):
        model(document, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    alone = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation(ATTENTION_NAME)
    PackedCausalLM(model)(packed_batch(ids), output="logits").logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, alone[name], atol=1e-4, rtol=1e-4)


def saved(tmp_path: Path, **keys: Any) -> tuple[PreTrainedModel, Path]:
    model = tiny("llama", **keys)
    model.save_pretrained(tmp_path)
    return model, tmp_path / "model.safetensors"


@pytest.mark.parametrize("tie", [False, True])
def test_a_saved_model_passes(tmp_path: Path, tie: bool) -> None:
    model, _ = saved(tmp_path, tie_word_embeddings=tie)
    check_weights(model, read_weight_shapes(tmp_path), tmp_path)


def test_a_weight_of_another_shape_and_one_that_is_missing_are_both_named(tmp_path: Path) -> None:
    model, file = saved(tmp_path, tie_word_embeddings=False)
    weights = load_file(file)
    weights["lm_head.weight"] = torch.zeros(96, 32)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(RunError) as error:
        check_weights(model, read_weight_shapes(tmp_path), tmp_path)
    assert "lm_head.weight has shape [96, 32]; config.json expects [97, 32]" in str(error.value)
    assert "model.layers.1.mlp.up_proj.weight is missing" in str(error.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    _, file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="not a whole safetensors file"):
        read_weight_shapes(tmp_path)


def test_a_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(RunError, match="from_scratch: true"):
        read_weight_shapes(tmp_path)
