"""What can be known to be wrong with `batch.sequence_parallel` before a run starts, without torch."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from training.tuning.settings import PrefixTuning, PromptTuning

if TYPE_CHECKING:
    from training.config import RunConfig

KEY = "batch.sequence_parallel"


def sequence_mistakes(config: "RunConfig", model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps several ranks from sharing a row; `model` is its config.json."""
    size = config.batch.sequence_parallel
    if size == 1:
        return
    yield from _head_mistakes(size, model)
    if isinstance(config.tuning, PromptTuning | PrefixTuning):
        yield (
            f"{KEY}: virtual tokens stand in front of each document, and a document may lie on several ranks: got "
            f"{size} with tuning.method {config.tuning.method}; expected 1, or another method"
        )
    for key in ("neftune", "adversarial"):
        if getattr(config.loss, key):
            yield (
                f"{KEY}: a move of the embeddings is as long as its whole document tells, which may lie on several "
                f"ranks: got {size} with loss.{key}; expected 1, or take loss.{key} out"
            )


def _head_mistakes(size: int, model: Mapping[str, Any]) -> Iterator[str]:
    heads = model.get("num_attention_heads")
    if not isinstance(heads, int):
        return
    kv_heads = model.get("num_key_value_heads") or heads
    possible = [n for n in range(1, heads + 1) if heads % n == 0 and _shares(kv_heads, n)]
    if size not in possible:
        yield (
            f"{KEY}: the model's attention heads cannot be shared out: got {size} ranks for {heads} heads and "
            f"{kv_heads} of keys and values; expected one of {', '.join(map(str, possible))}"
        )


def _shares(kv_heads: int, size: int) -> bool:
    """Return whether each rank gets as many heads of keys and values, or each of these goes to as many ranks."""
    return kv_heads % size == 0 or size % kv_heads == 0
