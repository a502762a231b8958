"""Ranks that share rows against ranks that have theirs for themselves, and against plain PyTorch."""

import subprocess
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_tools.shards import open_shards
from tests.training.harness import Project, environment, shardtune
from tests.training.ranks import run_ranks
from tests.training.sequence_worker import NUM_STEPS
from tests.training.test_matrix import LR, TOLERANCES, Matrix, furthest, write_ds_file
from training.checkpoint_files import CheckpointReader, checkpoint_folder
from training.data import Batch, PackOrder
from training.distributed import World
from training.metrics import read_metrics
from training.sequence_parallel import cut_row

# In float32: the same sums in another order. Relative, but for logits (of about 1) and weights. Seen: 1.2e-7, 1.1e-7,
# 1.1e-6, 2.7e-7.
SAME = {"loss": 1e-5, "norm": 1e-5, "logits": 1e-5, "weights": 1e-5}


def row_of(lengths: list[int], targets: list[int]) -> Batch:
    """Return a row of documents; targets: places in it, none of them a document's first."""
    total = sum(lengths)
    ids = torch.arange(100, 100 + total)
    positions = torch.cat([torch.arange(length) for length in lengths])
    at = torch.tensor(targets, dtype=torch.int64)
    return Batch(ids[None], positions[None], tuple(lengths), at - 1, ids[at], at % 3, position=40)


