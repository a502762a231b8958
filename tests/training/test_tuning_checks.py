"""What is said about tuning methods before a run starts: each mistake in run.yaml, one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.errors import RunError, SettingsError
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.base_model import base_fingerprint
from training.config import check_run, load_run_config
from training.ds_config import build_ds_config
from training.tuning.adapter_files import PROVENANCE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run.yaml of a small run whose model folder holds weights."""
    run_yaml = make_small_run(tmp_path_factory.mktemp("tuned") / "made")
    model = run_yaml.parent / "model"
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return run_yaml


def said(folder: Path, **changes: Any) -> str:
    """Return what the checks of a run say; nothing is an empty text."""
    config = load_run_config(write_run(folder, **({"from_scratch": False} | changes)))
    try:
        check_run(config)
    except RunError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "tuning",
    [
        {"method": "full", "train": ["*.layers.1.*"]},
        {"method": "lora", "targets": ["q_proj", "0.mlp.up_proj"]},
        {"method": "adalora", "warmup_steps": 1, "final_steps": 2},
        {"method": "prefix"},
        {"method": "ia3"},
        {"method": "adapter"},
    ],
)
def test_a_method_that_fits_passes(made: Path, tuning: dict[str, Any]) -> None:
    assert said(made.parent, tuning=tuning) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tuning": {"method": "lora", "targets": ["q_porj"]}},
            "tuning.targets: matches no linear layer of the model: got 'q_porj'; expected one of down_proj, gate_proj",
        ),
        ({"tuning": {"method": "lora", "targets": ["q_porj"]}}, "did you mean 'q_proj'?"),
        ({"tuning": {"method": "lora", "targets": ["lm_head"]}}, "matches no linear layer"),
        ({"tuning": {"method": "ia3", "targets": ["gate"], "feedforward": []}}, "matches no linear layer"),
        (
            {"tuning": {"method": "full", "train": ["*.layers.7.*"]}},
            "tuning.train: matches no weight of the model: got '*.layers.7.*'; expected a glob of names such as ",
        ),
        ({"tuning": {"method": "full", "train": ["nothing"]}}, "model.layers.*.mlp.up_proj.weight"),
        ({"tuning": {"method": "bitfit"}}, "tuning.method: bitfit trains biases and the model has none"),
        (
            {"tuning": {"method": "lora"}, "from_scratch": True},
            "tuning: got method lora with from_scratch: true; expected method full without train",
        ),
        (
            {"tuning": {"method": "adalora", "warmup_steps": 2, "final_steps": 2}},
            "no step is left to cut ranks in: got warmup_steps 2 and final_steps 2 of 4 steps",
        ),
        (
            {"tuning": {"method": "prompt", "num_virtual_tokens": 999}},
            "tuning.num_virtual_tokens: a document and its virtual tokens are beyond the model's positions",
        ),
        (
            {"tuning": {"method": "lora", "continue_from": "nowhere"}},
            "nowhere: has no adapter_config.json and no adapter_model.safetensors",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_the_start(
    made: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in said(made.parent, **changes)


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"method": "lorra"}, "tuning: got method 'lorra'; expected method to be one of full, bitfit, lora"),
        ({"method": "lorra"}, "did you mean 'lora'?"),
        ({"rank": 4}, "tuning: method is missing; expected method to be one of full"),
        ({"method": "lora", "rnk": 4}, "tuning.rnk: unknown key; did you mean 'rank'?"),
        (
            {"method": "ia3", "rank": 4},
            "tuning.rank: unknown key; expected one of continue_from, method, targets",
        ),
        ({"method": "lora", "rank": 0}, "tuning.rank: got 0; expected greater than 0"),
        ({"method": "lora", "init": "pissa", "dora": True}, "tuning.init: got pissa with dora: true"),
        (
            {"method": "lora", "init": "pissa", "continue_from": "x"},
            "tuning.init: got pissa with continue_from",
        ),
        (
            {"method": "adalora", "rank": 20},
            "tuning.initial_rank: got 12; expected at least rank, which is 20",
        ),
        ({"method": "ia3", "feedforward": ["up_proj"]}, "'up_proj', which is not in targets; add it there"),
    ],
)
def test_each_method_has_keys_of_its_own(made: Path, tuning: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_run_config(write_run(made.parent, tuning=tuning))
    assert message in str(error.value)


def test_an_adapter_of_another_base_or_kind_is_refused(made: Path, tmp_path: Path) -> None:
    run_yaml = copy_small_run(made, tmp_path / "run")
    folder, model = run_yaml.parent, run_yaml.parent / "model"
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "use_rslora": False, "use_dora": False}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / PROVENANCE).write_text(json.dumps({"base_fingerprint": base_fingerprint(model)}))
    tuning = {"method": "lora", "rank": 4, "continue_from": "adapter"}
    assert said(folder, tuning=tuning) == ""
    assert "adapter of another kind: got r 4; expected 8" in said(folder, tuning=tuning | {"rank": 8})
    assert "got peft_type 'LORA'; expected 'IA3'" in said(
        folder, tuning={"method": "ia3", "continue_from": "adapter"}
    )

    shutil.copytree(model, folder / "other")
    config = AutoConfig.from_pretrained(model)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "other")  # other random numbers
    assert "adapter of another base" in said(folder, tuning=tuning, model="other")
    (adapter / PROVENANCE).unlink()  # an adapter of somebody else's, that names its base
    (adapter / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(model)})
    )
    assert said(folder, tuning=tuning) == ""
    assert "adapter of another base" in said(folder, tuning=tuning, model="other")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("adapter_config.json", "{", "adapter_config.json: damaged: "),
        ("adapter_config.json", "[]", "got list; expected a JSON object"),
        (PROVENANCE, "\x00", f"{PROVENANCE}: damaged: "),
        (PROVENANCE, "{}", "has no base_fingerprint; do: export the adapter again"),
    ],
)
def test_a_damaged_adapter_to_go_on_from_is_named(
    made: Path, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    folder = copy_small_run(made, tmp_path / "run").parent
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (adapter / name).write_text(text)
    (line,) = said(folder, tuning={"method": "lora", "continue_from": "adapter"}).splitlines()
    assert expected in line


def test_new_tokens_are_taken_on_request_and_only_where_they_are_trained(made: Path, tmp_path: Path) -> None:
    run_yaml = copy_small_run(made, tmp_path / "run")
    folder, path = run_yaml.parent, run_yaml.parent / "model" / "config.json"
    model = json.loads(path.read_text())
    path.write_text(json.dumps(model | {"vocab_size": model["vocab_size"] - 1}))
    assert "or set resize_embeddings: true" in said(folder)
    assert said(folder, resize_embeddings=True) == ""
    embeddings = {"method": "full", "train": ["*embed_tokens*"]}
    assert said(folder, resize_embeddings=True, tuning=embeddings) == ""
    for tuning in ({"method": "lora"}, {"method": "full", "train": ["*norm*"]}):
        message = said(folder, resize_embeddings=True, tuning=tuning)
        assert "model.embed_tokens.weight is not, with tuning.method" in message


@pytest.mark.parametrize(
    ("method", "section"), [("adalora", "offload_optimizer"), ("qlora", "offload_param")]
)
def test_methods_that_cannot_work_with_nvme_are_refused(
    made: Path, tmp_path: Path, method: str, section: str
) -> None:
    config = load_run_config(write_run(made.parent, tuning={"method": method}))
    nvme = {"device": "nvme", "nvme_path": str(tmp_path)}
    base = {"zero_optimization": {"stage": 3, section: nvme}}
    with pytest.raises(RunError, match=f"tuning.method: {method} .* got {section}.device nvme"):
        build_ds_config(config, world_size=2, run_folder=tmp_path, base=base)


def test_the_fingerprint_tells_weights_of_the_same_shapes_apart(made: Path, tmp_path: Path) -> None:
    model = made.parent / "model"
    shutil.copytree(model, tmp_path / "copy")
    assert base_fingerprint(tmp_path / "copy") == base_fingerprint(model)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(tmp_path / "copy")
    assert base_fingerprint(tmp_path / "copy") != base_fingerprint(model)
