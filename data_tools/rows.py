"""`rows.parquet`: every tokenized conversation, by row id, with its origin and what became of it.

From this table and the shards alone `verify` checks the conservation equations again.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.fingerprints import ContentHash, hash_file
from data_tools.parts import PartFile
from data_tools.plan import Plan
from data_tools.selection import FATES
from data_tools.settings import DataSettings
from data_tools.shard_index import SPLITS, FileInfo
from data_tools.shards import ROWS_SCHEMA
from data_tools.tokenize import DonePart, part_path


def write_rows(
    path: Path, settings: DataSettings, parts: Sequence[DonePart], plan: Plan, *, vocab_size: int
) -> FileInfo:
    """Write the table, one part after the other, and return what the index says about it."""
    content = ContentHash()
    partial = path.with_name(path.name + ".partial")
    first = 0
    with partial.open("wb") as file:
        with pq.ParquetWriter(file, ROWS_SCHEMA, compression="zstd", store_schema=False) as writer:
            for part in parts:
                tokenized = PartFile(part_path(settings, part.fingerprint), vocab_size=vocab_size)
                for batch in tokenized.batches:
                    source = settings.sources[part.source].name
                    record = _to_record(batch, source, first, plan)
                    if record.num_rows:
                        content.add(record)
                        writer.write_batch(record)
                    first += record.num_rows
        file.flush()
        os.fsync(file.fileno())
    info = FileInfo(partial.stat().st_size, hash_file(partial), content.hexdigest())
    partial.replace(path)
    return info


def _to_record(batch: pa.RecordBatch, source: str, first: int, plan: Plan) -> pa.RecordBatch:
    """Return the rows of a part's batch that were not rejected; `first` is the row id of the first."""
    batch = batch.filter(pc.equal(batch.column("reason"), ""))
    rows = slice(first, first + batch.num_rows)
    fate, split = plan.selection.fate[rows], plan.selection.split[rows]
    columns = {
        "row_id": np.arange(rows.start, rows.stop, dtype=np.uint64),
        "source": pa.repeat(source, batch.num_rows),
        **{name: batch.column(name) for name in ("origin", "task", "language", "references")},
        "fate": [FATES[number] for number in fate],
        "split": [SPLITS[s] if f == 0 else "" for s, f in zip(split, fate, strict=True)],
        "copies": plan.selection.copies[rows],
        "documents": plan.totals.documents[rows],
        "tokens": plan.table.tokens[rows],
        "repeated_tokens": plan.totals.repeated[rows],
        "cut_tokens": plan.totals.cut[rows],
        "target_tokens": plan.table.targets[rows],
        "cut_target_tokens": plan.totals.cut_targets[rows],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in ROWS_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS_SCHEMA)
