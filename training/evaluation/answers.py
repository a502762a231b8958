"""A model's answers to questions: batched, written down as they come, and gone on with after a kill."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from training.generation import Sampling
from training.model_folder import ModelFolder

Ids = NDArray[np.int32]
# From the numbers of some prompts and their ids [T] to their answers.
Answerer = Callable[[Sequence[int], Sequence[Ids]], list[str]]


def answer_prompts(
    answerer: Answerer,
    prompts: Mapping[int, Ids],
    path: Path,
    *,
    identity: str,
    batch_size: int,
    max_positions: int,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[int, str]:
    """Return the answer to each prompt (ids int32 [T], by number); what `path` holds already is not made again.

    identity: what the answers depend on, kept in the file's first line. max_positions: a prompt that leaves no room
    for an answer gets none. advance: is told of every answer at hand. The batches follow from the prompts alone: a run
    that was killed gives what an unbroken one would. Raises RunError if the file holds answers of another model, split
    or way of drawing.
    """
    done = _read(path, identity)
    wanted = {number: ids for number, ids in prompts.items() if len(ids) < max_positions}
    advance(len(done))
    with path.open("a", encoding="utf-8") as file:
        if not path.stat().st_size:
            file.write(json.dumps({"identity": identity}) + "\n")
        for batch in _batches(wanted, batch_size):
            if all(number in done for number in batch):
                continue
            made = answerer(batch, [wanted[number] for number in batch])
            for number, answer in zip(batch, made, strict=True):
                if number not in done:
                    file.write(json.dumps({"number": number, "answer": answer}, ensure_ascii=False) + "\n")
                    done[number] = answer
                    advance(1)
            file.flush()
    return done


def _read(path: Path, identity: str) -> dict[int, str]:
    """Return the answers of a file, and cut off a last line that a kill has torn."""
    if not path.exists():
        return {}
    whole = path.read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1].splitlines()
    with path.open("r+b") as file:
        file.truncate(whole.rfind(b"\n") + 1)
    if not lines:
        return {}
    try:
        head, *rest = [json.loads(line) for line in lines]
        found = head["identity"]
        answers = {line["number"]: line["answer"] for line in rest}
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}: is damaged; remove it, and its answers are made again") from None
    if found != identity:
        raise RunError(
            f"{path}: holds answers of another model, split or way of drawing; give another --output, or remove it"
        )
    return answers


def _batches(prompts: Mapping[int, Ids], batch_size: int) -> Iterator[list[int]]:
    """Yield the prompts' numbers, those of like length together, the longest first: what does not fit fails at once."""
    order = sorted(prompts, key=lambda number: (-len(prompts[number]), number))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def answer_with_transformers(folder: ModelFolder, sampling: Sampling) -> Answerer:
    """Return what lets transformers answer, a batch at a time."""
    return lambda numbers, prompts: _answer_batch(folder, prompts, sampling, first=numbers[0])


@torch.inference_mode()
def _answer_batch(
    folder: ModelFolder, prompts: Sequence[Ids], sampling: Sampling, *, first: int
) -> list[str]:
    """Return the answers to prompts, padded on the left to one length."""
    torch.manual_seed(seed_of(sampling.seed, first))
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), folder.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt.tolist())
        mask[row, longest - len(prompt) :] = 1
    arguments = sampling.arguments(folder)
    arguments["max_new_tokens"] = min(sampling.max_new_tokens, folder.max_positions - longest)
    made = folder.model.generate(
        input_ids=ids.to(folder.device), attention_mask=mask.to(folder.device), **arguments
    )
    return [answer_text(folder.tokenizer, row) for row in made[:, longest:].tolist()]


def answer_text(tokenizer: ChatTokenizer, ids: Sequence[int]) -> str:
    """Return an answer up to the token that ends it."""
    stops = tokenizer.stop_token_ids
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return tokenizer.decode_text(ids[:end]).strip()


def seed_of(seed: int, number: int) -> int:
    """Return the seed of the draws for a prompt, or for the batch that begins with it."""
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes signed 64-bit numbers
