"""What quantisation does to the loss: the same held-out documents, by the quantised weights and by the plain ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_tools.errors import RunError
from data_tools.shards import Split, open_shards
from training.evaluation.forced import Document, force_documents
from training.model_folder import ModelFolder, load_model_folder
from training.model_weights import RoundedTensors

SPLITS = ("validation", "test", "unseen_tasks", "train")  # the first that is there
BATCH_SIZE = 4


@dataclass(frozen=True, slots=True)
class LossChange:
    """The loss of the same documents, in nats for each target token, of both models."""

    split: str
    documents: int
    target_tokens: int
    plain: float
    quantized: float

    def describe(self, precision: str) -> str:
        """Return it in one line."""
        return (
            f"loss {self.quantized:.4f} in int8, {self.plain:.4f} in {precision}: difference "
            f"{self.quantized - self.plain:+.4f}, on {self.target_tokens:,} target tokens ({self.documents:,} "
            f"documents) of the split {self.split}"
        )

    def table(self, precision: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Return head and rows for the model card."""
        return ("weights", "loss"), (
            (precision, f"{self.plain:.6f}"),
            ("int8", f"{self.quantized:.6f}"),
            ("difference", f"{self.quantized - self.plain:+.6f}"),
        )


def measure_change(
    folder: Path, plain: RoundedTensors, shards_folder: Path, *, max_tokens: int
) -> LossChange:
    """Measure the quantised model in `folder`, then the same model with the tensors of a plain export.

    One model is in memory: the plain weights take the place of the others, one after the other. Raises RunError if no
    document fits the model.
    """
    shards = open_shards(shards_folder)
    name = next(name for name in SPLITS if name in shards.splits and shards.splits[name].num_packs)
    model = load_model_folder(folder)
    documents = _some_documents(shards.splits[name], max_tokens, model.max_positions)
    if not documents:
        raise RunError(
            f"--quantize: {shards_folder}: no document of {name} fits the model's {model.max_positions} positions; do: "
            "export with --loss-tokens 0"
        )
    quantized, target_tokens = _loss(model, documents)
    _put_weights(model.model, plain)
    before, _ = _loss(model, documents)
    return LossChange(name, len(documents), target_tokens, before, quantized)


def _some_documents(split: Split, max_tokens: int, max_positions: int) -> list[Document]:
    """Return the first documents of a split that fit the model, up to so many tokens, and one at least."""
    found: list[Document] = []
    left = max_tokens
    for number in range(split.num_packs):
        pack = split.pack(number)
        ends = np.cumsum(pack.seq_lengths)
        for start, stop in zip(ends - pack.seq_lengths, ends, strict=True):
            length = int(stop - start)
            if length > max_positions or not pack.targets[start:stop].any():
                continue
            if found and length > left:
                return found
            left -= length
            found.append((pack.input_ids[start:stop].astype(np.int32), pack.targets[start:stop]))
    return found


def _loss(model: ModelFolder, documents: list[Document]) -> tuple[float, int]:
    """Return the loss for each target token, and how many there are."""
    forced = [one for one in force_documents(model, documents, batch_size=BATCH_SIZE) if one is not None]
    tokens = sum(one.tokens for one in forced)
    return sum(one.loss for one in forced) / tokens, tokens


@torch.inference_mode()
def _put_weights(model: nn.Module, plain: RoundedTensors) -> None:
    """Put plain weights in place of those that the first forward has made of the int8 ones."""
    parameters = dict(model.named_parameters())  # beside them their scales, which are not used any more
    for name in plain.specs:
        parameters[name].copy_(plain.tensor(name))
