"""DeepSpeed's JSON: one owner for each key, nothing misspelt, nothing "auto"."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.errors import RunError, SettingsError
from tests.conftest import ROOT
from tests.training.small_run import write_run
from training.config import RunConfig, load_run_config
from training.ds_config import (
    KNOWN_BELOW,
    NOT_SUPPORTED,
    REMOVED,
    build_ds_config,
    find_mistakes,
    nvme_folder,
    read_ds_config,
    read_ds_file,
)
from training.ds_types import FLAGS, OPTIMIZER, PARAM, SHARES, WHOLE_NUMBERS, ZERO

SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))
NVME = ROOT / "ds_configs/zero3_offload_nvme.json"


def config_of(folder: Path, **changes: Any) -> RunConfig:
    return load_run_config(write_run(folder, **changes))


def test_there_are_six_files() -> None:
    assert [path.stem for path in SHIPPED] == [
        "zero3",
        "zero3_offload_cpu",
        "zero3_offload_nvme",
        "zero3_offload_optimizer",
        "zero3_twinflow",
        "zero3_zeropp",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_deepspeed_itself_takes_what_we_build(path: Path, tmp_path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    optim = {"lr": 2e-4, "clip": 0.5, "weight_decay": 0.1}
    config = config_of(tmp_path, precision="bf16", batch={"packs_per_step": 32}, optim=optim)
    built = build_ds_config(config, world_size=8, run_folder=tmp_path, base=read_ds_file(path))
    parsed = DeepSpeedConfig(built)
    assert parsed.zero_optimization_stage == 3
    assert (parsed.train_micro_batch_size_per_gpu, parsed.gradient_accumulation_steps) == (1, 4)
    assert parsed.gradient_clipping == 0.5
    assert parsed.bfloat16_config.enabled
    assert parsed.grad_accum_dtype == "fp32"
    expected = {"lr": 2e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    assert parsed.optimizer_params == expected | {"torch_adam": path.stem in ("zero3", "zero3_zeropp")}


def test_our_lists_of_keys_are_deepspeeds() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    removed = {
        *_REMOVED_TOP_LEVEL_CONFIG_KEYS,
        *(f"zero_optimization.{key}" for key in _REMOVED_ZERO_CONFIG_KEYS),
    }
    assert set(REMOVED) == removed
    for section, model in {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    }.items():
        theirs = {field.alias or name for name, field in model.model_fields.items()}
        assert theirs >= KNOWN_BELOW[section]
        assert {
            key.rpartition(".")[2] for key in NOT_SUPPORTED if key.rpartition(".")[0] == section
        } <= theirs


def test_our_kinds_of_values_are_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    models = {
        ZERO: DeepSpeedZeroConfig,
        PARAM: DeepSpeedZeroOffloadParamConfig,
        OPTIMIZER: DeepSpeedZeroOffloadOptimizerConfig,
    }
    for section, model in models.items():
        kinds = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        known = {name: kind for name, kind in kinds.items() if name in KNOWN_BELOW[section]}
        assert {name for name, kind in known.items() if kind in (bool, bool | None)} == FLAGS[section]
        assert {name for name, kind in known.items() if kind is int} == set(WHOLE_NUMBERS[section])
        assert {name for name, kind in known.items() if kind is float} == SHARES.get(section, set())
    assert FLAGS["aio"] | set(WHOLE_NUMBERS["aio"]) == KNOWN_BELOW["aio"]


def test_without_a_gpu_nothing_is_pinned(tmp_path: Path) -> None:
    base = read_ds_file(ROOT / "ds_configs/zero3_offload_cpu.json")
    zero = build_ds_config(
        config_of(tmp_path), world_size=2, run_folder=tmp_path, base=base, pin_memory=False
    )["zero_optimization"]
    assert zero["offload_param"]["pin_memory"] is zero["offload_optimizer"]["pin_memory"] is False
    assert base["zero_optimization"]["offload_param"]["pin_memory"] is True  # the file's dict is left alone


def test_a_worker_without_a_gpu_overrules_what_was_written_on_the_login_node(tmp_path: Path) -> None:
    base = read_ds_file(ROOT / "ds_configs/zero3_offload_cpu.json")
    written = build_ds_config(config_of(tmp_path), world_size=2, run_folder=tmp_path, base=base)
    (tmp_path / "ds_config.json").write_text(json.dumps(written))
    assert read_ds_config(tmp_path / "ds_config.json") == written
    zero = read_ds_config(tmp_path / "ds_config.json", pin_memory=False)["zero_optimization"]
    assert zero["offload_param"]["pin_memory"] is zero["offload_optimizer"]["pin_memory"] is False


def test_float32_has_no_bfloat16_section(tmp_path: Path) -> None:
    base = {"zero_optimization": {"stage": 3}}
    built = build_ds_config(
        config_of(tmp_path, precision="fp32"), world_size=2, run_folder=tmp_path, base=base
    )
    assert "bf16" not in built
    assert "data_types" not in built
    no_clip = config_of(tmp_path, optim={"lr": 1e-3, "clip": None})
    assert build_ds_config(no_clip, world_size=2, run_folder=tmp_path, base=base)["gradient_clipping"] == 0.0


def test_a_step_that_cannot_be_shared_out(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="got 4 packs for 3 ranks"):
        build_ds_config(
            config_of(tmp_path), world_size=3, run_folder=tmp_path, base={"zero_optimization": {}}
        )


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping: belongs to run.yaml: optim.clip"),
        ({"train_batch_size": 8}, "train_batch_size: belongs to run.yaml: batch.packs_per_step"),
        ({"bf16": {"enabled": True}}, "bf16: belongs to run.yaml: precision"),
        ({"optimizer": {"type": "Adam"}}, "optimizer: belongs to run.yaml: optim"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op: the trainer sets this; take it out"),
        ({"zero_optimisation": {}}, "zero_optimisation: unknown key; did you mean 'zero_optimization'?"),
        ({"gradient_cliping": 1}, "gradient_cliping: unknown key; did you mean 'gradient_clipping'?"),
        ({"elasticity": {}}, "elasticity: DeepSpeed has removed this; take it out"),
        ({"tensor_parallel": {}}, "tensor_parallel: is not supported by this trainer; take it out"),
        ({"aio": {"blocksize": 1}}, "aio.blocksize: unknown key; did you mean 'block_size'?"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage: got 2; expected 3"),
        ({"zero_optimization": {}}, "zero_optimization.stage: got null; expected 3"),
        ({"zero_optimization": {"stage": "auto"}}, 'zero_optimization.stage: got "auto"; expected a value'),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}},
            'zero_optimization.reduce_bucket_size: got "auto"',
        ),
        ({"zero_optimization": "auto"}, 'zero_optimization: got "auto"'),
        ({"zero_optimization": 3}, "zero_optimization: got 3; expected an object"),
        (
            {"zero_optimization": {"stage": 3, "ofload_param": {}}},
            "zero_optimization.ofload_param: unknown key; did you mean 'offload_param'?",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}},
            "zero_optimization.offload_param.device: got 'disk'; expected one of none, cpu, nvme",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.nvme_path: missing",
        ),
        (
            {"zero_optimization": {"stage": 3, "mics_shard_size": 2}},
            "zero_optimization.mics_shard_size: DeepSpeed",
        ),
        (
            {"zero_optimization": {"stage": 3, "sub_group_size": "1e9"}},
            'zero_optimization.sub_group_size: got "1e9"; expected a whole number from 1 up',
        ),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": 0.5}},
            "zero_optimization.reduce_bucket_size: got 0.5; expected a whole number from 1 up",
        ),
        (
            {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": None}},
            "zero_optimization.stage3_max_live_parameters: got null; expected a whole number from 0 up",
        ),
        (
            {"zero_optimization": {"stage": 3, "contiguous_gradients": "true"}},
            'zero_optimization.contiguous_gradients: got "true"; expected true or false',
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 2}}},
            "zero_optimization.offload_optimizer.ratio: got 2; expected a number from 0 to 1",
        ),
        ({"aio": {"block_size": "1M"}}, 'aio.block_size: got "1M"; expected a whole number from 1 up'),
        ({"wall_clock_breakdown": 1}, "wall_clock_breakdown: got 1; expected true or false"),
        ({"comms_logger": True}, "comms_logger: got true; expected an object"),
        (
            {"communication_data_type": "fp8"},
            'communication_data_type: got "fp8"; expected one of fp32, bf16',
        ),
        ({}, 'zero_optimization: missing; expected an object with "stage": 3'),
    ],
)
def test_mistakes_in_the_file(base: dict[str, Any], message: str) -> None:
    assert message in "\n".join(find_mistakes({"zero_optimization": {"stage": 3}} | base if base else {}))


def test_all_mistakes_of_a_file_stand_in_one_report_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"fp16": {}, "fp16": {}, "zero_optimization": {"stage": 2, "typo": 1}}')
    with pytest.raises(SettingsError) as caught:
        read_ds_file(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: fp16: stands there twice; expected once"
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{\n"a": }', ":2: is not JSON: Expecting value"), ("[]", ": got a list; expected a JSON object")],
)
def test_what_is_no_json_object(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_ds_file(path)
    assert str(caught.value).startswith(f"{path}{message}")
    with pytest.raises(SettingsError, match=r"no such file; did you mean 'ds\.json'"):
        read_ds_file(tmp_path / "dss.json")


def test_nvme_folders_are_the_runs_own_and_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    run_folder = tmp_path / "runs/small"
    built = build_ds_config(config, world_size=2, run_folder=run_folder, base=read_ds_file(NVME))
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(built))
    monkeypatch.delenv("TMPDIR", raising=False)
    with pytest.raises(RunError, match="the environment variable TMPDIR is not set"):
        read_ds_config(path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    read = read_ds_config(path)
    folder = Path(read["zero_optimization"]["offload_param"]["nvme_path"])
    assert folder.parent == tmp_path / "scratch"
    assert folder.name.startswith("shardtune-small-")
    with nvme_folder(read) as folders:
        assert folders == (folder,)
        (folder / "swap").touch()
    assert not folder.exists()


def test_an_nvme_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    section = {"device": "nvme", "nvme_path": str(tmp_path / "file/below")}
    with (
        pytest.raises(RunError, match=r"nvme_path: .*: cannot be made"),
        nvme_folder({"zero_optimization": {"offload_param": section}}),
    ):
        pass


def test_without_nvme_there_is_no_folder() -> None:
    with nvme_folder({"zero_optimization": {"stage": 3}}) as folders:
        assert folders == ()
