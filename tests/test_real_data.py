"""The whole way on real rows with real tokenizers: pack, train, kill, go on, export, and the same logits."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from data_tools.shards import open_shards
from data_tools.verify import verify
from tests.conftest import ROOT
from tests.training.harness import (
    Project,
    engine_logits,
    environment,
    pack,
    ranks_of,
    shardtune,
    wait_for_step,
)

# What each tokenizer needs beside its folder.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama2": {"chat_template": "llama2"},
    "mpt-chat": {},
    "olmo-dolma2": {"chat_template": "chatml", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
}


def make_real_project(folder: Path, shared_data: Path, tokenizer: str, seq_len: int) -> Project:
    """Pack the real samples and make a small Llama for their vocabulary."""
    samples = shared_data / "samples"
    settings = {
        "output": "shards",
        "tokenizer": str(shared_data / "tokenizers" / tokenizer),
        "seq_len": seq_len,
        "splits": {"validation": 0.05, "test": 0.0, "unseen_tasks": ["task190_snli_classification"]},
        "sources": [
            {"path": str(samples / "alpaca_data.json"), "format": "alpaca"},
            {
                "path": str(samples / "super_natural_instructions" / "*.json"),
                "format": "super_natural_instructions",
            },
            {"path": str(samples / "oasst1_trees.jsonl"), "format": "oasst_tree"},
            {"path": str(samples / "vicuna_sharegpt_dummy.json"), "format": "sharegpt"},
            {"path": str(samples / "openai_messages" / "chat_train_gsm8k.jsonl"), "format": "messages"},
        ],
    }
    pack(folder, settings | TOKENIZERS[tokenizer], "--workers", "2")
    project = Project(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=open_shards(project.shards).vocab_size,
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(project.model)
    return project


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_real_rows_fill_packs_of_1024_and_nothing_is_lost(
    tmp_path: Path, shared_data: Path, tokenizer: str
) -> None:
    project = make_real_project(tmp_path, shared_data, tokenizer, 1024)
    report = verify(project.shards)
    assert not report.problems
    shards = open_shards(project.shards)
    tokens = sum(int(split.tokens.sum()) for split in shards.splits.values())
    packs = sum(split.num_packs for split in shards.splits.values())
    assert tokens / (packs * 1024) >= 0.97
    made = sum(source.conversations for source in shards.sources)
    assert made == 129 + 924 + 28 + 100 + 60
    for source in shards.sources:
        accounted = (
            source.kept + source.duplicates + sum(source.rejected.values()) + sum(source.left_out.values())
        )
        assert source.conversations == accounted


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["llama2", "mpt-chat", "olmo-dolma2"])
def test_30_steps_on_real_rows_killed_in_the_middle_end_as_if_unbroken(
    tmp_path: Path, shared_data: Path, tokenizer: str
) -> None:
    project = make_real_project(tmp_path, shared_data, tokenizer, 2048)
    settings: dict[str, Any] = {
        "steps": 30,
        "batch": {"packs_per_step": 2, "micro_packs": 1},
        "optim": {"lr": 3e-3, "warmup": 0.1, "schedule": "cosine"},
        "save": {"every_steps": 10, "keep": 1},
        "evaluate": {"every_steps": 15, "splits": ["validation", "unseen_tasks"]},
    }
    unbroken = project.train("unbroken", **settings)
    assert sum(unbroken[step] for step in range(26, 31)) < 0.9 * sum(unbroken[step] for step in range(1, 6))

    process = project.start(project.write_run("killed", settings))
    wait_for_step(project, "killed", 13)
    ranks_of(process)[0].kill()
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert project.train("killed", **settings) == unbroken

    run_folder = project.run_folder("killed")
    last = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["unseen_tasks/loss"] > 0
    exported = tmp_path / "exported"
    command = shardtune("export", run_folder, "--output", exported)
    subprocess.run(command, env=environment(), cwd=ROOT, check=True, capture_output=True)
    assert set(load_file(exported / "model.safetensors")) == set(
        load_file(project.model / "model.safetensors")
    )
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    first = open_shards(project.shards).splits["train"].pack(0)
    documents = torch.tensor(first.input_ids.tolist()).split(first.seq_lengths.tolist())
    with torch.no_grad():
        alone = torch.cat([model(document[None]).logits[0] for document in documents])
    assert (alone - engine_logits(run_folder, tmp_path / "logits.safetensors")).abs().max() < 1e-4
