"""From a checkpoint to a Hugging Face folder that plain transformers loads.

Works on the checkpoint's files alone: no GPU, no process group, and one weight in memory at a time.
"""

import errno
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from data_tools.shard_index import TOKENIZER_FOLDER
from training.checkpoint_files import (
    DONE,
    CheckpointReader,
    best_checkpoint,
    check_base,
    finished_checkpoints,
)
from training.config import RunConfig, read_run_config, trained_base
from training.model_card import write_card
from training.model_weights import DTYPES, CheckpointWeights, RoundedTensors, Weights, write_weights
from training.quantized import METHOD, Int8Tensors, check_library, quantization_config
from training.report.tables import Section, read_shards_index
from training.run_folder import RunFolder
from training.tuning.merge import MergedWeights
from training.tuning.settings import AddedTuning, trains_everything

if TYPE_CHECKING:
    from training.loss_change import LossChange

logger = logging.getLogger(__name__)

LOSS_TOKENS = 16_384
ATTEMPTS = 3  # at a newest checkpoint that a running training deletes meanwhile


def export_run(
    run_folder: Path,
    checkpoint: str | None,
    output: Path,
    *,
    merge: bool = False,
    quantize: bool = False,
    loss_tokens: int = LOSS_TOKENS,
) -> Path:
    """Write a run's weights, tokenizer, chat template, generation settings and model card into `output`; return it.

    checkpoint: the name of a folder such as `step-000100`; None takes the newest, `best` the one that `save.best` has
    kept. Weights are rounded from the float32 master weights to the run's precision, which gives what the engine
    computed with. A run that trained an adapter gives the adapter's folder, for peft; with `merge` a whole model.
    quantize: the linear layers of a whole model in int8; how the loss changes is measured on `loss_tokens` held-out
    tokens, which loads the model. The folder appears under its name when it is complete. Raises RunError.
    """
    if not (run_folder / "config.yaml").exists():
        raise RunError(f"{run_folder}: not a run folder: it has no config.yaml")
    for attempt in range(1, ATTEMPTS + 1):
        folder = pick_checkpoint(run_folder / "checkpoints", checkpoint)
        try:
            _export_checkpoint(
                run_folder, folder, output, merge=merge, quantize=quantize, loss_tokens=loss_tokens
            )
        except (RunError, OSError):
            if (folder / DONE).exists():
                raise
            if checkpoint is not None or attempt == ATTEMPTS:
                raise RunError(
                    f"{folder}: was deleted by the running training while it was exported; do: raise save.keep, or "
                    "export the newest checkpoint"
                ) from None
            logger.info("%s: was deleted by the running training; the newest is taken instead", folder.name)
        else:
            break
    return output


def _export_checkpoint(
    run_folder: Path, checkpoint: Path, output: Path, *, merge: bool, quantize: bool, loss_tokens: int
) -> None:
    config = read_run_config(run_folder / "config.yaml")
    reader = CheckpointReader(checkpoint)
    _check_free(output)
    check_base(reader.progress, trained_base(config), where=reader.folder)
    dtype = DTYPES[config.precision]
    is_adapter = isinstance(config.tuning, AddedTuning) and not merge
    if quantize:
        _check_quantize(config, is_adapter=is_adapter)
    weights: Weights | None = None
    if not is_adapter:
        weights = (
            CheckpointWeights(reader)
            if trains_everything(config.tuning)
            else MergedWeights(config, reader, dtype)
        )
    with _partial_folder(output) as partial:
        _copy_tokenizer(config, reader.progress.shards_fingerprint, partial)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
        quantized = None
        if weights is None:
            from training.tuning.export import write_adapter

            write_adapter(config, reader, dtype, partial)
        else:
            _write_configs(
                config.model, dtype, partial, vocab_size=_vocab_size(weights.shapes), quantize=quantize
            )
            plain = RoundedTensors(weights, dtype)
            write_weights(Int8Tensors(weights, dtype) if quantize else plain, partial)
            if quantize:
                quantized = _measure(config, reader, plain, partial, loss_tokens)
        write_card(
            config,
            RunFolder(run_folder),
            reader.progress,
            partial,
            is_adapter=is_adapter,
            quantized=quantized,
            name=output.name,
        )


