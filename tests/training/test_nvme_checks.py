"""Offload to NVMe: what is wrong with it is said before a rank starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.config import load_run_config
from training.launch import Devices, check

RANKS = Devices(("0", "1"), on_gpu=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("small") / "made")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return copy_small_run(made, tmp_path / "run").parent


def check_with(folder: Path, *, model: dict[str, Any] | None = None, **offload_param: Any) -> None:
    """Check the small run with its weights on the disk, and with another model if one is given."""
    on_disk = {"device": "nvme", "nvme_path": str(folder), "pin_memory": False}
    zero = {"stage": 3, "offload_optimizer": on_disk, "offload_param": on_disk | offload_param}
    (folder / "nvme.json").write_text(json.dumps({"zero_optimization": zero}))
    path = folder / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (model or {})))
    check(load_run_config(write_run(folder, deepspeed="nvme.json")), RANKS)


def test_a_buffer_that_is_too_small_for_the_largest_weight_names_it(folder: Path) -> None:
    vocab_size = json.loads((folder / "model/config.json").read_text())["vocab_size"]
    needed = vocab_size * 32 // 2  # the embeddings, on 2 ranks
    check_with(folder, buffer_size=needed)
    with pytest.raises(RunError) as caught:
        check_with(folder, buffer_size=needed - 1)
    assert str(caught.value) == (
        "zero_optimization.offload_param.buffer_size: too small for the largest weight's part: got "
        f"{needed - 1} elements; expected at least {needed}, for model.embed_tokens.weight [{vocab_size}, 32] on 2 "
        "ranks; take it out, and it is set to that"
    )


def test_a_disk_that_is_too_small_for_the_swap_files(folder: Path) -> None:
    # A model so large that no disk holds it: weights, gradients, master weights and two moments.
    layers = 1 + shutil.disk_usage(folder).free // (4096**2 * 4 * 4)
    huge = {"hidden_size": 4096, "intermediate_size": 4096, "num_hidden_layers": layers}
    with pytest.raises(
        RunError, match=r"nvme_path: .*: too small: got .* GiB free; expected .* GiB for the swap"
    ) as e:
        check_with(folder, model=huge)
    assert len(str(e.value).splitlines()) == 1


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    with pytest.raises(RunError, match=r"nvme_path: /proc/x: cannot be made: /proc: cannot be written to"):
        check_with(folder, nvme_path="/proc/x")


def test_a_variable_that_is_not_set_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAST_DISK", raising=False)
    with pytest.raises(RunError, match="the environment variable FAST_DISK is not set"):
        check_with(folder, nvme_path="${FAST_DISK}/swap")
    monkeypatch.setenv("FAST_DISK", str(folder))
    check_with(folder, nvme_path="${FAST_DISK}/swap")
