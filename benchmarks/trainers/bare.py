"""A rank of a bare DeepSpeed loop, as somebody would write it who wants nothing but to train.

The same packs, model, attention, DeepSpeed configuration and optimizer as this trainer, and the same exact loss. No
evaluation, no checkpoints, no log, no learning-rate schedule, no check of anything. `bare CONFIG` takes the model's own
loss, over the logits of every position; with BENCHMARK_HEAD=targets the loss head of this trainer.
"""

import os
import sys
from pathlib import Path

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from benchmarks.trainers.turns import Turn
from data_tools.shards import open_shards
from training.attention import ATTENTION_NAME
from training.config import read_run_config
from training.data import PackOrder, make_batch, step_slots
from training.distributed import init_world
from training.ds_config import nvme_folder, read_ds_config
from training.model import DTYPES, PackedCausalLM
from training.run_folder import RunFolder, watch_parent


def main(config_path: Path) -> None:
    """Train until the benchmark ends this process."""
    watch_parent()
    run, turn, world = RunFolder(config_path.parent), Turn(), init_world()
    config, ds_config = read_run_config(config_path), read_ds_config(run.ds_config_path)
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    packs, micro = config.batch.packs_per_step, config.batch.micro_packs
    assert isinstance(micro, int)
    at_targets = os.environ.get("BENCHMARK_HEAD") == "targets"
    with nvme_folder(ds_config):
        live = HfDeepSpeedConfig(ds_config)
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(config.model),
            dtype=DTYPES[config.precision],
            attn_implementation=ATTENTION_NAME,
        )
        if config.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model = PackedCausalLM(model, live).train() if at_targets else model.train()
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=list(model.parameters()), config=ds_config
        )
        step = 0
        while True:
            turn.wait()
            slots = step_slots(order, consumed=step * packs, packs_per_step=packs, end=None)
            num_targets = int(sum(split.target_tokens[slot.pack] for slot in slots))
            mine = slots[world.rank * packs // world.size : (world.rank + 1) * packs // world.size]
            for start in range(0, len(mine), micro):
                batch = make_batch(split, mine[start : start + micro]).to(engine.device)
                engine.set_gradient_accumulation_boundary(start + micro == len(mine))
                if at_targets:
                    loss = engine(batch) / num_targets
                else:
                    labels = torch.full_like(batch.input_ids, -100)
                    labels[0, batch.predictors + 1] = batch.labels
                    lengths = torch.tensor(
                        (0, *batch.document_lengths), dtype=torch.int32, device=engine.device
                    )
                    loss = engine(
                        input_ids=batch.input_ids,
                        position_ids=batch.position_ids,
                        use_cache=False,
                        document_lengths=batch.document_lengths,
                        document_offsets=lengths.cumsum(0, dtype=torch.int32),
                        labels=labels,
                        num_items_in_batch=num_targets,
                    ).loss
                engine.backward(loss * world.size, scale_wrt_gas=False)
            engine.step()
            step += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
