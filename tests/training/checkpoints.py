"""Comparing checkpoints, for tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from training.checkpoint_files import checkpoint_folder


def same_checkpoint(ours: Path, theirs: Path) -> bool:
    """Return whether two checkpoints of the same step hold the same bits, and were made from the same rows."""
    first, second = (json.loads((folder / "progress.json").read_text()) for folder in (ours, theirs))
    for progress in (first, second):
        del progress["settings"]  # two runs have two names
    names = [path.name for path in ours.glob("*.safetensors")]
    tensors = [(load_file(ours / name), load_file(theirs / name)) for name in names]
    return first == second and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in tensors
    )


def read_ledger(run_folder: Path, step: int) -> str:
    """Return the ledger in the checkpoint that a run has of a step."""
    folder = checkpoint_folder(run_folder / "checkpoints", step)
    ledger: str = json.loads((folder / "progress.json").read_text())["ledger"]
    return ledger
