"""The tokenizer that the shards were made with against the model's: the same ids must mean the same tokens."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from data_tools.errors import TokenizerError
from data_tools.fingerprints import hash_file
from data_tools.shard_index import TOKENIZER_FOLDER
from training.config import RunConfig
from training.preflight.findings import Finding

if TYPE_CHECKING:
    from data_tools.shards import Shards

NUM_SHOWN = 3
ROLES = ("bos_token", "eos_token", "pad_token")


def check_tokenizer(config: RunConfig, shards: "Shards") -> Iterator[Finding]:
    """Yield what is wrong with the copy of the tokenizer in the shards, and where the model's differs from it."""
    from data_tools.chat.tokenizers import load_tokenizer  # pulls in tokenizers

    for name, info in shards.index.files.items():
        if name.startswith(f"{TOKENIZER_FOLDER}/") and hash_file(shards.folder / name) != info.sha256:
            path = shards.folder / name
            yield Finding(
                "tokenizer", "MISTAKE", f"{path}: damaged: its SHA-256 is not the index's; pack again"
            )
    try:
        ours = load_tokenizer(shards.tokenizer_folder, {})
    except TokenizerError as error:
        yield Finding("tokenizer", "MISTAKE", str(error))
        return
    try:
        models = load_tokenizer(config.model, {})
    except TokenizerError:
        yield Finding(
            "tokenizer",
            "warning",
            f"{config.model} has no tokenizer to compare with that of the shards; be sure that they were packed with "
            "the model's own",
        )
        return
    vocabulary = ours.tokenizer.get_vocab(with_added_tokens=True)
    differing = list(_differences(vocabulary, models.tokenizer.get_vocab(with_added_tokens=True)))
    if differing:
        shown = "; ".join(differing[:NUM_SHOWN])
        more = f"; and {len(differing) - NUM_SHOWN} more" if len(differing) > NUM_SHOWN else ""
        yield Finding(
            "tokenizer",
            # Weights that are drawn anew have learned no ids yet.
            "warning" if config.from_scratch else "MISTAKE",
            f"{config.shards}: packed with another tokenizer than the one in {config.model}: {shown}{more}; pack "
            "again with the model's",
        )
    for role in ROLES:
        if models.names.get(role) not in (None, ours.names.get(role)):
            yield Finding(
                "tokenizer",
                "warning",
                f"{role}: got {ours.names.get(role)!r} in the shards; the model's tokenizer has {models.names[role]!r}",
            )
    if not differing:
        yield Finding(
            "tokenizer",
            "ok",
            f"{len(vocabulary):,} tokens; every one of the model's has the same id in the shards",
        )


def _differences(ours: Mapping[str, int], models: Mapping[str, int]) -> Iterator[str]:
    """Yield the tokens of the model's that have another id in the shards, or none; the shards may have more."""
    for token, number in sorted(models.items(), key=lambda item: item[1]):
        if ours.get(token) != number:
            there = f"{ours[token]}" if token in ours else "not there"
            yield f"{token!r} is {number} in the model's and {there} in the shards'"


def check_template(shards: "Shards") -> Finding:
    """Return whether an export could answer chats: its template must be there and prove itself once more."""
    from data_tools.chat import ChatTokenizer

    try:
        chat = ChatTokenizer.load(shards.tokenizer_folder, None)
    except TokenizerError as error:
        return Finding("template", "MISTAKE", str(error))
    stops = ", ".join(str(token) for token in sorted(chat.stop_token_ids))
    return Finding("template", "ok", f"travels with the export; a turn ends with token {stops}")
