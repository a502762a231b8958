"""Fill and speed of best-fit-decreasing packing, and speed of the plan's choices, on drawn lengths.

    python benchmarks/bench_packing.py [--documents 3000000]

Lengths are log-normal, as instruction data nearly are. "much alike" is what best fit alone packs badly
(98.7 %); in "over half" no two documents fit into one pack, and no algorithm can fill it.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from data_tools.packing import pack
from data_tools.selection import Candidates, Rules, select
from data_tools.shard_index import TaskInfo

SHAPES = {
    "short answers, 2048": (5.0, 0.8, 8, 2048),
    "dialogues, 2048": (6.8, 0.8, 8, 2048),
    "dialogues, 4096": (6.8, 0.8, 8, 4096),
    "long context, 32768": (8.5, 1.2, 64, 32768),
    "much alike, 1024": (4.5, 0.5, 60, 1024),
    "over half, 1024": (6.6, 0.1, 600, 1024),
}


def draw_lengths(shape: tuple[float, float, int, int], count: int) -> NDArray[np.int64]:
    """Return `count` log-normal lengths between the shape's bounds."""
    mean, spread, least, most = shape
    drawn = np.random.default_rng(17).lognormal(mean, spread, count)
    return np.clip(drawn.astype(np.int64), least, most)


def bench_pack(name: str, count: int) -> None:
    """Pack `count` documents and print fill and speed."""
    capacity = SHAPES[name][3]
    lengths = draw_lengths(SHAPES[name], count)
    begin = time.perf_counter()
    packing = pack(lengths, capacity, seed=17)
    seconds = time.perf_counter() - begin
    tokens = np.add.reduceat(lengths[packing.items], packing.starts[:-1])
    fill = lengths.sum() / (packing.num_packs * capacity)
    below = int((tokens < 0.9 * capacity).sum())
    print(
        f"{name:22} {count:>10,} documents {packing.num_packs:>10,} packs  fill {fill:8.4%}  "
        f"{below:>9,} packs below 90 %  {count / seconds / 1e6:5.2f} M documents/s"
    )


def bench_select(count: int) -> None:
    """Choose among `count` conversations, a tenth of them duplicates, and print the speed."""
    rng = np.random.default_rng(17)
    content = rng.integers(0, 2**63, (count, 2)).astype(np.uint64)
    content[-count // 10 :] = content[: count // 10]
    candidates = Candidates(
        content=content,
        group=content[:, 0],
        source=np.zeros(count, np.uint16),
        task=rng.integers(0, 1600, count).astype(np.uint32),
        fate=np.zeros(count, np.uint8),
    )
    tasks = [TaskInfo(f"task{number}", "tasks", None, "multi_task") for number in range(1600)]
    rules = Rules(17, True, 0.01, 0.01, 0.1, (0.7,), (1000,))
    begin = time.perf_counter()
    selection = select(candidates, tasks, rules)
    seconds = time.perf_counter() - begin
    kept = int((selection.fate == 0).sum())
    print(f"choices: {count:,} conversations, {kept:,} kept  {count / seconds / 1e6:5.2f} M conversations/s")


def main() -> None:
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=3_000_000, help="documents of the largest case")
    documents = parser.parse_args().documents
    for name in SHAPES:
        for count in (20_000, documents):
            bench_pack(name, count)
    bench_select(documents)


if __name__ == "__main__":
    main()
