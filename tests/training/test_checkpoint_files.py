"""Reading checkpoints: any range from any number of files, and what is said of damaged ones."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_tools.errors import RunError
from training.checkpoint_files import (
    CheckpointReader,
    Progress,
    finished_checkpoints,
    partition,
    progress_checksum,
    rank_file,
)
from training.safetensors_file import SafetensorsWriter, TensorSpec

WEIGHT = torch.arange(35, dtype=torch.float32)


def write_checkpoint(folder: Path, world_size: int = 3) -> Path:
    """Write a finished checkpoint of one parameter of 5 x 7."""
    folder.mkdir(parents=True)
    for rank in range(world_size):
        start, stop = partition(35, rank, world_size)
        spec = TensorSpec(torch.float32, (stop - start,))
        with SafetensorsWriter(rank_file(folder, rank, world_size), {"master|w": spec}) as file:
            file.write("master|w", WEIGHT[start:stop])
    progress = Progress(7, 28, "f", 17, world_size, 7, ("exp_avg",), (), {"w": (5, 7)}, {})
    (folder / "progress.json").write_text(json.dumps(asdict(progress)))
    (folder / "DONE").write_text(progress_checksum((folder / "progress.json").read_bytes()))
    return folder


@given(st.integers(1, 1000), st.integers(1, 9))
def test_partitions_cover_a_parameter_once(numel: int, world_size: int) -> None:
    ranges = [partition(numel, rank, world_size) for rank in range(world_size)]
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(numel))


@pytest.mark.parametrize("new_world", [1, 2, 4, 40])
def test_slices_for_another_number_of_ranks(tmp_path: Path, new_world: int) -> None:
    reader = CheckpointReader(write_checkpoint(tmp_path / "step-000007"))
    slices = [reader.read("master", "w", *partition(35, rank, new_world)) for rank in range(new_world)]
    assert torch.equal(torch.cat(slices), WEIGHT)
    assert torch.equal(reader.weight("w"), WEIGHT.reshape(5, 7))
    assert reader.progress.packs_consumed == 28


def test_only_checkpoints_with_done_count(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        write_checkpoint(tmp_path / f"step-{step:06d}")
    (tmp_path / "step-000100" / "DONE").unlink()
    (tmp_path / "step-000200.partial").mkdir()
    assert [path.name for path in finished_checkpoints(tmp_path)] == ["step-000003", "step-000020"]
    with pytest.raises(RunError, match="no file DONE"):
        CheckpointReader(tmp_path / "step-000100")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[]", "AttributeError"),
        ("\x00", "JSONDecodeError"),
        ('{"format_version": 1}', "KeyError: 'shapes'"),
        ('{"format_version": 1, "shapes": {}}', "missing 9 required positional arguments"),
        ('{"format_version": 1, "shapes": {}, "step": "7"}', "step is '7'"),
        ('{"format_version": 1, "shapes": {}, "best": 3}', "must be a mapping"),
    ],
)
def test_a_progress_file_that_makes_no_sense_is_named(tmp_path: Path, text: str, found: str) -> None:
    folder = write_checkpoint(tmp_path / "step-000007")
    (folder / "progress.json").write_text(text)
    (folder / "DONE").write_text("")  # as it was before it had a checksum
    with pytest.raises(RunError) as caught:
        CheckpointReader(folder)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{folder}: the checkpoint is damaged: progress.json: ")
    assert found in line
    assert line.endswith("remove its folder to go on from the one before")


@pytest.mark.parametrize(("number", "other"), [('"step": 7', '"step": 5'), ("28", "29")])
def test_a_number_of_the_progress_that_was_changed_is_not_trained_on(
    tmp_path: Path, number: str, other: str
) -> None:
    folder = write_checkpoint(tmp_path / "step-000007")
    progress = folder / "progress.json"
    assert number in progress.read_text()
    progress.write_text(progress.read_text().replace(number, other))
    with pytest.raises(RunError, match=r"the checkpoint is damaged: progress.json: .* DONE has xxh3_64 "):
        CheckpointReader(folder)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "header", "progress", "version"])
def test_damage_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    folder = write_checkpoint(tmp_path / "step-000007")
    file = rank_file(folder, 1, 3)
    progress = folder / "progress.json"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage in ("flipped", "header"):
        content = bytearray(file.read_bytes())
        content[-30 if damage == "flipped" else content.index(b"F32")] ^= 1
        file.write_bytes(content)
    elif damage == "progress":
        progress.write_text(progress.read_text()[:20])
    else:
        progress.write_text(json.dumps(json.loads(progress.read_text()) | {"format_version": 99}))
        (folder / "DONE").write_text("")
    expected = "got version 99" if damage == "version" else "damaged.*remove its folder"
    with pytest.raises(RunError, match=expected):
        CheckpointReader(folder).weight("w")


def test_a_checkpoint_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "step-000007")
    for file in folder.glob("rank-*"):
        save_file(load_file(file), file)
    (folder / "DONE").write_text("")
    assert torch.equal(CheckpointReader(folder).weight("w"), WEIGHT.reshape(5, 7))
