"""Teacher-forced loss: how likely a model finds the right answers, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from training.model_folder import ModelFolder

Document = tuple[NDArray[np.int32], NDArray[np.bool_]]  # ids [T], targets [T]


@dataclass(frozen=True, slots=True)
class Forced:
    """Of one document: Σ cross-entropy of its targets in nats, targets that were the likeliest token, targets."""

    loss: float
    hits: int
    tokens: int


@torch.inference_mode()
def force_documents(
    folder: ModelFolder,
    documents: Sequence[Document],
    *,
    batch_size: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Forced | None]:
    """Return the loss of each document; None for one the model has no positions for.

    Documents of like length share a batch, padded on the right: what is before a token does not see the padding.
    """
    found: list[Forced | None] = [None] * len(documents)
    fitting = [n for n, (ids, _) in enumerate(documents) if len(ids) <= folder.max_positions]
    order = sorted(fitting, key=lambda n: (-len(documents[n][0]), n))
    advance(len(documents) - len(order))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        of_documents = _target_logits(folder, [documents[n] for n in batch])
        for n, logits in zip(batch, of_documents, strict=True):
            found[n] = _score(logits, *documents[n])
        advance(len(batch))
    return found


def _target_logits(folder: ModelFolder, documents: Sequence[Document]) -> tuple[torch.Tensor, ...]:
    """Return what the model foretells of each document's targets: logits [targets, vocabulary]."""
    longest = max(len(ids) for ids, _ in documents)
    ids = torch.full((len(documents), longest), folder.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, (some, _) in enumerate(documents):
        ids[row, : len(some)] = torch.tensor(some.tolist())
        mask[row, : len(some)] = 1
    counts = [int(targets.sum()) for _, targets in documents]
    rows = torch.arange(len(documents)).repeat_interleave(torch.tensor(counts))
    places = [place for _, targets in documents for place in np.flatnonzero(targets).tolist()]
    # From the end, since the virtual tokens of prompt tuning stand before the first one.
    before = torch.tensor(places, dtype=torch.long) - 1 - longest

    def keep_targets(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return given[0][rows, before]

    # The head gets the positions before targets alone: over all of them its logits are the largest tensor by far.
    hook = folder.model.get_output_embeddings().register_forward_pre_hook(keep_targets)
    try:
        logits = folder.model(
            input_ids=ids.to(folder.device), attention_mask=mask.to(folder.device), use_cache=False
        ).logits
    finally:
        hook.remove()
    return torch.split(logits, counts)


def _score(logits: torch.Tensor, ids: NDArray[np.int32], targets: NDArray[np.bool_]) -> Forced:
    labels = torch.tensor(ids[targets].tolist(), dtype=torch.long, device=logits.device)
    exact = logits.float()
    loss = F.cross_entropy(exact, labels, reduction="sum").double()
    hits = (exact.argmax(-1) == labels).sum()
    return Forced(float(loss), int(hits), len(labels))
