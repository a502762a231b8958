"""Conversations and tokenizers that the tests of chat and its helpers share."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from data_tools.chat import ChatTokenizer, Document
from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject
from data_tools.formats import get_format
from data_tools.sources import BadRow, cut_parts, list_files, read_part

# tokenizer folder, chat template, special tokens that the settings have to name
PAIRS: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "llama2": ("llama2", "llama2", {}),
    "llama2-vicuna": ("llama2", "vicuna", {}),
    "llama2-zephyr": ("llama2", "zephyr", {}),
    "mpt": ("mpt-chat", None, {}),
    "mpt-chatml": ("mpt-chat", "chatml", {}),
    "olmo": ("olmo-dolma2", "chatml", {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}),
}
TAGGED = tuple(name for name in PAIRS if name != "mpt")
SAMPLES = (
    ("alpaca", "alpaca_data.json"),
    ("alpaca", "alpaca_zh_carbonz0.json"),
    ("super_natural_instructions", "super_natural_instructions/*.json"),
    ("oasst_tree", "oasst1_trees.jsonl"),
    ("sharegpt", "vicuna_sharegpt_dummy.json"),
    ("sharegpt", "sharegpt_zh.jsonl"),
    ("sharegpt", "sharegpt_glaive_toolcall.json"),
    ("messages", "openai_messages/*.jsonl"),
)


@cache
def load_pair(shared_data: Path, name: str) -> ChatTokenizer:
    """Load one of PAIRS."""
    folder, template, named = PAIRS[name]
    return ChatTokenizer.load(shared_data / "tokenizers" / folder, template, **named)  # type: ignore[arg-type]


@cache
def real_conversations(shared_data: Path) -> tuple[Conversation, ...]:
    """Return every conversation of SAMPLES."""
    return tuple(_real_conversations(shared_data / "samples"))


def _real_conversations(samples: Path) -> Iterator[Conversation]:
    for name, pattern in SAMPLES:
        format_ = get_format(name)
        for part in cut_parts(list_files([samples / pattern]), format_.reader):
            for row in read_part(part):
                assert not isinstance(row, BadRow)
                made = format_.convert(row.value, part.name)
                yield from (item for item in made if not isinstance(item, Reject))


def chat(*turns: tuple[str, str], **fields: Any) -> Conversation:
    """Return a conversation of (role, content) turns."""
    messages = tuple(Message(role=role, content=content) for role, content in turns)  # type: ignore[arg-type]
    return Conversation(messages=messages, family="multi_turn", **fields)


def target_texts(tokenizer: ChatTokenizer, document: Document) -> list[str]:
    """Return the text of each run of targets."""
    runs: list[list[int]] = []
    before = False
    for token, target in zip(document.ids.tolist(), document.targets.tolist(), strict=True):
        if target and not before:
            runs.append([])
        if target:
            runs[-1].append(token)
        before = target
    return [tokenizer.decode(run) for run in runs]


def as_dicts(conversation: Conversation) -> list[dict[str, Any]]:
    """Return the messages for apply_chat_template."""
    return [message.as_dict() for message in conversation.messages]


def qwen3_template(shared_data: Path, folder: Path) -> str:
    """Write the Qwen 3 template to a file and return its path."""
    config = json.loads((shared_data / "tokenizers/qwen3-template-only/tokenizer_config.json").read_text())
    path = folder / "qwen3.jinja"
    path.write_text(config["chat_template"])
    return str(path)


def without_tags(template: str) -> str:
    """Return a template without its `{% generation %}` tags, as those that trim white space on both sides."""
    return template.replace("{%- generation -%}", "{#- -#}").replace("{%- endgeneration -%}", "{#- -#}")
