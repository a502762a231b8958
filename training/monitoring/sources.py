"""What a run has seen of each source: its share of the tokens, and how often each of its conversations came by.

Both follow from the packs consumed, so nothing is kept: after a resume they are counted anew.
"""

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from data_tools.arrow_values import values
from data_tools.shard_index import ROWS_NAME
from data_tools.shards import ShardFile, Shards
from training.data import epoch_permutation

SPLIT = "train"


class SourcesSeen:
    """The tokens of each source in the packs that a run has consumed, by the order in which it takes them."""

    def __init__(self, shards: Shards, *, seed: int) -> None:
        self._names = [source.name for source in shards.sources]
        self._fingerprint, self._seed = shards.fingerprint, seed
        self._table = _tokens_of_packs(shards)
        self._once = _tokens_once(shards)
        self._seen = np.zeros(len(self._names), np.int64)
        self._position = 0
        self._permutation: tuple[int, npt.NDArray[np.int64]] | None = None

    def metrics(self, consumed: int) -> dict[str, float]:
        """Return share and epochs of each source up to `consumed` packs, which never go back.

        `data_by_source/NAME_share` is of all tokens. `data_by_source/NAME_epochs` counts how often the source's
        conversations have been seen in the mean: with a weight of 3 in data.yaml an epoch of the run is 3 of them.
        """
        self._advance(consumed)
        whole = int(self._seen.sum())
        found: dict[str, float] = {}
        for name, seen, once in zip(self._names, self._seen.tolist(), self._once.tolist(), strict=True):
            if once and whole:
                found[f"data_by_source/{name}_share"] = seen / whole
                found[f"data_by_source/{name}_epochs"] = seen / once
        return found

    def _advance(self, consumed: int) -> None:
        num_packs = len(self._table)
        while self._position < consumed:
            epoch, start = divmod(self._position, num_packs)
            stop = min(num_packs, start + consumed - self._position)
            self._seen += self._table[self._order(epoch)[start:stop]].sum(0)
            self._position += stop - start

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._permutation is None or self._permutation[0] != epoch:
            order = epoch_permutation(self._fingerprint, self._seed, epoch, len(self._table))
            self._permutation = (epoch, order)
        return self._permutation[1]


def _tokens_of_packs(shards: Shards) -> npt.NDArray[np.int64]:
    """Return the tokens of each source in each pack of the train split, int64 [packs, sources]."""
    num_sources = len(shards.sources)
    tables = []
    for name in shards.index.splits[SPLIT].files:
        for record in ShardFile(shards.folder / name, vocab_size=shards.vocab_size).records:
            lengths, sources = record.column("seq_lengths"), record.column("source_ids")
            packs = np.repeat(np.arange(record.num_rows), np.diff(values(lengths.offsets)))
            cells = packs * num_sources + values(sources.flatten())
            sums = np.bincount(
                cells, weights=values(lengths.flatten()), minlength=record.num_rows * num_sources
            )
            tables.append(sums.astype(np.int64).reshape(record.num_rows, num_sources))
    return np.concatenate(tables)


def _tokens_once(shards: Shards) -> npt.NDArray[np.int64]:
    """Return the tokens of each source in the train split with every conversation taken once, int64 [sources]."""
    numbers = {source.name: number for number, source in enumerate(shards.sources)}
    sums = np.zeros(len(numbers), np.int64)
    columns = ["copies", "tokens", "repeated_tokens", "cut_tokens"]
    with pq.ParquetFile(shards.folder / ROWS_NAME) as rows:
        for batch in rows.iter_batches(columns=["source", "split", *columns]):
            copies, tokens, repeated, cut = (values(batch[name]).astype(np.int64) for name in columns)
            split, source = (batch[name].dictionary_encode() for name in ("split", "source"))
            ours = np.array([name == SPLIT for name in split.dictionary.to_pylist()], bool)
            number = np.array([numbers[name] for name in source.dictionary.to_pylist()], np.int64)
            taken = ours[values(split.indices)] & (copies > 0)
            packed = (tokens + repeated - cut)[taken]
            np.add.at(sums, number[values(source.indices)][taken], packed)
    return sums
