"""The streaming writer, read back by the safetensors package."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.safetensors_file import CheckedFile, FileRange, SafetensorsWriter, TensorSpec


def test_what_is_written_is_read_by_the_package(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "empty": torch.zeros(0),
        "b": torch.randn(7).to(torch.bfloat16),
        "view": torch.randn(20).narrow(0, 3, 4),
    }
    path = tmp_path / "file.safetensors"
    with SafetensorsWriter(
        path, {k: TensorSpec(v.dtype, tuple(v.shape)) for k, v in tensors.items()}
    ) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
    read = load_file(path)
    assert set(read) == set(tensors)
    checked = CheckedFile(path)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(checked.read(name), tensor)
        assert checked.dtype(name) == tensor.dtype
    assert checked.names == set(tensors)


def test_a_tensor_that_lies_in_another_file_is_copied_from_there(tmp_path: Path) -> None:
    flat = torch.randn(50)
    (tmp_path / "swapped").write_bytes(flat.numpy().tobytes() + b"padding")
    specs = {name: TensorSpec(torch.float32, (size,)) for name, size in (("a", 20), ("none", 0), ("b", 30))}
    with SafetensorsWriter(tmp_path / "file.safetensors", specs) as file:
        for name, first in (("a", 0), ("none", 20), ("b", 20)):
            file.write(name, FileRange(tmp_path / "swapped", 4 * first))
    read = load_file(tmp_path / "file.safetensors")
    assert torch.equal(torch.cat([read["a"], read["b"]]), flat)


def test_a_tensor_out_of_turn_is_our_own_bug(tmp_path: Path) -> None:
    spec = TensorSpec(torch.float32, (2,))
    with pytest.raises(AssertionError), SafetensorsWriter(tmp_path / "f", {"a": spec, "b": spec}) as file:
        file.write("b", torch.zeros(2))


@pytest.mark.parametrize("name", ["a", "b"])
def test_each_byte_that_changes_is_noticed_in_its_tensor_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file.safetensors"
    specs = {key: TensorSpec(torch.float32, (3,)) for key in ("a", "b")}
    with SafetensorsWriter(path, specs) as file:
        for key in specs:
            file.write(key, torch.ones(3))
    whole = path.read_bytes()
    for byte in range(12):
        damaged = bytearray(whole)
        damaged[len(whole) - (24 if name == "a" else 12) + byte] ^= 1
        path.write_bytes(damaged)
        checked = CheckedFile(path)
        with pytest.raises(SafetensorError, match=f"{name}: got the checksum .*; expected "):
            checked.read(name)
        checked.read("b" if name == "a" else "a")