def _check_free(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise RunError(f"{output}: exists and is not empty; export to another folder, or remove it")


@contextmanager
def _partial_folder(output: Path) -> Iterator[Path]:
    """Give a folder OUTPUT.partial-… that is this export's alone; it becomes `output` when all went well.

    Of exports that begin at the same moment the first one to finish has the folder. What a killed one on this machine
    has left is removed. Raises RunError.
    """
    mine = f"{output.name}.partial-{socket.gethostname()}-"
    for left in output.parent.glob(f"{mine}*"):
        pid = left.name.removeprefix(mine).partition("-")[0]
        if pid.isdecimal() and psutil.pid_exists(int(pid)):
            raise RunError(
                f"{output}: another export is writing there; do: wait for it, or export to another folder"
            )
        shutil.rmtree(left, ignore_errors=True)
    partial = output.with_name(f"{mine}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        yield partial
        try:
            partial.rename(output)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise RunError(
                f"{output}: another export has written it meanwhile; do: look at that one, or export to another folder"
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_quantize(config: RunConfig, *, is_adapter: bool) -> None:
    if is_adapter:
        raise RunError(
            f"--quantize: got a run that trained an adapter (tuning.method {config.tuning.method}); expected a whole "
            "model: an adapter is small, and its base lies elsewhere; do: add --merge, or export without --quantize"
        )
    check_library("--quantize")


def _measure(
    config: RunConfig, reader: CheckpointReader, plain: RoundedTensors, folder: Path, max_tokens: int
) -> Section:
    """Measure what int8 has done to the loss, say it in a line, and return what the card says of it."""
    change: LossChange | None = None
    if max_tokens == 0:
        said = "its loss was not measured (--loss-tokens 0)"
    elif read_shards_index(config, reader.progress.shards_fingerprint) is None:
        said = "its loss could not be measured: the shards of the run are gone, or others now"
    else:
        from training.loss_change import measure_change

        change = measure_change(folder, plain, config.shards, max_tokens=max_tokens)
        said = change.describe(config.precision)
    logger.info("int8: %s", said)
    note = (
        f"The linear layers of the decoder are in int8, weights only, with one scale for each row, in the format "
        f"`pack-quantized` of {METHOD}; all else is in {config.precision}. {said[0].upper()}{said[1:]}."
    )
    return Section("Quantisation", *(change.table(config.precision) if change else ((), ())), note)


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


def _vocab_size(shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the rows of the embeddings, which a run may have added to."""
    return next(shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight"))


def _copy_tokenizer(config: RunConfig, fingerprint: str, folder: Path) -> None:
    """Copy the tokenizer of the shards, which need not hold their packs any more. Raises RunError if it is gone."""
    tokenizer = config.shards / TOKENIZER_FOLDER
    if not tokenizer.is_dir():
        raise RunError(
            f"shards: {tokenizer}: no such folder; expected the tokenizer and chat template that the run was trained "
            "with; do: put the shard folder back, or its folder `tokenizer` alone"
        )
    if read_shards_index(config, fingerprint) is None:
        logger.warning(
            "%s: the shards of the run are gone, or others now: the tokenizer is taken as it lies there, and the model "
            "card tells nothing of the data",
            config.shards,
        )
    for file in sorted(tokenizer.iterdir()):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _write_configs(model: Path, dtype: torch.dtype, folder: Path, *, vocab_size: int, quantize: bool) -> None:
    """Write the model's configuration and how to generate: it stops at the tokens that were trained to end a turn."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(model)
    config.dtype = dtype
    config.vocab_size = vocab_size
    if quantize:
        config.quantization_config = quantization_config()
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
