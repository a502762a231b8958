"""What a run has seen of each source: its share of the tokens, and how often each of its conversations came by.

Both follow from the packs consumed, so nothing is kept: after a resume they are counted anew.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
            packs = np.repeat(np.arange(record.num_rows), np.diff(lengths.offsets.to_numpy()))
            cells = packs * num_sources + sources.flatten().to_numpy()
            sums = np.bincount(
                cells, weights=lengths.flatten().to_numpy(), minlength=record.num_rows * num_sources
            )
            tables.append(sums.astype(np.int64).reshape(record.num_rows, num_sources))
    return np.concatenate(tables)


def _tokens_once(shards: Shards) -> npt.NDArray[np.int64]:
    """Return the tokens of each source in the train split with every conversation taken once, int64 [sources]."""
    sums = dict.fromkeys([source.name for source in shards.sources], 0)
    columns = ["source", "split", "copies", "tokens", "repeated_tokens", "cut_tokens"]
    with pq.ParquetFile(shards.folder / ROWS_NAME) as rows:
        for batch in rows.iter_batches(columns=columns):
            taken = pc.and_(pc.equal(batch["split"], SPLIT), pc.greater(batch["copies"], 0))
            kept = batch.filter(taken)
            tokens, repeated, cut = (kept[name].cast(pa.int64()) for name in columns[3:])
            packed = pc.subtract(pc.add(tokens, repeated), cut)
            table = pa.table({"source": kept["source"], "tokens": packed})
            for row in table.group_by("source").aggregate([("tokens", "sum")]).to_pylist():
                sums[row["source"]] += row["tokens_sum"]
    return np.array(list(sums.values()), np.int64)
