"""What is said about optimizers and losses before a run starts: each mistake in run.yaml, one line."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.errors import RunError, SettingsError
from tests.training.small_run import make_small_run, write_run
from training.config import RunConfig, check_run, load_run_config
from training.ds_config import build_ds_config

ON_CPU: dict[str, Any] = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
ON_DISK: dict[str, Any] = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run whose model folder holds weights."""
    folder = make_small_run(tmp_path_factory.mktemp("optim") / "made").parent
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model")).save_pretrained(
        folder / "model"
    )
    return folder


def config_of(folder: Path, **changes: Any) -> RunConfig:
    return load_run_config(write_run(folder, **({"from_scratch": False} | changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr": 1.0, "name": "adafactor"}}, "optim.name: got 'adafactor'; expected adamw, adamw8bit, lion"),
        ({"optim": {"lr": 1.0, "name": "adamv"}}, "optim.name: got 'adamv'; expected 'adamw', 'adamw8bit', 'lion'"),
        (
            {"optim": {"lr": 1.0, "momentum": 0.9}},
            "optim.momentum: got 0.9 with name: adamw; belongs to muon and sgd; take it out",
        ),
        (
            {"optim": {"lr": 1.0, "name": "sgd", "adam_lr": 0.1}},
            "optim.adam_lr: got 0.1 with name: sgd; belongs to muon; take it out",
        ),
        ({"optim": {"lr": 1.0, "decay": 1.5}}, "optim.decay: got 1.5; expected a share below 1"),
        ({"optim": {"lr": 1.0, "layer_decay": 1.1}}, "optim.layer_decay: got 1.1; expected less than or equal to 1"),
        ({"loss": {"adversarial": {"method": "pgd"}}}, "loss.adversarial: got method 'pgd'; expected method to be"),
        (
            {"loss": {"adversarial": {"method": "freelb", "start": 0.5}}},
            "loss.adversarial.start: got 0.5; expected at most epsilon, which is 0.3",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        config_of(tmp_path, **changes)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optim": {"lr": 1.0, "schedule": "wsd", "warmup": 2.0, "decay": 3.0}},
            "optim.decay: warm-up and decay are longer than the run: got 2 + 3 steps of 4; expected no more than that",
        ),
        (
            {"optim": {"lr": 1.0, "no_decay": ["*embed_tokens*", "*nrm*"]}},
            "optim.no_decay: matches no weight of the model: got '*nrm*'; expected a glob of names such as",
        ),
        (
            {"optim": {"lr": 1.0, "name": "muon"}, "tuning": {"method": "prefix", "num_virtual_tokens": 1}},
            "optim.name: muon updates matrices and tuning.method prefix trains none; expected adamw, lion or sgd",
        ),
        (
            {"optim": {"lr": 1.0, "name": "muon"}, "tuning": {"method": "adalora"}},
            "optim.name: adalora scores the gradient, which muon has replaced by its update",
        ),
        (
            {"loss": {"neftune": 5.0}, "tuning": {"method": "prompt"}},
            "loss.neftune: moves input embeddings, and those of tuning.method prompt are what is trained",
        ),
        (
            {"loss": {"adversarial": {"method": "fgm"}}, "tuning": {"method": "prompt"}},
            "loss.adversarial: moves input embeddings",
        ),
    ],
)
def test_mistakes_that_the_model_or_the_length_of_the_run_makes(
    made: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError) as caught:
        check_run(config_of(made, **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("optim", "precision", "base", "message"),
    [
        ({"name": "muon"}, "bf16", {"zero_optimization": ON_DISK}, "optim.name: muon gathers its momentum"),
        (
            {"name": "adamw8bit"},
            "bf16",
            {"zero_optimization": ON_DISK},
            "optim.name: adamw8bit keeps its moments where DeepSpeed does not swap: got offload_optimizer.device nvme",
        ),
        (
            {"name": "muon"},
            "bf16",
            {"zero_optimization": ON_CPU | {"reduce_scatter": True}},
            "zero_optimization.reduce_scatter: muon needs whole gradients",
        ),
        (
            {"name": "muon"},
            "bf16",
            {"zero_optimization": ON_CPU, "communication_data_type": "bf16"},
            "communication_data_type: muon keeps its momentum in this type: got bf16; expected fp32",
        ),
        (
            {"states": "bf16"},
            "fp32",
            {"zero_optimization": ON_CPU},
            "optim.states: got bf16 with precision fp32; expected precision bf16",
        ),
        (
            {"states": "bf16"},
            "bf16",
            {"zero_optimization": {"stage": 3}},
            "optim.states: only DeepSpeed's AdamW for the CPU keeps states in bfloat16: got bf16 with adamw, not",
        ),
        (
            {"states": "bf16_master", "name": "lion"},
            "bf16",
            {"zero_optimization": ON_CPU},
            "got bf16_master with lion, on cpu; expected adamw and offload_optimizer.device cpu",
        ),
    ],
)
def test_mistakes_between_the_optimizer_and_the_file(
    tmp_path: Path, optim: dict[str, Any], precision: str, base: dict[str, Any], message: str
) -> None:
    config = config_of(tmp_path, optim={"lr": 1.0} | optim, precision=precision)
    with pytest.raises(RunError) as caught:
        build_ds_config(config, world_size=2, run_folder=tmp_path, base=base)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
