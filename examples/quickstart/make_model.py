"""Make what a fine-tuning usually starts from: a sentencepiece tokenizer and a Llama, here a tiny and untrained one.

python make_model.py CORPUS_FOLDER MODEL_FOLDER
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def texts(corpus: Path) -> Iterator[str]:
    """Yield everything that the tokenizer will meet in the corpus."""
    for file in sorted((corpus / "tasks").glob("*.json")):
        task = json.loads(file.read_text())
        yield task["Definition"][0]
        for row in task["Instances"]:
            yield from (row["input"], row["output"][0])
    for row in json.loads((corpus / "alpaca.json").read_text()):
        yield from (row["instruction"], row["input"], row["output"])
    for row in json.loads((corpus / "dialogues.json").read_text()):
        yield from (turn["value"] for turn in row["conversations"])


def train_tokenizer(corpus: Path, folder: Path, vocab_size: int = 512) -> int:
    """Train a tokenizer.model on the corpus, the same bytes in any folder; return its vocabulary's size."""
    model = io.BytesIO()  # with model_prefix the folder's name would stand in it
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts(corpus), "USER: ASSISTANT:"] * 2),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size())


def make_model(folder: Path, vocab_size: int) -> None:
    """Save a Llama of about half a million random weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


if __name__ == "__main__":
    corpus_folder, model_folder = map(Path, sys.argv[1:3])
    model_folder.mkdir(parents=True, exist_ok=True)
    make_model(model_folder, train_tokenizer(corpus_folder, model_folder))
