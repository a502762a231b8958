"""What is trained on what: invented rows and their tokenizer, packed; models that are only a config; a run of them."""

import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.invented_rows import alpaca_rows, dialogue_rows, write_rows
from benchmarks.trainers.turns import Racer
from data_tools.pack import pack
from data_tools.settings import load_data_settings
from data_tools.shards import open_shards
from training.config import load_run_config
from training.data import PackOrder, step_slots
from training.launch import check, find_devices, launcher_command, launcher_environment
from training.ops import ensure_ops, needed_ops
from training.run_folder import PARENT_VARIABLE, RunFolder, parent_variable

ROOT = Path(__file__).resolve().parents[2]
SEED = 17
BYTES_PER_TOKEN = 3.2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '\\n' + message['role'] + ': ' + message['content'] + '\\nassistant: ' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def num_parameters(self) -> int:
        """Return the number of weights."""
        head_dim = self.hidden // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + self.hidden + embeddings

    def operations(self, tokens: int, squares: int) -> float:
        """Return the floating-point operations of training on `tokens` tokens; `squares`: Σ length² of their documents.

        6 for each parameter and token, and 6 x layers x width for each squared token of a document's causal attention
        (PaLM, appendix B, halved for causality). What activation checkpointing computes again does not count.
        """
        return 6.0 * self.num_parameters * tokens + 6.0 * self.layers * self.hidden * squares

    def write(self, folder: Path, tokenizer: Path) -> None:
        """Make a model folder: the config, and the files of the tokenizer."""
        folder.mkdir(parents=True)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": self.tied,
        }
        (folder / "config.json").write_text(json.dumps(config))
        for path in tokenizer.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with a tokenizer and shards made from invented rows."""

    folder: Path
    seq_len: int

    @classmethod
    def make(cls, folder: Path, *, seq_len: int, num_tokens: int, vocabulary: int) -> "Project":
        """Invent about `num_tokens` tokens of rows, train a tokenizer on them, and pack them."""
        num_bytes = int(num_tokens * BYTES_PER_TOKEN)
        write_rows(alpaca_rows(SEED), folder / "alpaca.jsonl", num_bytes=num_bytes // 2)
        write_rows(dialogue_rows(SEED), folder / "dialogues.jsonl", num_bytes=num_bytes // 2)
        _train_tokenizer(folder, vocabulary)
        data = {
            "output": "shards",
            "tokenizer": "tokenizer",
            "seq_len": seq_len,
            "splits": {"validation": 0, "test": 0},
            "sources": [
                {"path": "alpaca.jsonl", "format": "alpaca"},
                {"path": "dialogues.jsonl", "format": "sharegpt"},
            ],
        }
        (folder / "data.yaml").write_text(yaml.safe_dump(data))
        pack(load_data_settings(folder / "data.yaml"), workers=1)
        return cls(folder, seq_len)

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def lengths(self) -> dict[str, float]:
        """Return of the documents in the packs: how many, and the lengths that so many of them do not exceed."""
        split = open_shards(self.shards).splits["train"]
        lengths = sorted(
            itertools.chain.from_iterable(split.pack(n).seq_lengths.tolist() for n in range(split.num_packs))
        )
        found: dict[str, float] = {
            "packs": split.num_packs,
            "documents": len(lengths),
            "seq_len": self.seq_len,
        }
        found["mean"] = sum(lengths) / len(lengths)
        for share in (0.5, 0.9):
            found[f"length_{share:.0%}"] = lengths[int(share * len(lengths))]
        return found

    def step_sizes(self, packs_per_step: int, steps: int) -> list[tuple[int, int]]:
        """Return Σ length and Σ length² of the documents of each of a run's first steps, over all ranks."""
        shards = open_shards(self.shards)
        split = shards.splits["train"]
        order = PackOrder(fingerprint=shards.fingerprint, seed=SEED, num_packs=split.num_packs)
        sizes = []
        for consumed in range(0, steps * packs_per_step, packs_per_step):
            slots = step_slots(order, consumed=consumed, packs_per_step=packs_per_step, end=None)
            lengths = [length for slot in slots for length in split.pack(slot.pack).seq_lengths.tolist()]
            sizes.append((sum(lengths), sum(length**2 for length in lengths)))
        return sizes

    def start(
        self,
        name: str,
        shape: Shape,
        ds_config: Mapping[str, Any],
        *,
        module: str = "shardtune",
        env: Mapping[str, str] | None = None,
        num_ranks: int | None,
        **settings: Any,
    ) -> tuple[Racer, RunFolder]:
        """Start one of the trainers; return it and its run folder. `settings` replace keys of run.yaml."""
        slug = name.replace(" ", "_").replace(",", "")
        shape.write(self.folder / "models" / slug, self.folder / "tokenizer")
        (self.folder / f"{slug}.json").write_text(json.dumps(ds_config))
        run_settings = {
            "name": slug,
            "model": f"models/{slug}",
            "from_scratch": True,
            "shards": "shards",
            "deepspeed": f"{slug}.json",
            "seed": SEED,
            "steps": 100_000,  # whoever measures ends it
            "optim": {"lr": 1e-5, "schedule": "constant", "warmup": 0},
            "save": {"every_steps": 10**6},
            "evaluate": {"every_steps": 10**6},
            "launch": {"gpus_per_node": num_ranks},
        }
        (self.folder / f"{slug}.yaml").write_text(yaml.safe_dump(run_settings | settings))
        config = load_run_config(self.folder / f"{slug}.yaml")
        devices = find_devices(config)
        shards, merged = check(config, devices)
        run = RunFolder(config.run_folder)
        with run.hold():
            run.prepare(config, merged, shards_fingerprint=shards.fingerprint)
        inherited = {**_environment(), **launcher_environment(devices), **(env or {})}
        ensure_ops(needed_ops(merged, on_gpu=devices.on_gpu), inherited)
        command = launcher_command(run, devices, module=f"benchmarks.trainers.{module}")
        return Racer(slug, command, inherited, self.folder, num_ranks=devices.num_ranks), run


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        PARENT_VARIABLE: parent_variable(),
        # The same heap for every trainer, and one that keeps up to 1 GiB in blocks of up to 32 MiB: given back and got
        # anew a page at a time, activations cost up to a tenth of a step, as the heap happens to lie.
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
        "MALLOC_MMAP_THRESHOLD_": str(2**25),
    }


def _train_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write a byte-level tokenizer of at most `vocabulary` tokens, trained on a million bytes of the rows."""
    texts = []
    for name in ("alpaca.jsonl", "dialogues.jsonl"):
        with (folder / name).open("rb") as lines:
            texts += [json.dumps(orjson.loads(line), ensure_ascii=False) for line in lines.readlines(500_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        **{"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"},
    }
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(names))
