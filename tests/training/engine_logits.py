"""Write the logits that the engine of a run, put back to its newest checkpoint, has on the first pack.

python engine_logits.py RUN_FOLDER/config.yaml OUTPUT.safetensors    (one process)
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_tools.shards import open_shards
from training.config import accumulation, read_run_config
from training.data import Slot, make_batch
from training.distributed import init_world
from training.ds_config import read_ds_config
from training.engine import build_engine, resume
from training.run_folder import RunFolder


def main() -> None:
    config_path, output = map(Path, sys.argv[1:])
    run, config, world = RunFolder(config_path.parent), read_run_config(config_path), init_world()
    ds_config = read_ds_config(run.ds_config_path)
    ds_config["gradient_accumulation_steps"] = accumulation(config, world.size)
    shards = open_shards(config.shards)
    engine = build_engine(config, ds_config, world, vocab_size=shards.vocab_size)
    assert resume(engine, run, config, shards, world).step > 0
    engine.eval()
    with torch.no_grad():
        logits = engine(make_batch(shards.splits["train"], [Slot(0, 0, True)]), output="logits")
    save_file({"logits": logits.float()}, output)


if __name__ == "__main__":
    main()
