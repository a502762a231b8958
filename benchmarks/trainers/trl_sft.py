"""A rank of TRL's SFTTrainer on the same shards, which it reads as they are, with the same DeepSpeed configuration.

With BENCHMARK_ATTENTION=packed it is given this trainer's attention; by itself it takes PyTorch's SDPA, and Flash
Attention where that is installed. Each of its steps takes the packs that this trainer takes in that step.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from benchmarks.trainers.turns import Turn
from data_tools.shards import open_shards
from training.attention import ATTENTION_NAME
from training.config import RunConfig, read_run_config
from training.data import PackOrder
from training.distributed import init_world
from training.ds_config import nvme_folder, read_ds_config
from training.model import DTYPES
from training.run_folder import RunFolder, watch_parent

MOST_STEPS = 200


class WaitForTurn(TrainerCallback):  # type: ignore[misc]
    """Lets each optimizer step wait for this trainer's turn."""

    turn = Turn()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.turn.wait()


def with_documents(collate: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Add to what TRL collates what our attention wants to know of the documents."""

    def collate_with_documents(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        offsets = batch["cu_seq_lens_q"]
        return batch | {"document_offsets": offsets, "document_lengths": tuple(offsets.diff().tolist())}

    return collate_with_documents


def settings(config: RunConfig, ds_config: dict[str, Any], folder: Path, num_packs: int) -> SFTConfig:
    """Return TRL's settings for the run."""
    optim = config.optim
    return SFTConfig(
        output_dir=str(folder / "trl"),
        deepspeed=ds_config,
        bf16=config.precision == "bf16",
        fp16=False,
        use_cpu=os.environ.get("DS_ACCELERATOR") == "cpu",
        per_device_train_batch_size=config.batch.micro_packs,
        gradient_accumulation_steps=ds_config["gradient_accumulation_steps"],
        max_steps=num_packs // config.batch.packs_per_step,
        learning_rate=optim.lr,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.clip or 0.0,
        lr_scheduler_type="constant",
        gradient_checkpointing=bool(config.activation_checkpointing),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        padding_free=True,
        packing=False,
        max_length=None,
        train_sampling_strategy="sequential",
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to="none",
        seed=config.seed,
    )


def main(config_path: Path) -> None:
    """Train until the benchmark ends this process."""
    watch_parent()
    run, world = RunFolder(config_path.parent), init_world()
    config, ds_config = read_run_config(config_path), read_ds_config(run.ds_config_path)
    # To TRL the packs of a micro-batch are so many samples, whatever it lays them end to end as.
    ds_config["train_micro_batch_size_per_gpu"] = config.batch.micro_packs
    shards = open_shards(config.shards)
    order = PackOrder(
        fingerprint=shards.fingerprint, seed=config.seed, num_packs=shards.splits["train"].num_packs
    )
    files = sorted(str(path) for path in config.shards.glob("train-*.arrow"))
    num_packs = MOST_STEPS * config.batch.packs_per_step
    packs = load_dataset(
        "arrow", data_files=files, split="train", cache_dir=str(config.runs / f"cache-{world.rank}")
    )
    packs = packs.select([order[position] for position in range(num_packs)])
    own = os.environ.get("BENCHMARK_ATTENTION") != "packed"
    theirs = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
    with nvme_folder(ds_config):
        arguments = settings(config, ds_config, run.path, num_packs)  # now models are made in partitions
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(config.model),
            dtype=DTYPES[config.precision],
            attn_implementation=theirs if own else ATTENTION_NAME,
        )
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        trainer = SFTTrainer(model, arguments, train_dataset=packs, processing_class=tokenizer)
        if not own:
            trainer.data_collator = with_documents(trainer.data_collator)
        trainer.add_callback(WaitForTurn())
        trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
