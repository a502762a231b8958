"""What a forward and backward keep in memory: `python benchmarks/memory.py [--shards FOLDER] [--output FILE.json]`.

One process, no ZeRO, on the CPU. Two tables, each case in a process of its own:

- the loss of a pack's targets alone and in chunks (TargetHead), against full logits and one cross-entropy, for a head
  as large as the vocabulary of the shards;
- activation_checkpointing true, selective and false, on a Llama of some layers.

Memory is the peak of the process beyond what it held before the first forward; time the median of some repetitions.
`--shards`: made by `shardtune pack`; without it, shards of invented rows, whose vocabulary is small.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_tools.shards import open_shards
from tests.training.harness import make_project
from training.activations import checkpoint_activations
from training.attention import ATTENTION_NAME
from training.config import RunConfig
from training.data import Batch, PackOrder, make_batch, step_slots
from training.loss import TargetHead
from training.model import PackedCausalLM

WIDTH, LAYERS, REPETITIONS = 256, 8, 2
SMALL = 512  # a vocabulary
HEADS = ("full", "chunked")
WAYS = ("false", "selective", "true")


def first_packs(shards_folder: Path, num_packs: int) -> Batch:
    """Return the first packs of a run on these shards as one row."""
    shards = open_shards(shards_folder)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=17, num_packs=split.num_packs)
    return make_batch(split, list(step_slots(order, consumed=0, packs_per_step=num_packs, end=None)))


def peak_and_seconds(work: Callable[[], None]) -> dict[str, float]:
    """Run `work` some times; return its peak memory in MiB, beyond what there was, and its median seconds."""
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    return {"peak_mib": (peak - before) / 2**20, "seconds": statistics.median(seconds)}


def measure_head(kind: str, batch: Batch, vocab_size: int) -> dict[str, float]:
    """Measure the loss of a pack and its gradients, from the last hidden states on."""
    linear = torch.nn.Linear(WIDTH, vocab_size, bias=False)
    head = TargetHead(linear)
    hidden = torch.randn(batch.num_tokens, WIDTH, requires_grad=True)
    labels = torch.full((batch.num_tokens,), -100)
    labels[batch.predictors] = batch.labels

    def work() -> None:
        if kind == "full":
            loss = F.cross_entropy(linear(hidden).float(), labels, reduction="sum")
        else:
            loss = head(hidden[batch.predictors], batch.labels, "loss_sum")
        loss.backward()
        hidden.grad = linear.weight.grad = None

    return peak_and_seconds(work)


def measure_layers(way: str, batch: Batch) -> dict[str, float]:
    """Measure a forward and backward of a Llama whose activations are treated in this way; its head is small."""
    batch = replace(batch, input_ids=batch.input_ids % SMALL, labels=batch.labels % SMALL)
    config = LlamaConfig(
        vocab_size=SMALL,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 11 // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1 << 20,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
    setting = {"false": False, "true": True}.get(way, way)
    checkpoint_activations(
        model, RunConfig.model_construct(activation_checkpointing=setting, offload_activations=False)
    )
    packed = PackedCausalLM(model).train()
    for parameter in packed.parameters():
        parameter.grad = torch.zeros_like(parameter)  # theirs is not what is measured
    return peak_and_seconds(lambda: packed(batch).backward())


def measure_apart(part: str, case: str, shards: Path, num_packs: int) -> dict[str, float]:
    """Measure one case in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--case",
        part,
        case,
        "--shards",
        str(shards),
        "--packs",
        str(num_packs),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--packs", type=int, default=1, help="packs of one forward")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        part, case = options.case
        batch = first_packs(options.shards, options.packs)
        measured = (
            measure_head(case, batch, open_shards(options.shards).vocab_size)
            if part == "head"
            else measure_layers(case, batch)
        )
        print(json.dumps(measured))
        return
    with tempfile.TemporaryDirectory() as name:
        shards = options.shards
        if shards is None:
            sizes = {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
            }
            shards = make_project(Path(name), rows_per_family=60, seq_len=1024, layers=sizes).shards
        batch = first_packs(shards, options.packs)
        print(
            f"{options.packs} packs: {batch.num_tokens} tokens, {len(batch.labels)} targets, "
            f"{len(batch.document_lengths)} documents; vocabulary {open_shards(shards).vocab_size}, width {WIDTH}"
        )
        found: dict[str, dict[str, float]] = {}
        for part, cases in (("head", HEADS), ("layers", WAYS)):
            for case in cases:
                row = found[f"{part} {case}"] = measure_apart(part, case, shards, options.packs)
                first = found[f"{part} {cases[0]}"]
                row["memory_ratio"] = row["peak_mib"] / first["peak_mib"]
                row["time_ratio"] = row["seconds"] / first["seconds"]
                print(
                    f"{part:>6} {case:9} peak {row['peak_mib']:8.0f} MiB ({row['memory_ratio']:5.2f} x)   "
                    f"{row['seconds']:7.3f} s ({row['time_ratio']:5.2f} x)",
                    flush=True,
                )
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
