"""What is said about precision, memory and speed before a run starts: each mistake one line."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError, SettingsError
from tests.conftest import ROOT
from tests.training.small_run import make_small_run, write_run
from training.config import check_run, load_run_config
from training.ds_config import build_ds_config, read_ds_file
from training.speed_checks import speed_mistakes

ADALORA = {"method": "adalora", "warmup_steps": 1, "final_steps": 1}
ZEROPP = "zero_optimization.zero_hpz_partition_size"
RATIO = "zero_optimization.offload_optimizer.ratio"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "loss_scale: missing with precision fp16, whose gradients vanish without one"),
        ({"precision": "fp16", "loss_scale": 0}, "loss_scale: got 0; expected dynamic, or a number above 0"),
        ({"precision": "fp16", "loss_scale": "auto"}, "loss_scale: got 'auto'; expected dynamic, or a number above"),
        ({"precision": "bf16", "loss_scale": 1024}, "loss_scale: got 1024 with precision bf16; belongs to fp16"),
        ({"loss_scale": "dynamic"}, "loss_scale: got dynamic with precision fp32; belongs to fp16; take it out"),
        ({"activation_checkpointing": "some"}, "activation_checkpointing: got 'some'; expected"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_run_config(write_run(tmp_path, **changes))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"offload_activations": True, "activation_checkpointing": False},
            "offload_activations: moves the inputs of checkpointed layers to the host: got true with "
            "activation_checkpointing false; expected activation_checkpointing true",
        ),
        (
            {"offload_activations": True, "activation_checkpointing": "selective"},
            "got true with activation_checkpointing selective; expected",
        ),
        (
            {"compile": True, "activation_checkpointing": "selective"},
            "compile: does nothing with activation_checkpointing selective: got both; expected one of them",
        ),
        (
            {"precision": "fp16", "loss_scale": 1.0, "optim": {"lr": 1.0, "name": "muon"}},
            "precision: muon's gradients are clipped before DeepSpeed takes the loss scale out of them: got fp16",
        ),
        (
            {"precision": "fp16", "loss_scale": 1.0, "tuning": ADALORA},
            "precision: is not proved with tuning.method adalora: got fp16; expected bf16 or fp32",
        ),
    ],
)
def test_mistakes_between_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (mistake,) = speed_mistakes(load_run_config(write_run(tmp_path, **changes)))
    assert message in mistake


def test_a_run_is_checked_for_them(tmp_path: Path) -> None:
    run = make_small_run(tmp_path / "made")
    config = load_run_config(run, ["offload_activations=true", "activation_checkpointing=false"])
    with pytest.raises(RunError, match="offload_activations: moves the inputs"):
        check_run(config)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_kernels_that_are_not_installed(tmp_path: Path) -> None:
    (mistake,) = speed_mistakes(load_run_config(write_run(tmp_path, kernels="liger")))
    assert mistake.startswith("kernels: liger needs liger-kernel, which is not installed; run: pip install")


def test_two_owners_of_the_same_parts(tmp_path: Path) -> None:
    mistakes = list(speed_mistakes(load_run_config(write_run(tmp_path, kernels="liger", compile=True))))
    assert mistakes[-1].startswith(
        "compile: would replace what liger has replaced: got true with kernels liger"
    )


@pytest.mark.parametrize(
    ("changes", "zero", "message"),
    [
        ({"precision": "fp16", "loss_scale": 1.0}, {}, "precision: got fp16, which needs a GPU, and there is none"),
        ({"kernels": "liger"}, {}, "kernels: got liger, which needs a GPU, and there is none here; expected torch"),
        ({"offload_activations": True}, {}, "offload_activations: got true, which needs a GPU, and there is none here"),
        ({}, {"zero_quantized_weights": True}, "zero_optimization.zero_quantized_weights: got true, which needs a GPU"),
        ({}, {"zero_quantized_gradients": True}, "zero_quantized_gradients: got true, which needs a GPU"),
        (
            {},
            {"zero_hpz_partition_size": 4},
            f"{ZEROPP}: must divide the number of ranks: got 4 with 2 ranks; expected one of 1, 2; the GPUs of a node",
        ),
        ({}, {"zero_hpz_partition_size": 0}, f"{ZEROPP}: got 0; expected a number of ranks"),
        ({"tuning": ADALORA}, {"zero_hpz_partition_size": 2}, f"{ZEROPP}: keeps copies of weights, which adalora"),
        ({}, {"offload_optimizer": {"device": "cpu", "ratio": 1.5}}, f"{RATIO}: got 1.5; expected a share from 0 to 1"),
        (
            {"optim": {"lr": 1.0, "name": "lion"}},
            {"offload_optimizer": {"device": "cpu", "ratio": 0.5}},
            f"{RATIO}: a share of the optimizer on the GPU works with device cpu, adamw, states fp32, and without "
            "adalora: got 0.5 with optim.name lion; expected 1",
        ),
        (
            {},
            {"offload_optimizer": {"device": "nvme", "nvme_path": "/tmp", "ratio": 0.5}},
            "got 0.5 with device nvme; expected 1",
        ),
        (
            {"precision": "bf16", "optim": {"lr": 1.0, "states": "bf16"}},
            {"offload_optimizer": {"device": "cpu", "ratio": 0.5}},
            "got 0.5 with optim.states bf16; expected 1",
        ),
    ],
)  # fmt: skip
def test_what_two_cpu_ranks_cannot_do(
    tmp_path: Path, changes: dict[str, Any], zero: dict[str, Any], message: str
) -> None:
    config = load_run_config(write_run(tmp_path, **changes))
    with pytest.raises(RunError) as caught:
        build_ds_config(
            config,
            world_size=2,
            run_folder=tmp_path,
            base={"zero_optimization": {"stage": 3} | zero},
            pin_memory=False,
        )
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_file_for_zeropp_says_all_that_a_cpu_lacks_at_once(tmp_path: Path) -> None:
    base = read_ds_file(ROOT / "ds_configs" / "zero3_zeropp.json")
    config = load_run_config(write_run(tmp_path))
    with pytest.raises(RunError) as caught:
        build_ds_config(config, world_size=2, run_folder=tmp_path, base=base, pin_memory=False)
    assert (
        len(str(caught.value).splitlines()) == 3
    )  # quantised weights, quantised gradients, hpZ over 8 ranks
    assert build_ds_config(
        config.model_copy(
            update={"batch": config.batch.model_copy(update={"packs_per_step": 16}), "kernels": "liger"}
        ),
        world_size=8,
        run_folder=tmp_path,
        base=base,
    )
