"""`shardtune check` on this machine: what it finds, each mistake once, all of them in one report."""

import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.harness import environment, shardtune
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.config import load_run_config
from training.launch import check, find_devices
from training.preflight.disk import what_hinders
from training.preflight.findings import Finding, format_table, mistakes_in, summary
from training.preflight.here import check_here
from training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_yaml = make_small_run(tmp_path_factory.mktemp("preflight") / "project")
    model = run_yaml.parent / "model"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(model)
    return run_yaml


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return copy_small_run(made, tmp_path / "project").parent


def look(folder: Path, **changes: Any) -> list[Finding]:
    return check_here(load_run_config(write_run(folder, **{"from_scratch": False} | changes)))


def the_mistake(findings: list[Finding]) -> str:
    (mistake,) = mistakes_in(findings)
    return f"{mistake.part}: {mistake.found}"


def warnings(findings: list[Finding]) -> list[str]:
    return [finding.found for finding in findings if finding.verdict == "warning"]


def test_a_good_run_has_no_mistakes(folder: Path) -> None:
    findings = look(folder)
    assert summary(findings) == "no mistakes, no warnings"
    parts = {finding.part: finding.found for finding in findings}
    assert list(parts) == [
        *("settings", "shards", "model", "tokenizer", "template", "deepspeed", "plan", "disk", "run folder")
    ]
    assert "4 steps" in parts["shards"]
    assert "shared by 2 ranks" in parts["deepspeed"]
    assert "room for 3 checkpoints" in parts["disk"]


def test_all_mistakes_stand_in_one_report_and_the_command_ends_with_2(folder: Path) -> None:
    (folder / "zero3.json").write_text(
        json.dumps({"zero_optimisation": {}, "zero_optimization": {"stage": 2}})
    )
    (folder / "model" / "model.safetensors").unlink()
    run_yaml = write_run(folder, from_scratch=False, evaluate={"splits": ["test"]})
    done = subprocess.run(
        shardtune("check", run_yaml), env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    rows = done.stdout.splitlines()
    assert any("MISTAKE" in row and "no such split" in row for row in rows)
    assert any("MISTAKE" in row and "holds no *.safetensors" in row for row in rows)
    assert any("MISTAKE" in row and "unknown key; did you mean 'zero_optimization'?" in row for row in rows)
    assert any("MISTAKE" in row and "zero_optimization.stage: got 2" in row for row in rows)
    assert rows[-1] == "4 mistakes, no warnings"


def test_shards(folder: Path) -> None:
    index = json.loads((folder / "shards" / "index.json").read_text())
    (folder / "shards" / "index.json").write_text(json.dumps(index | {"recipe": "another"}))
    assert "its fields do not give its fingerprint" in the_mistake(look(folder))
    (folder / "shards" / "index.json").unlink()
    assert "the folder is not sealed" in the_mistake(look(folder))


def test_weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert f"{path}: got {len(whole) - 10} bytes; expected {len(whole)}; fetch it again" in the_mistake(
        look(folder)
    )
    path.write_bytes(struct.pack("<Q", 10**6) + b"{}")
    assert "not a whole safetensors file" in the_mistake(look(folder))
    save_file({"model.embed_tokens.weight": torch.zeros(7, 32)}, path)
    said = the_mistake(look(folder))
    assert "model.embed_tokens.weight [7, 32], not [" in said
    assert "model.layers.0.self_attn.q_proj.weight is missing" in said
    path.write_bytes(whole)
    parts = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(parts))
    assert "are not there: model-2.safetensors; fetch them" in the_mistake(look(folder))


def test_tokenizer_of_the_shards_against_the_models(folder: Path) -> None:
    path = folder / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(tokenizer))
    said = the_mistake(look(folder))
    assert f"{second!r} is {vocabulary[second]} in the model's and {vocabulary[first]} in the shards'" in said
    assert "packed with another tokenizer" in warnings(look(folder, from_scratch=True))[0]

    settings = folder / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "<s>"}))
    told = warnings(look(folder, from_scratch=True))
    assert "eos_token: got '</s>' in the shards; the model's tokenizer has '<s>'" in told
    path.unlink()
    assert "has no tokenizer to compare with" in warnings(look(folder))[0]


def test_the_copy_of_the_tokenizer_and_its_template(folder: Path) -> None:
    copy = folder / "shards" / "tokenizer" / "tokenizer_config.json"
    text = copy.read_text()
    copy.write_text(text.replace("Q: ", "P: "))
    assert f"tokenizer: {copy}: damaged: its SHA-256 is not the index's" in the_mistake(look(folder))
    settings = json.loads(text)
    settings["chat_template"] = None
    without = json.dumps(settings)
    copy.write_text(without + " " * (len(text.encode()) - len(without)))
    found = {finding.part: finding.found for finding in mistakes_in(look(folder))}
    assert "the tokenizer has none of its own" in found["template"]


