"""What each file of ds_configs costs: `python benchmarks/ds_configs.py [--output FILE.json]`.

The same few steps on two CPU ranks with each file, by the real command, one after the other. Prints the time of a step
and the peak memory of a rank as ratios to zero3.json. The parts that need a GPU (quantised weights and gradients, the
GPU's share of Twin-Flow) are taken out here; where offloading goes, memory and device are the same RAM, so its ratios
of memory say what it adds to the host, not what it saves on a GPU.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.training.harness import Project, make_project

FOLDER = Path(__file__).parents[1] / "ds_configs"
LAYERS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "zero3": ("zero3", {}),
    "zero3_zeropp (hpZ alone)": ("zero3_zeropp", {}),
    "zero3_offload_optimizer": ("zero3_offload_optimizer", {}),
    "zero3_offload_optimizer, states: bf16": ("zero3_offload_optimizer", {"states": "bf16"}),
    "zero3_twinflow": ("zero3_twinflow", {}),
    "zero3_offload_cpu": ("zero3_offload_cpu", {}),
    "zero3_offload_nvme": ("zero3_offload_nvme", {}),
}


def without_gpu(name: str, folder: Path) -> Path:
    """Write a file of ds_configs as two ranks without a GPU can run it; return its path."""
    settings = json.loads((FOLDER / f"{name}.json").read_text())
    zero = settings["zero_optimization"]
    for key in [key for key in zero if key.startswith("zero_quantized")]:
        del zero[key]
    if "zero_hpz_partition_size" in zero:
        zero["zero_hpz_partition_size"] = 2
    zero["sub_group_size"] = 2_000_000  # some sub-groups, as a model of full size has
    path = folder / f"{name}.json"
    path.write_text(json.dumps(settings))
    return path


def measure(project: Project, number: int, path: Path, optim: dict[str, Any], steps: int) -> dict[str, float]:
    """Train some steps; return the seconds of the fastest and the peak memory of a rank."""
    name = f"case{number}"
    project.train(
        name,
        steps=steps,
        deepspeed=str(path),
        batch={"packs_per_step": 4, "micro_packs": 1},
        precision="bf16",
        optim={"lr": 1e-4, **optim},
        evaluate={"every_steps": 10**6, "max_packs": 1},
        save={"every_steps": 10**6, "keep": 1, "mode": "sync"},
    )
    text = (project.run_folder(name) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()][3:]  # the first steps allocate
    return {
        "step_seconds": min(row["time/step_seconds"] for row in rows),  # what else runs here only adds to it
        "host_gib": max(row["memory/host_gib"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        os.environ["TMPDIR"] = name  # where the swap files go
        project = make_project(Path(name), rows_per_family=60, seq_len=128, layers=LAYERS)
        for number, (case, (file, optim)) in enumerate(CASES.items()):
            found[case] = measure(project, number, without_gpu(file, Path(name)), optim, options.steps)
            time, memory = (found[case][key] / found["zero3"][key] for key in ("step_seconds", "host_gib"))
            found[case] |= {"time_ratio": time, "memory_ratio": memory}
            print(f"{case:40} step {time:5.2f} x   memory {memory:5.2f} x", flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
