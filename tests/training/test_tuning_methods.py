"""Tuning methods without DeepSpeed: virtual tokens of packed documents against plain peft, and AdaLoRA's budget."""

from typing import Any

import pytest
import torch
from peft import PeftModelForCausalLM, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from tests.training.test_model import LENGTHS, packed_batch, tiny
from training.attention import ATTENTION_NAME
from training.config import SUPPORTED_MODEL_TYPES
from training.model import PackedCausalLM
from training.tuning.adalora import OrthogonalityPenalty, budget
from training.tuning.settings import AdaloraTuning
from training.tuning.virtual import Prefix, Prompt

NUM_VIRTUAL = 3
IDS = torch.randint(97, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))


def plain_peft(model: PreTrainedModel, method: str, rows: torch.Tensor) -> PeftModelForCausalLM:
    kind = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[method]
    options: dict[str, Any] = {}
    if method == "prefix":
        config = model.config
        options = {
            "num_layers": config.num_hidden_layers,
            "num_attention_heads": config.num_key_value_heads,
            "token_dim": config.num_key_value_heads * 8,  # head_dim of `tiny`
        }
    peft_config = kind(num_virtual_tokens=NUM_VIRTUAL, task_type="CAUSAL_LM", **options)
    peft_model = get_peft_model(model, peft_config)
    peft_model.prompt_encoder["default"].embedding.weight.data.copy_(rows)
    return peft_model


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_each_document_of_a_pack_has_the_virtual_tokens_that_peft_gives_it_alone(
    model_type: str, method: str
) -> None:
    model = tiny(model_type)
    virtual = {"prompt": Prompt, "prefix": Prefix}[method](NUM_VIRTUAL, model.config, torch.float32)
    peft_model = plain_peft(model, method, virtual.embedding.weight.data)
    rows = [peft_model(input_ids=document).logits[0] for document in IDS.split(LENGTHS, 1)]
    alone = torch.cat([row[-length:] for row, length in zip(rows, LENGTHS, strict=True)])
    alone.logsumexp(-1).sum().backward()
    gradient = peft_model.prompt_encoder["default"].embedding.weight.grad

    model.set_attn_implementation(ATTENTION_NAME)
    packed = PackedCausalLM(model, virtual=virtual)(packed_batch(IDS), output="logits")
    assert isinstance(packed, torch.Tensor)
    packed.logsumexp(-1).sum().backward()
    assert (packed - alone).abs().max() < 1e-4
    torch.testing.assert_close(virtual.embedding.weight.grad, gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_work_with_activation_checkpointing(method: str) -> None:
    """peft's own prefix tuning fails here: recomputation drops the cache that holds the prefix."""
    gradients = []
    for checkpointing in (False, True):
        model = tiny("llama")
        model.set_attn_implementation(ATTENTION_NAME)
        model.requires_grad_(False)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        virtual = {"prompt": Prompt, "prefix": Prefix}[method](NUM_VIRTUAL, model.config, torch.float32)
        packed = PackedCausalLM(model, virtual=virtual).train()
        packed(packed_batch(IDS), output="logits").logsumexp(-1).sum().backward()
        gradients.append(virtual.embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_adalora_s_budget_falls_from_the_first_ranks_to_the_last() -> None:
    tuning = AdaloraTuning(rank=2, initial_rank=4, warmup_steps=2, final_steps=3)
    ranks = [budget(tuning, step=step, num_steps=10, num_layers=10) for step in range(1, 11)]
    # 20 + 20 x left³: of the 5 steps from 2 to 7, 4/5, 3/5, 2/5, 1/5 and 0 are left.
    assert ranks == [40, 40, 30, 24, 21, 20, 20, 20, 20, 20]


def test_orthogonal_vectors_cost_nothing() -> None:
    model = torch.nn.Module()
    model.q = torch.nn.Module()
    for part, shape in (("lora_A", (3, 5)), ("lora_B", (6, 3))):
        setattr(model.q, part, torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.eye(*shape))}))
    assert OrthogonalityPenalty(model, 0.5)().item() == 0
    with torch.no_grad():
        model.q.lora_A["default"].mul_(2)  # A Aᵀ is 4 I: its distance from I is √27
    assert OrthogonalityPenalty(model, 0.5)().item() == pytest.approx(0.5 * 27**0.5 / 2)