@given(st.data())
def test_pieces_hold_the_whole_row_and_each_target_once(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    total = sum(lengths)
    starts = {sum(lengths[:number]) for number in range(len(lengths))}
    targets = sorted(data.draw(st.sets(st.sampled_from(sorted({*range(total)} - starts) or [None]))) - {None})
    size = data.draw(st.integers(2, 5))
    row = row_of(lengths, targets)
    pieces = [cut_row(row, rank=rank, size=size) for rank in range(size)]

    assert len({piece.input_ids.shape for piece in pieces}) == 1
    assert torch.equal(torch.cat([piece.input_ids for piece in pieces], 1)[:, :total], row.input_ids)
    assert torch.equal(torch.cat([piece.position_ids for piece in pieces], 1)[:, :total], row.position_ids)
    assert all(piece.document_lengths == row.document_lengths for piece in pieces)
    for what in ("labels", "label_tasks"):
        assert torch.equal(torch.cat([getattr(piece, what) for piece in pieces]), getattr(row, what))
    for piece in pieces:
        # The token before each target, of this piece: targets are one more than it, as the row counts up.
        assert torch.equal(piece.input_ids[0, piece.predictors] + 1, piece.labels)
    assert [piece.piece for piece in pieces] == list(range(size))


def test_a_target_behind_a_cut_belongs_to_the_piece_before_it() -> None:
    row = row_of([16], [7, 8, 9])
    first, second = (cut_row(row, rank=rank, size=2) for rank in (0, 1))
    assert first.predictors.tolist() == [6, 7]
    assert first.labels.tolist() == [107, 108]
    assert second.predictors.tolist() == [0]
    assert cut_row(row, rank=0, size=1) is row


def test_ranks_that_share_a_row_are_neighbours() -> None:
    ranks = [World(rank, 4, rank, sequence_size=2) for rank in range(4)]
    assert [(w.data_rank, w.data_size, w.sequence_rank) for w in ranks] == [
        (0, 2, 0),
        (0, 2, 1),
        (1, 2, 0),
        (1, 2, 1),
    ]


@pytest.fixture(scope="module")
def matrix(tiny: Project, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Return plain PyTorch's steps on the tiny model: 4 heads, 2 of keys and values, packs of several documents."""
    return Matrix(tiny, tmp_path_factory.mktemp("sequence"))


def run_cases(matrix: Matrix, name: str, cases: dict[str, dict[str, Any]], *, ranks: int) -> dict[str, Any]:
    """Run cases in one launch; return their results by name."""
    listed = [
        {
            "name": case,
            "deepspeed": str(write_ds_file(matrix.folder, changes.pop("offload", "none"))),
            "expected": None
            if "tuning" in changes
            else str(matrix.folder / f"{changes.get('precision', 'fp32')}.safetensors"),
            "batch": {"packs_per_step": 4} | changes.pop("batch"),
            "run": changes,
        }
        for case, changes in cases.items()
    ]
    results = run_ranks(
        "tests.training.sequence_worker", matrix.folder / name, matrix.config, listed, num_ranks=ranks
    )
    return {result["name"]: result for result in results}


def check_attention(differences: dict[str, Any]) -> None:
    """See that a shared row's attention is one rank's: in bf16 as exact as its products are rounded."""
    del differences["name"]
    assert len(differences) == 24
    for name, difference in differences.items():
        assert difference <= (2e-6 if name.startswith("float32") else 0.1), (name, difference)


def check_case(matrix: Matrix, name: str, result: dict[str, Any], alone: dict[str, Any]) -> None:
    """Compare a case with plain PyTorch, and, in float32, with ranks that share no row."""
    precision = "bf16" if "bf16" in name else "fp32"
    plain = matrix.plain[precision]
    tolerance = TOLERANCES[precision]
    assert furthest(result["losses"], plain.losses) <= tolerance["loss"], name
    assert furthest(result["grad_norms"], plain.grad_norms) <= tolerance["norm"], name
    assert result["largest"] / LR <= tolerance["largest"], name
    assert result["mean"] / LR <= tolerance["mean"], name
    # Counted once for a row, however many ranks share it, and without what fills up the last piece.
    assert result["num_tokens"] == alone["num_tokens"], name
    assert result["num_squares"] == alone["num_squares"], name
    if precision == "fp32":
        differences = {
            "loss": furthest(result["losses"], alone["losses"]),
            "norm": furthest(result["grad_norms"], alone["grad_norms"]),
            "logits": max(abs(a - b) for a, b in zip(result["logits"], alone["logits"], strict=True)),
        }
        print(name, differences, result["largest"])
        assert all(differences[key] <= SAME[key] for key in differences), (name, differences)
        assert result["largest"] <= SAME["weights"], name
        assert result["evaluated"] == pytest.approx(alone["evaluated"], rel=SAME["loss"]), name


def documents_across_cuts(matrix: Matrix, size: int) -> tuple[int, int]:
    """Return, of the packs that are trained on: those with a document across a cut, and those that are filled up."""
    shards = open_shards(matrix.config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=matrix.config.seed, num_packs=split.num_packs)
    across = filled = 0
    for position in range(4 * NUM_STEPS):
        lengths = split.pack(order[position]).seq_lengths
        ends, total = set(lengths.cumsum().tolist()), int(lengths.sum())
        piece = -(-total // size)
        across += len(lengths) > 1 and any(cut * piece not in ends for cut in range(1, size))
        filled += total % size != 0
    return across, filled


def test_two_ranks_to_a_row_are_one_rank_and_two_ranks_apart(matrix: Matrix) -> None:
    across, filled = documents_across_cuts(matrix, 2)
    assert across >= 5
    assert filled >= 3
    shared: dict[str, Any] = {"sequence_parallel": 2}
    results = run_cases(
        matrix,
        "two",
        {
            "apart": {"batch": {}},
            "shared": {"batch": dict(shared)},
            "shared, bf16, on CPU": {"batch": dict(shared), "offload": "cpu", "precision": "bf16"},
        },
        ranks=2,
    )
    check_attention(results.pop("attention"))
    for name, result in results.items():
        check_case(matrix, name, result, results["apart"])


@pytest.mark.slow
def test_adapters_and_checkpointing_share_rows(matrix: Matrix) -> None:
    """AdaLoRA's penalty too is that of ranks apart. Dropout is off, see docs/long_rows.md."""
    lora = {"method": "lora", "rank": 4}
    adalora = {"method": "adalora", "warmup_steps": 1, "final_steps": 1}
    shared: dict[str, Any] = {"sequence_parallel": 2}
    results = run_cases(
        matrix,
        "adapters",
        {
            "apart": {"batch": {}},
            "selective": {"batch": dict(shared), "activation_checkpointing": "selective"},
            "2 packs to a row, checkpointing, on CPU": {
                "batch": shared | {"micro_packs": 2},
                "offload": "cpu",
                "activation_checkpointing": True,
            },
            "lora": {"batch": {}, "tuning": lora},
            "lora, shared": {"batch": dict(shared), "tuning": lora, "activation_checkpointing": True},
            "adalora": {"batch": {}, "tuning": adalora},
            "adalora, shared": {"batch": dict(shared), "tuning": adalora},
        },
        ranks=2,
    )
    for name in ("selective", "2 packs to a row, checkpointing, on CPU"):
        check_case(matrix, name, results[name], results["apart"])
    for method in ("lora", "adalora"):
        alone, together = results[method], results[f"{method}, shared"]
        assert alone["losses"] != results["apart"]["losses"]
        for key in ("losses", "grad_norms"):
            print(method, key, furthest(together[key], alone[key]))
            assert furthest(together[key], alone[key]) <= SAME["loss"], (method, key)


@pytest.mark.slow
def test_four_ranks_share_rows_by_two_and_by_four(matrix: Matrix) -> None:
    """Four to a row are more ranks than heads of keys and values."""
    results = run_cases(
        matrix,
        "four",
        {
            "apart": {"batch": {}},
            "2 x 2": {"batch": {"sequence_parallel": 2}},
            "1 x 4, checkpointing": {"batch": {"sequence_parallel": 4}, "activation_checkpointing": True},
            "2 x 2, on CPU": {"batch": {"sequence_parallel": 2, "micro_packs": 2}, "offload": "cpu"},
        },
        ranks=4,
    )
    check_attention(results.pop("attention"))
    for name, result in results.items():
        check_case(matrix, name, result, results["apart"])


@pytest.mark.slow
def test_the_command_goes_on_with_another_number_of_ranks_to_a_row(tiny: Project) -> None:
    """2, then 1, then 2 again, through the real command, against a run that shares no row."""
    batch = {"packs_per_step": 4, "micro_packs": 1}
    settings: dict[str, Any] = {
        "steps": 6,
        "save": {"every_steps": 2, "keep": 5},
        "evaluate": {"every_steps": 3},
        "batch": batch | {"sequence_parallel": 2},
    }
    tiny.train("whole", **settings | {"batch": batch})
    tiny.train("turns", **settings | {"steps": 2})
    tiny.train("turns", **settings | {"steps": 4, "batch": batch})
    tiny.train("turns", **settings)

    whole, turns = (read_metrics(tiny.run_folder(name)) for name in ("whole", "turns"))
    assert [row["step"] for row in turns] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(turns, whole, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=SAME["loss"])
        assert ours["train/grad_norm"] == pytest.approx(theirs["train/grad_norm"], rel=1e-4)
        assert ours["data/pack_fill"] == theirs["data/pack_fill"]
        assert ours["train/epoch"] == theirs["train/epoch"]
        for key in theirs:  # the last evaluation of a shorter run comes earlier
            if key.startswith("validation") and key in ours:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    readers = [
        CheckpointReader(checkpoint_folder(tiny.run_folder(name) / "checkpoints", 6))
        for name in ("turns", "whole")
    ]
    assert readers[0].progress.ledger == readers[1].progress.ledger
    name = "model.layers.1.mlp.down_proj.weight"
    difference = readers[0].weight(name) - readers[1].weight(name)
    assert float(difference.abs().max()) <= SAME["weights"]


@pytest.mark.slow
def test_the_selftest_holds_where_ranks_share_rows(tiny: Project) -> None:
    run_yaml = tiny.write_run("shared", {"steps": 10})
    done = subprocess.run(
        shardtune("selftest", run_yaml, "batch.sequence_parallel=2"),
        env=environment() | {"COLUMNS": "160"},
        cwd=tiny.folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for check in ("packed = unpacked", "(2 by 2) x 1 x 2 = (2 by 2) x 2 x 1", "(2 by 2) x 1 x 2 = 1 x 1 x 2"):
        assert check in done.stdout, done.stdout
    print(done.stdout)
