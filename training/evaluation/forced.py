"""Teacher-forced loss: how likely a model finds the right answers, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from training.model_folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Forced:
    """Of one document: Σ cross-entropy of its targets in nats, targets that were the likeliest token, targets."""

    loss: float
    hits: int
    tokens: int


@torch.inference_mode()
def force_documents(
    folder: ModelFolder,
    documents: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Forced | None]:
    """Return the loss of each document (ids int32 [T], targets bool [T]); None for one the model has no positions for.

    Documents of like length share a batch, padded on the right: what is before a token does not see the padding.
    """
    found: list[Forced | None] = [None] * len(documents)
    fitting = [n for n, (ids, _) in enumerate(documents) if len(ids) <= folder.max_positions]
    order = sorted(fitting, key=lambda n: (-len(documents[n][0]), n))
    advance(len(documents) - len(order))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = max(len(documents[n][0]) for n in batch)
        ids = torch.full((len(batch), longest), folder.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, n in enumerate(batch):
            length = len(documents[n][0])
            ids[row, :length] = torch.tensor(documents[n][0].tolist())
            mask[row, :length] = 1
        logits = folder.model(
            input_ids=ids.to(folder.device), attention_mask=mask.to(folder.device), use_cache=False
        ).logits
        logits = logits[:, -longest:]  # behind the virtual tokens of prompt tuning
        for row, n in enumerate(batch):
            found[n] = _score(logits[row], *documents[n])
        advance(len(batch))
    return found


def _score(logits: torch.Tensor, ids: NDArray[np.int32], targets: NDArray[np.bool_]) -> Forced:
    at = torch.tensor(np.flatnonzero(targets).tolist(), device=logits.device)
    labels = torch.tensor(ids[targets].tolist(), device=logits.device)
    before = logits[at - 1].float()
    loss = F.cross_entropy(before, labels, reduction="sum").double()
    hits = (before.argmax(-1) == labels).sum()
    return Forced(float(loss), int(hits), len(labels))
