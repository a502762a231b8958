"""A run small enough for any test: invented rows, their tokenizer and shards, a model that is only a config.

Made by the real commands once for each test session, and copied where a test changes something.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders

from data_tools.pack import pack
from data_tools.settings import load_data_settings

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ 'Q: ' + message['content'] + '\\nA: ' }}{% endif %}{% endfor %}"
)


def make_tokenizer(folder: Path, texts: list[str]) -> int:
    """Write a byte-level tokenizer with a chat template; return the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size())


def make_small_run(folder: Path) -> Path:
    """Make corpus, tokenizer, model, shards and a run.yaml below `folder`; return the path of run.yaml."""
    rows = [
        {"instruction": f"What is {a} plus {b}?", "input": "", "output": f"{a} plus {b} is {a + b}."}
        for a in range(12)
        for b in range(12)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sums.json").write_text(json.dumps(rows))
    vocab_size = make_tokenizer(folder / "model", [text for row in rows for text in row.values()])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    (folder / "model" / "config.json").write_text(json.dumps(config))
    data = {
        "output": "shards",
        "tokenizer": "model",
        "seq_len": 128,
        "splits": {"validation": 0.1, "test": 0},
        "sources": [{"path": "sums.json", "format": "alpaca"}],
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    pack(load_data_settings(folder / "data.yaml"), workers=1)
    (folder / "zero3.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    return write_run(folder)


def write_run(folder: Path, **changes: Any) -> Path:
    """Write run.yaml into a folder made by make_small_run; a change of None takes the key out."""
    run = {
        "name": "small",
        "model": "model",
        "from_scratch": True,
        "shards": "shards",
        "runs": "runs",
        "deepspeed": "zero3.json",
        "batch": {"packs_per_step": 4},
        "steps": 4,
        "optim": {"lr": 1e-3},
        "precision": "fp32",
        "launch": {"gpus_per_node": 2},
    }
    path = folder / "run.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in (run | changes).items() if value is not None})
    )
    return path


def copy_small_run(made: Path, folder: Path) -> Path:
    """Copy the folder of a small run, so that a test may change it; return the new run.yaml."""
    shutil.copytree(made.parent, folder)
    return folder / "run.yaml"
