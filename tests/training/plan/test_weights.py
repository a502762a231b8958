from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.errors import RunError
from tests.training.small_run import copy_small_run, write_run
from training.config import RunConfig, load_run_config
from training.plan.weights import base_weights, read_shape, run_weights
from training.tuning.methods import tune


def make_model(folder: Path, model_type: str, **changes: Any) -> torch.nn.Module:
    """Write a config.json and return its model without memory."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=500,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **changes,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 24}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "head_dim": 32}),
    ],
)
def test_weights_are_those_of_transformers_in_their_order(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(tmp_path, model_type, **changes)
    expected = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    assert list(base_weights(read_shape(tmp_path)).items()) == expected


@pytest.mark.parametrize(
    "tuning",
    [
        {"method": "full"},
        {"method": "full", "train": ["*.layers.1.*", "*norm*"]},
        {"method": "bitfit"},
        {"method": "lora", "rank": 8},
        {"method": "lora", "rank": 4, "targets": ["q_proj", "v_proj"], "dora": True},
        {"method": "adalora"},
        {"method": "ia3"},
        {"method": "adapter", "size": 16},
    ],
)
def test_what_is_trained_is_what_peft_and_we_make_trainable(
    tuning: dict[str, Any], small_run: Path, tmp_path: Path
) -> None:
    folder = copy_small_run(small_run, tmp_path / "run").parent
    model = make_model(folder / "model", "qwen2")
    config: RunConfig = load_run_config(
        write_run(folder, tuning=tuning, precision="bf16", from_scratch=False)
    )
    shape = read_shape(config.model)
    model = model.to_empty(device="cpu")
    tune(model, config, base_weights(shape))
    weights = run_weights(config, shape)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    planned = [weight for weight in weights if weight.trained]
    assert sorted(parameter.numel() for parameter in trained) == sorted(weight.numel for weight in planned)
    # Beside them AdaLoRA keeps one number for each layer, its rank, that is never used.
    whole = sum(parameter.numel() for name, parameter in model.named_parameters() if "ranknum" not in name)
    assert whole == sum(weight.numel for weight in weights)


def test_resized_embeddings_are_counted(tmp_path: Path) -> None:
    make_model(tmp_path, "llama")
    assert read_shape(tmp_path, vocab_size=700).vocab == 700
    assert read_shape(tmp_path, vocab_size=300).vocab == 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"model_type": "mamba"}',
            "this type of model is not supported: got 'mamba'; expected one of llama",
        ),
        ("[]", "got list; expected a JSON object"),
        ("{", "is not JSON"),
        (
            '{"model_type": "llama", "hidden_size": -4, "num_attention_heads": 2}',
            "hidden_size: got -4; expected a whole number above 0",
        ),
    ],
)
def test_a_model_that_cannot_be_planned_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=message.replace("(", r"\(")):
        read_shape(tmp_path)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder; expected a Hugging Face model folder"):
        read_shape(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no config\.json"):
        read_shape(tmp_path)
