"""From a checkpoint to a Hugging Face folder that plain transformers loads.

Works on the checkpoint's files alone: no GPU, no process group, and one weight in memory at a time.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from training.checkpoint_files import (
    CheckpointReader,
    best_checkpoint,
    check_base,
    finished_checkpoints,
)
from training.config import read_run_config, trained_base
from training.safetensors_file import SafetensorsWriter, TensorSpec
from training.tuning.merge import MergedWeights
from training.tuning.settings import AddedTuning, trains_everything

MAX_FILE_BYTES = 5 * 10**9
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_run(run_folder: Path, checkpoint: str | None, output: Path, *, merge: bool = False) -> Path:
    """Write a run's weights, tokenizer, chat template and generation settings into `output`; return it.

    checkpoint: the name of a folder such as `step-000100`; None takes the newest, `best` the one that `save.best` has
    kept. Weights are rounded from the float32 master weights to the run's precision, which gives what the engine
    computed with. A run that trained an adapter gives the adapter's folder, for peft; with `merge` a whole model. The
    folder appears under its name when it is complete. Raises RunError.
    """
    if not (run_folder / "config.yaml").exists():
        raise RunError(f"{run_folder}: not a run folder: it has no config.yaml")
    config = read_run_config(run_folder / "config.yaml")
    reader = CheckpointReader(pick_checkpoint(run_folder / "checkpoints", checkpoint))
    if output.exists() and any(output.iterdir()):
        raise RunError(f"{output}: exists and is not empty; export to another folder, or remove it")
    check_base(reader.progress, trained_base(config), where=reader.folder)
    dtype = DTYPES[config.precision]
    weights = (
        None
        if isinstance(config.tuning, AddedTuning) and not merge
        else CheckpointWeights(reader)
        if trains_everything(config.tuning)
        else MergedWeights(config, reader, dtype)
    )
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _copy_tokenizer(config.shards / "tokenizer", partial)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
    if weights is None:
        from training.tuning.export import write_adapter

        write_adapter(config, reader, dtype, partial)
    else:
        _write_configs(config.model, dtype, partial, vocab_size=_vocab_size(weights.shapes))
        write_weights(weights, dtype, partial)
    if output.exists():
        output.rmdir()
    partial.rename(output)
    return output


def pick_checkpoint(checkpoints: Path, name: str | None) -> Path:
    """Return the checkpoint of that name: a folder's, `best`, or None for the newest. Raises RunError."""
    finished = finished_checkpoints(checkpoints)
    if not finished:
        raise RunError(f"{checkpoints}: no finished checkpoint; train first")
    if name is None:
        return finished[-1]
    if name == "best":
        best = best_checkpoint(checkpoints)
        if best is None:
            raise RunError(
                f"{checkpoints}: no checkpoint is known to be the best; set save.best before training, or name one of "
                f"{', '.join(path.name for path in finished)}"
            )
        return best
    if name not in (path.name for path in finished):
        raise RunError(
            f"{checkpoints}: no finished checkpoint of that name: got {name}; "
            f"expected one of {', '.join(path.name for path in finished)}"
        )
    return checkpoints / name


class Weights(Protocol):
    """A whole model's weights, one at a time."""

    shapes: dict[str, tuple[int, ...]]

    def weight(self, name: str) -> torch.Tensor:
        """Return one of them, float32."""


class CheckpointWeights:
    """The weights of a checkpoint that holds the whole model."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.shapes = reader.progress.shapes
        self.weight = reader.weight


def _vocab_size(shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the rows of the embeddings, which a run may have added to."""
    return next(shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight"))


def write_weights(weights: Weights, dtype: torch.dtype, folder: Path) -> None:
    """Write a model's weights as safetensors files of at most 5 GB, with an index if there are several."""
    files = list(_plan_files(weights.shapes, dtype))
    weight_map = {}
    for number, shapes in enumerate(files, 1):
        name = (
            f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        )
        specs = {parameter: TensorSpec(dtype, shape) for parameter, shape in shapes.items()}
        with SafetensorsWriter(folder / name, specs) as file:
            for parameter in specs:
                file.write(parameter, weights.weight(parameter).to(dtype))
                weight_map[parameter] = name
    if len(files) > 1:
        total = sum(torch.Size(shape).numel() for shape in weights.shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _plan_files(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> Iterator[dict[str, tuple[int, ...]]]:
    members: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        num_bytes = TensorSpec(dtype, shape).num_bytes
        if members and size + num_bytes > MAX_FILE_BYTES:
            yield members
            members, size = {}, 0
        members[name] = shape
        size += num_bytes
    yield members


def _copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    for file in sorted(tokenizer.iterdir()):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _write_configs(model: Path, dtype: torch.dtype, folder: Path, *, vocab_size: int) -> None:
    """Write the model's configuration and how to generate: it stops at the tokens that were trained to end a turn."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(model)
    config.dtype = dtype
    config.vocab_size = vocab_size
    config.save_pretrained(folder)
    generation = (
        GenerationConfig.from_pretrained(model)
        if (model / "generation_config.json").exists()
        else GenerationConfig.from_model_config(config)
    )
    tokenizer = ChatTokenizer.load(folder, None)
    generation.pad_token_id = tokenizer.pad_token_id
    stops = sorted(tokenizer.stop_token_ids)
    generation.eos_token_id = stops if len(stops) > 1 else stops[0]
    generation.save_pretrained(folder)
