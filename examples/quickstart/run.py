"""The whole way on one CPU machine: corpus, tokenizer, model, shards, training, export, evaluation.

`make demo` runs it. Each step is a command that can be typed by hand; they are printed as they are run.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
BIN = Path(sys.executable).parent


def step(title: str, *command: str) -> None:
    """Run a command in the quickstart folder; end the demo if it fails."""
    print(f"\n== {title}\n$ {' '.join(command)}", flush=True)
    start = time.monotonic()
    program = str(BIN / command[0])
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([program, *command[1:]], cwd=HERE, env=env)
    if done.returncode:
        sys.exit(
            f"quickstart: `{' '.join(command)}` ended with {done.returncode}; by hand, in {HERE}, it goes on where it "
            "was; the demo itself begins anew"
        )
    print(f"-- {time.monotonic() - start:.0f} s", flush=True)


def evaluate(title: str, model: str, output: str, *options: str) -> None:
    """Let a model answer the held-out questions; the longest right answer has 8 tokens."""
    command = ("shardtune", "eval", model, "work/shards", "--output", output, "--max-new-tokens", "8")
    step(title, *command, "--batch-size", "128", *options)


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    step("A small corpus of three families", "python", "make_corpus.py", "work/corpus")
    step("A sentencepiece tokenizer and a tiny Llama", "python", "make_model.py", "work/corpus", "work/model")
    step("Pack it into token shards", "shardtune", "pack", "data.yaml")
    step("What was packed", "shardtune", "preview", "work/shards", "--num", "1")
    evaluate("Held-out questions, before training", "work/model", "work/before", "--chat-template", "shards")
    step(
        "Train: 2 ranks, ZeRO-3, optimizer and parameters offloaded to CPU", "shardtune", "train", "run.yaml"
    )
    step(
        "Export to a Hugging Face folder",
        "shardtune",
        "export",
        "work/runs/quickstart",
        "--output",
        "work/exported",
    )
    evaluate("Held-out questions, after training", "work/exported", "work/after")
    step("Before and after", "shardtune", "eval", "--compare", "work/before", "work/after")
    print(f"""
Everything lies in {WORK}:
  corpus/                    the three datasets, in their published formats
  shards/                    packed token shards, sealed by index.json
  runs/quickstart/           config, metrics.jsonl, tensorboard/, checkpoints/, logs/
  exported/                  the trained model, for plain transformers
  before/, after/            scores and every answer: results.md, report.html

Next, in {HERE}:
  {BIN}/tensorboard --logdir work/runs              # the tab Custom Scalars
  {BIN}/shardtune verify work/shards
  {BIN}/shardtune train run.yaml epochs=6      # goes on from the last checkpoint
""")


if __name__ == "__main__":
    main()
