"""Which activations of a forward are kept for the backward, which are computed again, and where they wait meanwhile."""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import PreTrainedModel

from training.config import RunConfig

# Nearly all the arithmetic of a layer; what lies between (norms, rotations, sums, activations) costs memory, not time.
KEPT = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "torch_attn::_varlen_attn",
    }
)
# By operation, in order: its result, and the version of each tensor in it.
Results = dict[Any, deque[tuple[Any, list[int]]]]


def checkpoint_activations(model: PreTrainedModel, config: RunConfig) -> None:
    """Make a model's layers keep their inputs alone (true), their matrix products too (selective), or everything.

    A layer that is computed again gathers its weights again, so each way gives the same numbers, to the last bit. With
    `offload_activations` the inputs wait in pinned host memory.
    """
    if not config.activation_checkpointing:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if config.activation_checkpointing == "selective":
        options["context_fn"] = keep_products
    model.activation_checkpointing_enable(options, offload=config.offload_activations)


def keep_products() -> tuple["_Keep", "_Replay"]:
    """Return what surrounds a layer in the forward, and what surrounds it when it is computed again.

    torch's own `create_selective_checkpoint_contexts` wants the very same operations both times. ZeRO-3 gathers weights
    at one time and finds them gathered at the other, so only the operations that are kept are counted here.
    """
    results: Results = defaultdict(deque)
    return _Keep(results), _Replay(results)


class _Keep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the results of the operations in KEPT."""

    def __init__(self, results: Results) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = results

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_kept(func):
            kept = tree_map_only(torch.Tensor, _alias, result)
            self._results[func].append((kept, _versions(kept)))
        return result


class _Replay(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the results back, each once, in place of computing them."""

    def __init__(self, results: Results) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = results

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if _is_kept(func):
            kept, versions = self._results[func].popleft()
            # Written over meanwhile: DeepSpeed's linear layer adds its bias in place.
            if _versions(kept) == versions:
                return kept
        return func(*args, **(kwargs or {}))


def _is_kept(func: Callable[..., Any]) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func._schema.name in KEPT


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same memory without a history, whose version goes up when the tensor is written to."""
    # Below autograd, where a mode stands, versions are not shared otherwise; torch's own checkpointing does it so.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()


def _versions(kept: Any) -> list[int]:
    return [leaf._version for leaf in tree_leaves(kept) if isinstance(leaf, torch.Tensor)]
