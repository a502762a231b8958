"""Ask a model the held-out questions of a shard folder and count the answers that are exactly right.

    python ask.py MODEL_FOLDER SHARDS_FOLDER [--split test]

Plain transformers: nothing of shardtune is needed but the reader of the shards.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_tools.shards import open_shards


def questions(folder: Path, split: str) -> list[tuple[str, list[int], list[int]]]:
    """Return (family, ids up to the last answer, ids of the answer) for each document of a split."""
    shards = open_shards(folder)
    found = []
    for number in range(shards.splits[split].num_packs):
        pack = shards.splits[split].pack(number)
        start = 0
        for length, source in zip(pack.seq_lengths.tolist(), pack.source_ids.tolist(), strict=True):
            ids, targets = pack.input_ids[start : start + length], pack.targets[start : start + length]
            first = last = int(targets.nonzero()[0][-1])
            while targets[first - 1]:
                first -= 1
            found.append(
                (shards.sources[source].family, ids[:first].tolist(), ids[first : last + 1].tolist())
            )
            start += length
    return found


@torch.no_grad()
def answer(model: torch.nn.Module, prompts: list[list[int]], num_tokens: int, pad: int) -> list[list[int]]:
    """Return the greedy continuations of prompts, padded on the left to one length."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, pad_token_id=pad
    )
    return out[:, longest:].tolist()


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(open_shards(arguments.shards).tokenizer_folder)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    asked = questions(arguments.shards, arguments.split)
    right: Counter[str] = Counter()
    for start in range(0, len(asked), 64):
        some = asked[start : start + 64]
        num_tokens = max(len(reference) for _, _, reference in some)
        replies = answer(model, [prompt for _, prompt, _ in some], num_tokens, pad=tokenizer.eos_token_id)
        for (family, _, reference), reply in zip(some, replies, strict=True):
            right[family] += reply[: len(reference)] == reference
    totals = Counter(family for family, _, _ in asked)
    for family in sorted(totals):
        print(f"{family:12} {right[family] / totals[family]:7.1%}  ({right[family]} of {totals[family]})")
    print(f"{'all':12} {right.total() / totals.total():7.1%}  ({right.total()} of {totals.total()})")


if __name__ == "__main__":
    main()
