"""What is kept of a forward: the same gradients each way, and what is computed again is counted."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.training.test_model import LENGTHS, packed_batch, tiny
from training.activations import checkpoint_activations, keep_products
from training.attention import ATTENTION_NAME
from training.config import RunConfig
from training.model import PackedCausalLM


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[func._schema.name] += 1  # type: ignore[attr-defined]
        return func(*args, **(kwargs or {}))


def backward(model_type: str, way: bool | str) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """Return the gradients of a packed row, and how often each operation ran in the backward."""
    model = tiny(model_type, attention_dropout=0.1)
    model.set_attn_implementation(ATTENTION_NAME)
    config = RunConfig.model_construct(activation_checkpointing=way, offload_activations=False)
    checkpoint_activations(model, config)
    ids = torch.randint(97, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    packed = PackedCausalLM(model).train()
    torch.manual_seed(2)
    total = packed(packed_batch(ids), output="logits").logsumexp(-1).sum()
    with Counted() as counted:
        total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, counted.counts


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])  # qwen2's linear layers have biases
def test_each_way_gives_the_same_gradients_and_selective_computes_no_product_again(model_type: str) -> None:
    expected, plain = backward(model_type, False)
    whole, again = backward(model_type, True)
    selective, kept = backward(model_type, "selective")
    for name, gradient in expected.items():
        assert torch.equal(gradient, whole[name]), name
        assert torch.equal(gradient, selective[name]), name
    products = ("aten::mm", "aten::addmm", "aten::bmm")
    count = {name: sum(counts[op] for op in products) for name, counts in
             (("plain", plain), ("again", again), ("kept", kept))}  # fmt: skip
    assert count["again"] > count["plain"] == count["kept"]
    assert kept["aten::rsqrt"] > plain["aten::rsqrt"], "the norms are computed again"


def test_a_product_that_was_written_over_is_computed_again() -> None:
    """DeepSpeed's linear layer adds its bias in place, which a result that was kept would have twice."""

    def layer(x: torch.Tensor) -> torch.Tensor:
        product = x @ weight
        product += 1.0
        return product.sigmoid() * (x @ weight)

    torch.manual_seed(0)
    weight = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(3, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).sum(), weight)
    kept = checkpoint(layer, x, use_reentrant=False, context_fn=keep_products)
    (gradient,) = torch.autograd.grad(kept.sum(), weight)
    assert torch.equal(gradient, expected)
