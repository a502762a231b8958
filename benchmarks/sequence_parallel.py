"""Peak memory of a rank that shares its row with others: `python benchmarks/sequence_parallel.py [--tokens 8192]`.

The same row, of three documents, forward and backward, by 1, 2 and 4 CPU ranks that share it; with every activation
kept and with the layers' inputs alone. No ZeRO, so that weights are the same everywhere: memory is the peak of the
rank that has most, beyond what it held before the first forward, which is activations and what a layer works with.
Ranks that share a machine share its cores: what is shown of time says little.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.activations import checkpoint_activations
from training.attention import ATTENTION_NAME, SEQUENCE_ATTENTION_NAME
from training.config import RunConfig
from training.data import Batch
from training.launch import free_port
from training.model import PackedCausalLM
from training.sequence_parallel import cut_row, sequence_group

WIDTH, LAYERS, HEADS, VOCABULARY = 256, 4, 8, 1024


def long_row(num_tokens: int) -> Batch:
    """Return a row of three documents, of which the middle one lies across the cut; every second token is a target."""
    lengths = (num_tokens // 4, num_tokens // 2, num_tokens // 4)
    ids = torch.randint(VOCABULARY, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])
    at = torch.nonzero(positions % 2)[:, 0]
    return Batch(ids, positions[None], lengths, at - 1, ids[0, at], torch.zeros_like(at))


def measure(size: int, num_tokens: int, *, checkpointing: bool) -> dict[str, float]:
    """Measure a forward and backward on this rank, one of `size` that share the row."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=num_tokens,
    )
    attention = ATTENTION_NAME if size == 1 else SEQUENCE_ATTENTION_NAME
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    checkpoint_activations(
        model, RunConfig.model_construct(activation_checkpointing=checkpointing, offload_activations=False)
    )
    packed = PackedCausalLM(model, sequence_group=sequence_group(size)).train()
    for parameter in packed.parameters():
        parameter.grad = torch.zeros_like(parameter)  # theirs is not what is measured
    batch = cut_row(long_row(num_tokens), rank=dist.get_rank(), size=size)
    before = psutil.Process().memory_info().rss
    dist.barrier()
    started = time.perf_counter()
    packed(batch).backward()
    seconds = time.perf_counter() - started
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return {"peak_mib": (peak - before) / 2**20, "seconds": seconds}


def run_ranks(size: int, num_tokens: int, *, checkpointing: bool) -> dict[str, float]:
    """Measure with `size` processes; return the largest figures among them."""
    command = [sys.executable, __file__, "--tokens", str(num_tokens), "--rank-of", str(size)]
    command += ["--checkpointing"] if checkpointing else []
    # Each tensor in memory of its own, which is given back when it is freed: the peak is that of tensors.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    ranks = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]
    texts = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        sys.exit("a rank has failed")
    found = [json.loads(text.splitlines()[-1]) for text in texts]
    return {key: max(one[key] for one in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192, help="of the row")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        dist.init_process_group("gloo")
        print(json.dumps(measure(options.rank_of, options.tokens, checkpointing=options.checkpointing)))
        dist.destroy_process_group()
        return
    results = []
    print(f"a row of {options.tokens} tokens; Llama, width {WIDTH}, {LAYERS} layers, float32")
    for checkpointing in (False, True):
        alone = 0.0
        for size in (1, 2, 4):
            found = run_ranks(size, options.tokens, checkpointing=checkpointing)
            alone = alone or found["peak_mib"]
            results.append({"ranks": size, "activation_checkpointing": checkpointing} | found)
            print(
                f"activation_checkpointing {str(checkpointing).lower():5}  {size} to a row: "
                f"{found['peak_mib']:6.0f} MiB a rank ({found['peak_mib'] / alone:.2f} x), {found['seconds']:5.1f} s",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
