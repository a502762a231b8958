"""A small invented corpus of all three families, a tokenizer made on it, and the settings that read them."""

import json
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana")
PLACES = ("harbour", "market", "forest", "library", "valley", "station", "garden", "bridge")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder: Path) -> Path:
    """Write a Hugging Face tokenizer folder: byte-level BPE of a few hundred tokens, ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [f"{name} walked to the {place}." for name in NAMES for place in PLACES]
    tokenizer.train_from_iterator(sentences, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def alpaca_rows(count: int) -> list[dict[str, str]]:
    """Return rows that all differ, of different lengths."""
    return [
        {
            "instruction": f"Who was at the {PLACES[i % 8]}, visit {i}?",
            "input": "" if i % 3 else "Answer in one sentence.",
            "output": " ".join(f"{NAMES[(i + k) % 8]} came to visit {i}." for k in range(1 + i % 7)),
        }
        for i in range(count)
    ]


def dialogue_rows(count: int, *, num_exchanges: int = 4) -> list[dict[str, Any]]:
    """Return ShareGPT dialogues with a system turn."""
    rows = []
    for i in range(count):
        turns = [{"from": "system", "value": f"You keep the diary of {NAMES[i % 8]}."}]
        for k in range(1 + (i * 5) % num_exchanges):
            turns.append({"from": "human", "value": f"Where were you on day {k} of week {i}?"})
            turns.append(
                {"from": "gpt", "value": f"On day {k} I was at the {PLACES[(i + k) % 8]}, week {i}."}
            )
        rows.append({"id": f"chat_{i}", "conversations": turns})
    return rows


def task_file(name: str, count: int) -> dict[str, Any]:
    """Return a Super-Natural-Instructions task."""
    return {
        "Contributors": ["nobody"],
        "Source": ["invented"],
        "Categories": ["Text Matching"],
        "Definition": [f"Say where the person of the sentence is ({name})."],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Diary"],
        "Positive Examples": [
            {"input": "Ada is home.", "output": "home", "explanation": "It says so."},
            {"input": "Ben is out.", "output": "out", "explanation": "It says so."},
        ],
        "Negative Examples": [],
        "Instances": [
            {
                "id": f"{name}-{i}",
                "input": f"{NAMES[i % 8]} is at the {PLACES[i % 8]} in hour {i}.",
                "output": [f"the {PLACES[i % 8]}", PLACES[i % 8]],
            }
            for i in range(count)
        ],
        "Instance License": ["MIT"],
    }


def write_corpus(folder: Path, *, count: int = 60) -> Path:
    """Write tokenizer, raw files of three families and data.yaml into `folder`; return data.yaml."""
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder / "tokenizer")
    # The last row is rejected, the one before it a duplicate but for its white space.
    rows = alpaca_rows(count)
    rows += [{**rows[0], "output": rows[0]["output"] + "  "}, {"instruction": "What is missing here?"}]
    (raw / "alpaca.json").write_text(json.dumps(rows, indent=1))
    lines = "".join(json.dumps(row) + "\n" for row in dialogue_rows(count))
    (raw / "chats.jsonl").write_text(lines)
    for name in ("task001_place", "task002_person", "task003_hour"):
        (raw / f"{name}.json").write_text(json.dumps(task_file(name, count // 3), indent=4))
    return write_settings(folder)


def default_settings() -> dict[str, Any]:
    """Return the settings of the small corpus, as they stand in data.yaml."""
    return {
        "output": "shards",
        "tokenizer": "tokenizer",
        "seq_len": 256,
        "splits": {"validation": 0.1, "test": 0.1},
        "sources": [
            {"path": "raw/task*.json", "format": "super_natural_instructions", "name": "tasks"},
            {"path": "raw/alpaca.json", "format": "alpaca"},
            {"path": "raw/chats.jsonl", "format": "sharegpt", "name": "chats"},
        ],
    }


def write_settings(folder: Path, **changes: Any) -> Path:
    """Write data.yaml with some of the default settings changed."""
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({**default_settings(), **changes}))
    return path