def test_deepspeed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be shared out" in the_mistake(look(folder, batch={"packs_per_step": 3}))
    auto = {"packs_per_step": 4, "micro_packs": "auto"}
    assert any("micro_packs: auto takes" in finding.found for finding in look(folder, batch=auto))
    assert "auto needs to know the memory of a GPU" in the_mistake(
        look(folder, batch=auto, slurm={"nodes": 1, "time": "10"})
    )
    assert "launch.gpus_per_node is null" in warnings(look(folder, launch={}))[0]
    offload = {"device": "nvme", "nvme_path": "${FAST_DISK}/swap", "buffer_count": 24}
    (folder / "zero3.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3, "offload_optimizer": offload}})
    )
    assert "FAST_DISK is not set here" in warnings(look(folder))[0]
    monkeypatch.setenv("FAST_DISK", str(folder))
    assert warnings(look(folder)) == []


def test_plan_and_disk(folder: Path) -> None:
    path = folder / "model" / "config.json"
    wide = {"hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 500}
    path.write_text(json.dumps(json.loads(path.read_text()) | wide))
    found = {finding.part: finding.found for finding in mistakes_in(look(folder, from_scratch=True))}
    assert "the host of one node is too small" in found["plan"]
    assert "3 checkpoints of" in found["disk"]
    assert "GiB free; expected" in found["disk"]
    # Of a job's nodes nothing is known here; the disk is the same one.
    away = look(folder, from_scratch=True, slurm={"nodes": 2})
    assert [finding.part for finding in mistakes_in(away)] == ["disk"]


def test_what_hinders_writing(tmp_path: Path) -> None:
    assert what_hinders(tmp_path / "not" / "there", 2**20) is None
    assert "free; expected" in str(what_hinders(tmp_path, 2**60))
    assert "cannot be written to" in str(what_hinders(Path("/proc"), 0))
    assert list(tmp_path.iterdir()) == []


def test_a_warm_up_as_long_as_the_run_is_warned_of(folder: Path) -> None:
    (said,) = warnings(look(folder, steps=8, optim={"lr": 1e-3, "warmup": 8}))
    assert said.startswith("optim.warmup: 8 steps of 8: ")


def test_a_model_that_is_missing_is_said_beside_shards_that_are_missing(folder: Path) -> None:
    found = mistakes_in(look(folder, shards="nothing", model="nowhere"))
    assert [finding.part for finding in found] == ["shards", "model"]
    assert "nowhere: no such folder; expected a Hugging Face model folder" in found[1].found


def test_a_runs_folder_that_is_a_file_and_a_run_that_is_prepared_only(folder: Path) -> None:
    (folder / "file").touch()
    assert the_mistake(look(folder, runs="file")).endswith("file: Not a directory; expected a folder")
    config = load_run_config(write_run(folder, name="prepared", from_scratch=False))
    config.run_folder.mkdir(parents=True)
    config.write(config.run_folder / "config.yaml")
    assert "not started yet" in look(folder, name="prepared")[-1].found


def test_a_run_that_cannot_go_on_with_these_settings(folder: Path) -> None:
    config = load_run_config(write_run(folder, from_scratch=False))
    checkpoint = config.run_folder / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "DONE").touch()
    config.write(config.run_folder / "config.yaml")
    environment = {"shards_fingerprint": "of others", "model_config_sha256": "", "base_fingerprint": ""}
    (config.run_folder / "environment.json").write_text(json.dumps(environment))
    said = the_mistake(look(folder, seed=5))
    assert "run folder:" in said
    assert "seed: got 5; the run was made with 17" in said
    assert "holds other packs than the run was made with" in said


def test_a_checkpoint_that_lacks_a_file_is_said_before_the_start(folder: Path) -> None:
    config = load_run_config(write_run(folder, name="lacking", from_scratch=False))
    shards, ds_config = check(config, find_devices(config))
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
    checkpoint = run.checkpoints / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text('{"world_size": 2}')
    (checkpoint / "DONE").touch()
    assert "the files of 2 of 2 ranks are missing" in the_mistake(look(folder, name="lacking"))


def test_the_table_groups_parts_and_does_not_wrap() -> None:
    findings = [
        Finding("a", "ok", "x" * 300),
        Finding("bb", "warning", "1\n2"),
        Finding("a", "MISTAKE", "no"),
    ]
    assert format_table(findings) == "\n".join(
        ["a   ok       " + "x" * 300, "    MISTAKE  no", "bb  warning  1", "             2"]
    )
    assert summary(findings) == "1 mistake, 1 warning"
