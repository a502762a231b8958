"""What the tests of whole runs share: a project folder, the real commands on it, and its processes."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.conftest import ROOT
from training.launch import Devices, launcher_environment

QUICKSTART = ROOT / "examples" / "quickstart"


def load_script(path: Path) -> ModuleType:
    """Return a script of the examples as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shardtune(*arguments: str | Path) -> list[str]:
    """Return the command line of shardtune, as installed in this environment."""
    return [sys.executable, "-m", "training.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment of a user on a machine without GPUs and without network."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def read_losses(run_folder: Path) -> dict[int, float]:
    """Return step -> train/loss; a step that stands twice is a failure."""
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert len({row["step"] for row in rows}) == len(rows)
    return {row["step"]: row["train/loss"] for row in rows}


@dataclass(frozen=True)
class Project:
    """A folder with model/, shards/ and the runs made from them."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs" / name

    def write_run(self, name: str, settings: dict[str, Any]) -> Path:
        """Write a run.yaml with the defaults of the tests and return it."""
        run: dict[str, Any] = {
            "name": name,
            "model": "model",
            "shards": "shards",
            "deepspeed": str(ROOT / "ds_configs" / "zero3_offload_cpu.json"),
            "precision": "fp32",
            "activation_checkpointing": True,
            "batch": {"packs_per_step": 4, "micro_packs": 1},
            "optim": {"lr": 1e-3, "weight_decay": 0.1, "warmup": 2, "schedule": "constant"},
            "evaluate": {"every_steps": 1000},
            "log": {"tensorboard": False},
            "launch": {"gpus_per_node": 2},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(run | settings))
        return path

    def start(self, run_yaml: Path, *overrides: str) -> "subprocess.Popen[str]":
        """Start training and return its process."""
        return subprocess.Popen(
            shardtune("train", run_yaml, *overrides),
            env=environment(),
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def train(self, name: str, *overrides: str, expect: int = 0, **settings: Any) -> dict[int, float]:
        """Train to the end and return step -> loss; `settings` replace whole keys of run.yaml."""
        process = self.start(self.write_run(name, settings), *overrides)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == expect, output
        return read_losses(self.run_folder(name))


def make_project(folder: Path, *, rows_per_family: int, seq_len: int, layers: dict[str, int]) -> Project:
    """Make a corpus, tokenizer, model and shards below `folder`, with the commands of the quickstart."""
    corpus, maker = load_script(QUICKSTART / "make_corpus.py"), load_script(QUICKSTART / "make_model.py")
    corpus.write_corpus(folder / "corpus", rows_per_family=rows_per_family)
    project = Project(folder)
    project.model.mkdir(parents=True)
    vocab_size = maker.train_tokenizer(folder / "corpus", project.model, 400)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocab_size, max_position_embeddings=4096, initializer_range=0.1, **layers)
    AutoModelForCausalLM.from_config(config).save_pretrained(project.model)
    pack(
        folder,
        {
            "output": "shards",
            "tokenizer": "model",
            "chat_template": "vicuna",
            "seq_len": seq_len,
            "splits": {"validation": 0.1, "test": 0.05},
            "sources": [
                {"path": "corpus/tasks/*.json", "format": "super_natural_instructions", "name": "tasks"},
                {"path": "corpus/alpaca.json", "format": "alpaca"},
                {"path": "corpus/dialogues.json", "format": "sharegpt", "name": "dialogues"},
            ],
        },
    )
    return project


def pack(folder: Path, settings: dict[str, Any], *options: str) -> str:
    """Write data.yaml and run `shardtune pack` on it; return what it printed."""
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))
    command: Sequence[str] = shardtune("pack", folder / "data.yaml", *options)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_step(project: Project, name: str, step: int) -> None:
    """Wait until the run has written the metrics of a step."""
    deadline = time.monotonic() + 120
    path = project.run_folder(name) / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.01)
    pytest.fail(f"{name} did not come to step {step}")


def ranks_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return the rank processes below `shardtune train`."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if _command(child)[1:4] == ["-u", "-m", "training.train"]]


def _command(process: psutil.Process) -> list[str]:
    """Return the command line of a process; none if it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def engine_logits(run_folder: Path, output: Path) -> torch.Tensor:
    """Return the logits of the first training pack in an engine put back to the run's newest checkpoint."""
    script = ROOT / "tests" / "training" / "engine_logits.py"
    subprocess.run(
        [sys.executable, script, run_folder / "config.yaml", output],
        env=environment() | launcher_environment(Devices(("0",), on_gpu=False)) | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    return load_file(output)["logits"]
