"""How long training stands still for checkpoints: `python benchmarks/checkpoint.py [--output FILE.json]`.

The same run three times, by the real command on two CPU ranks: without checkpoints, with `save.mode: sync`, and with
`save.mode: async`. The model is large for its few tokens, so that a save takes longer than a step: the harder case,
since the update after a save has to wait until its state has been read; activations are kept, since computing them
again would only make a step longer. Prints the seconds of a step, the seconds that one save stops training, and the
ratio of the two modes.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.training.harness import Project, make_project

LAYERS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def measure(project: Project, name: str, *, steps: int, every: int, mode: str) -> dict[str, float]:
    """Train, and return the median seconds of a step without a save and the mean seconds that a save stops it."""
    project.train(
        name,
        steps=steps,
        batch={"packs_per_step": 2, "micro_packs": 1},
        precision="bf16",
        activation_checkpointing=False,
        evaluate={"every_steps": 10**6, "max_packs": 1},
        save={"every_steps": every, "keep": 1, "mode": mode},
    )
    text = (project.run_folder(name) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()][2:]  # the first steps allocate
    saves = sum((row["step"] - 1) % every == 0 for row in rows)
    seconds = {row["step"]: row["time/step_seconds"] for row in rows}
    return {
        "step_seconds": statistics.median(seconds.values()),
        "step_seconds_mean": statistics.mean(seconds.values()),
        "save_stall_seconds": sum(row["time/save_seconds"] for row in rows) / saves if saves else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=26)
    parser.add_argument("--every", type=int, default=6, help="steps from one save to the next")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens of a pack; a rank's step is one pack")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        project = make_project(Path(name), rows_per_family=60, seq_len=options.seq_len, layers=LAYERS)
        found: dict[str, Any] = {}
        for mode, every in (("none", 10**6), ("sync", options.every), ("async", options.every)):
            found[mode] = measure(
                project, mode, steps=options.steps, every=every, mode="sync" if mode == "none" else mode
            )
        checkpoint = next((project.run_folder("async") / "checkpoints").iterdir())
        found["checkpoint_gib"] = sum(path.stat().st_size for path in checkpoint.iterdir()) / 2**30
    found["stall_ratio"] = found["async"]["save_stall_seconds"] / found["sync"]["save_stall_seconds"]
    print(f"a checkpoint of {found['checkpoint_gib']:.2f} GiB, saved every {options.every} steps")
    for mode in ("none", "sync", "async"):
        row = found[mode]
        print(
            f"{mode:>6}: step {row['step_seconds']:6.2f} s (mean {row['step_seconds_mean']:.2f} s), "
            f"training stands still {row['save_stall_seconds']:6.2f} s a save"
        )
    print(f"async stops training for {found['stall_ratio']:.1%} of the time that sync does")
    steps = found["sync"]["save_stall_seconds"] / found["none"]["step_seconds"]
    print(f"a save takes as long as {steps:.1f} steps{'' if steps > 1 else ': take a smaller --seq-len'}")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
