"""The folder that an export leaves: model card, int8 weights and their loss, and what other programs make of it.

The checkpoints are written here, without an engine; exports of real runs are in test_train.py and test_tuning.py.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data_tools.errors import RunError
from data_tools.pack import pack
from data_tools.report import make_console
from data_tools.settings import load_data_settings
from data_tools.shards import Shards, open_shards
from tests.training.small_run import copy_small_run, make_small_run, write_run
from training.base_model import base_fingerprint
from training.chat import chat
from training.checkpoint_files import CheckpointReader, Progress, partition, rank_file
from training.config import load_run_config
from training.data import PackOrder
from training.evaluation.command import Choices, evaluate
from training.export import _partial_folder, export_run
from training.generation import Sampling
from training.launch import check, find_devices
from training.metrics import MetricsLog
from training.model_card import FILE_NAME, model_name, read_front_matter
from training.model_folder import load_model_folder
from training.quantized import pack_int8
from training.run_folder import RunFolder

STEP, CONSUMED, WORLD = 3, 12, 2
ADAPTED = "model.layers.0.self_attn.q_proj"


def write_checkpoint(
    run: RunFolder, weights: dict[str, torch.Tensor], *, shards: Shards, base: str = ""
) -> None:
    """Write a finished checkpoint of the weights as two ranks would; the last has nothing of the smallest ones."""
    folder = run.checkpoints / f"step-{STEP:06d}"
    folder.mkdir(parents=True)
    for rank in range(WORLD):
        slices = {
            f"master|{name}": weight.flatten()[slice(*partition(weight.numel(), rank, WORLD))].clone()
            for name, weight in weights.items()
        }
        save_file(slices, rank_file(folder, rank, WORLD))
    progress = Progress(
        step=STEP,
        packs_consumed=CONSUMED,
        shards_fingerprint=shards.fingerprint,
        seed=17,
        world_size=WORLD,
        optimizer_step=STEP,
        optimizer_states=(),
        parameter_groups=(),
        shapes={name: tuple(weight.shape) for name, weight in weights.items()},
        versions={"deepspeed": "0.0.test"},
        ledger="ab" * 16,
        base=base,
        settings={"optim": {"lr": 0.002}},  # the run's by now says 0.001
    )
    (folder / "progress.json").write_text(json.dumps(asdict(progress)))
    (folder / "DONE").touch()


def prepare(run_yaml: Path) -> tuple[RunFolder, Shards]:
    """Make the run folder of a run.yaml, with metrics up to a step behind that of the checkpoint."""
    config = load_run_config(run_yaml)
    shards, ds_config = check(config, find_devices(config))
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
    log = MetricsLog(run.path, resume_step=0, tensorboard=False)
    for step in range(1, STEP + 2):
        log.write(step, {"train/loss": 4.0 / step, "validation/loss": 5.0 / step})
    log.close()
    return run, shards


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run whose model knows its data somewhat; return its folder."""
    run_yaml = make_small_run(tmp_path_factory.mktemp("export") / "home-of-a-user")
    folder = run_yaml.parent
    data = yaml.safe_load((folder / "data.yaml").read_text())
    data["sources"][0] |= {"license": "CC0-1.0", "name": "sums|of <two>"}
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(9)]
    (folder / "said.json").write_text(json.dumps(rows))
    data["sources"].append({"path": "said.json", "format": "alpaca", "name": "said"})
    turns = [[("human", f"Count to {n}."), ("gpt", "No.")] for n in range(3)] + [[("TELLTALE", "Hush.")]]
    chats = [{"conversations": [{"from": who, "value": text} for who, text in turn]} for turn in turns]
    (folder / "chats.json").write_text(json.dumps(chats))
    data["sources"].append({"path": "chats.json", "format": "sharegpt", "name": "chats"})
    (folder / "data.yaml").write_text(yaml.safe_dump(data | {"max_reject_rate": 0.5}))
    pack(load_data_settings(folder / "data.yaml"), workers=1)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    train = open_shards(folder / "shards").splits["train"]
    for number in range(30):
        ids = torch.tensor(train.pack(number % train.num_packs).input_ids.tolist())[None]
        optimizer.zero_grad()
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    network.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def whole(project: Path) -> RunFolder:
    """A run that has trained the whole model, from drawn weights, in bfloat16."""
    run, shards = prepare(write_run(project, name="whole", precision="bf16"))
    write_checkpoint(run, load_file(project / "model" / "model.safetensors"), shards=shards)
    return run


@pytest.fixture(scope="module")
def exports(whole: RunFolder) -> tuple[Path, Path]:
    """The plain export of it, and that in int8."""
    plain, int8 = whole.path.parent / "plain", whole.path.parent / "int8"
    export_run(whole.path, None, plain)
    return plain, export_run(whole.path, None, int8, quantize=True)


def tables(card: str) -> dict[str, list[list[str]]]:
    """Return the rows of each table by the heading above it."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in card.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and "---" not in line:
            cells = [cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")]
            found.setdefault(heading, []).append([cell.replace("\0", r"\|") for cell in cells])
    return found


def test_the_card_tells_what_the_model_was_trained_on(
    project: Path, whole: RunFolder, exports: tuple[Path, Path]
) -> None:
    card = (exports[0] / FILE_NAME).read_text()
    assert read_front_matter(exports[0] / FILE_NAME) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["shardtune", "sft"],
    }
    found = tables(card)
    shards = open_shards(project / "shards")
    train = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=17, num_packs=train.num_packs)
    seen = [order[position] for position in range(CONSUMED)]
    trained = dict(found["What was trained"][1:])
    assert trained["step of the checkpoint"] == str(STEP)
    assert trained["tokens seen"] == f"{train.tokens[seen].sum():,}"
    assert trained["target tokens seen"] == f"{train.target_tokens[seen].sum():,}"
    assert (
        trained["training loss"] == f"{4 / STEP:.4g} (step {STEP})"
    )  # what the run measured later is not its

    head, *sources = found["Sources"]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in sources}
    assert rows[r"sums\|of \<two>"]["licence"] == "CC0-1.0"
    assert rows["said"]["licence"] == "not stated; the dataset was published under CC BY-NC 4.0"
    assert rows["chats"]["licence"] == "not stated"
    assert [rows["chats"][key] for key in ("conversations", "kept", "rejected")] == ["4", "3", "1"]
    assert [row[:2] for row in found["Rejected and left out"][1:]] == [["chats", "rejected"]]
    assert dict(found["Hyper-parameters"][1:])["optim.lr"] == "0.002"
    assert found["Evaluation"][1][3] == f"{5 / STEP:.4g}"
    assert dict(found["Versions"][1:])["deepspeed"] == "0.0.test"  # of what wrote the checkpoint
    proofs = dict(found["Fingerprints"][1:])
    assert proofs["shards"] == shards.fingerprint
    assert proofs["ledger of the rows seen"] == "ab" * 16
    assert proofs["weights in this folder"] == base_fingerprint(exports[0])
    assert "TELLTALE" in (project / "shards" / "rejects.jsonl").read_text()
    for secret in ("TELLTALE", "home-of-a-user", str(project)):
        assert secret not in card


def test_int8_weights_are_those_of_the_export_up_to_rounding(exports: tuple[Path, Path]) -> None:
    plain, int8 = (load_file(folder / "model.safetensors") for folder in exports)
    networks = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16) for folder in exports]
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        before, after = (network(input_ids=ids).logits.float() for network in networks)
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()
    assert torch.equal(before.argmax(-1), after.argmax(-1))
    weights = networks[1].state_dict()  # decompressed in the first forward
    for name, weight in plain.items():
        if name in int8:
            assert torch.equal(int8[name], weight)
            continue
        scale = int8[f"{name}_scale"].float()
        # 255 levels, 127.5 to each side; the scale is rounded to bfloat16 (by 2^-8 at most), and so is the product.
        largest = weight.float().abs().amax(1, keepdim=True)
        assert ((largest / 127.5 - scale).abs() <= 2**-8 * scale).all(), name
        size = weight.float().abs()
        allowed = torch.where(size < 127 * scale, 0.5, 1.0) * scale + 2**-8 * (
            size + scale
        )  # 128 is cut to 127
        assert ((weights[name].float() - weight.float()).abs() <= allowed).all(), name
    assert sum(name.endswith("_packed") for name in int8) == 14  # 7 linear layers in each of 2
    assert pack_int8(torch.zeros(2, 8))["weight_packed"].shape == (2, 2)


def test_the_change_of_loss_is_measured_as_evaluation_does_it(
    project: Path, exports: tuple[Path, Path]
) -> None:
    split = open_shards(project / "shards").splits["validation"]
    assert split.tokens.sum() < 16_384
    expected = {}
    for folder, name in zip(exports, ("bf16", "int8"), strict=True):
        network, total = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), 0.0
        for number in range(split.num_packs):
            packed = split.pack(number)
            ends = np.cumsum(packed.seq_lengths)
            for start, stop in zip(ends - packed.seq_lengths, ends, strict=True):
                ids = torch.tensor(packed.input_ids[start:stop].tolist())
                labels = torch.where(torch.tensor(packed.targets[start:stop].tolist()), ids, -100)
                with torch.no_grad():
                    logits = network(input_ids=ids[None]).logits[0]
                total += float(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum"))
        expected[name] = total / split.target_tokens.sum()
    card = (exports[1] / FILE_NAME).read_text()
    measured = {name: float(value) for name, value in tables(card)["Quantisation"][1:]}
    assert measured["bf16"] == pytest.approx(expected["bf16"], abs=2e-5)
    assert measured["int8"] == pytest.approx(expected["int8"], abs=2e-5)
    assert measured["difference"] == pytest.approx(expected["int8"] - expected["bf16"], abs=2e-5)
    assert f"on {split.target_tokens.sum():,} target tokens" in card
    assert "compressed-tensors" in read_front_matter(exports[1] / FILE_NAME)["tags"]


def test_without_its_packs_a_run_is_exported_and_says_what_is_missing(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run_yaml = copy_small_run(project / "run.yaml", tmp_path / "copy")
    shutil.rmtree(run_yaml.parent / "runs", ignore_errors=True)
    run, shards = prepare(write_run(run_yaml.parent, name="gone"))
    write_checkpoint(run, load_file(project / "model" / "model.safetensors"), shards=shards)
    for path in shards.folder.glob("*.*"):
        path.unlink()
    card = (export_run(run.path, None, tmp_path / "out", quantize=True) / FILE_NAME).read_text()
    assert "The shards are not where they were, or others now." in card
    assert "its loss could not be measured: the shards of the run are gone" in caplog.text.replace("\n", " ")
    assert "Its loss could not be measured" in card
    assert "tokens seen" not in tables(card)["What was trained"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template

    shutil.rmtree(shards.folder)
    with pytest.raises(
        RunError, match=r"^shards: .*/shards/tokenizer: no such folder; .*put the shard folder back"
    ):
        export_run(run.path, None, tmp_path / "again")


def test_one_export_at_a_time_writes_a_folder(whole: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living, killed = (
        tmp_path / f"out.partial-{socket.gethostname()}-{pid}-abc" for pid in (os.getppid(), ended.pid)
    )
    living.mkdir()
    (living / "stale.bin").touch()
    with pytest.raises(RunError, match=r"out: another export is writing there; do: wait for it"):
        export_run(whole.path, None, output)
    living.rename(killed)
    assert (killed / "stale.bin").exists()
    made = {path.name for path in export_run(whole.path, None, output).iterdir()}
    assert "model.safetensors" in made
    assert "stale.bin" not in made
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_of_one_export_however_many_begin_at_once(tmp_path: Path) -> None:
    for turn in range(20):
        output = tmp_path / str(turn)
        finished: list[int] = []
        refused: list[Exception] = []
        begin = threading.Barrier(4)

        def write(number: int) -> None:
            begin.wait()  # noqa: B023 - the threads end before the next turn
            try:
                with _partial_folder(output) as folder:  # noqa: B023
                    for name in ("a", "b", "c"):
                        (folder / name).write_text(str(number))
            except RunError as error:
                refused.append(error)  # noqa: B023
            else:
                finished.append(number)  # noqa: B023

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(finished) == 1
        assert len(refused) == 3
        assert {path.name: path.read_text() for path in output.iterdir()} == dict.fromkeys(
            "abc", str(finished[0])
        )


def test_a_checkpoint_that_is_deleted_meanwhile_gives_way_to_the_newest(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, shards = prepare(write_run(project, name="keeps"))
    write_checkpoint(run, load_file(project / "model" / "model.safetensors"), shards=shards)
    old, new = (run.checkpoints / f"step-{step:06d}" for step in (STEP, STEP + 1))

    class Pruned(CheckpointReader):
        """The training saves and deletes before the files are opened."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            if folder == old:
                shutil.copytree(old, new, dirs_exist_ok=True)
                shutil.rmtree(old)

    monkeypatch.setattr("training.export.CheckpointReader", Pruned)
    kept = shutil.copytree(old, tmp_path / "kept")
    assert (export_run(run.path, None, tmp_path / "out") / "model.safetensors").exists()
    shutil.copytree(kept, old)
    with pytest.raises(RunError, match=r"step-000003: was deleted by the running .*do: raise save\.keep"):
        export_run(run.path, old.name, tmp_path / "named")
    assert not (tmp_path / "named").exists()
    next(new.glob("rank-*")).unlink()  # one that is there and damaged is told of as before
    with pytest.raises(RunError, match="step-000004: the checkpoint is damaged"):
        export_run(run.path, None, tmp_path / "damaged")


@pytest.fixture(scope="module")
def adapter(project: Path) -> RunFolder:
    """A run that has trained a LoRA of one layer beside a model with a card of its own."""
    (project / "model" / FILE_NAME).write_text("---\nlicense: apache-2.0\nother: [1]\n---\n# Base\n")
    tuning = {"method": "lora", "rank": 2, "targets": [ADAPTED.removeprefix("model.layers.")]}
    run_yaml = write_run(project, name="adapter", from_scratch=False, tuning=tuning)
    run, shards = prepare(run_yaml)
    generator = torch.Generator().manual_seed(3)
    weights = {
        f"{ADAPTED}.lora_A.default.weight": torch.randn(2, 32, generator=generator),
        f"{ADAPTED}.lora_B.default.weight": torch.randn(32, 2, generator=generator),
    }
    write_checkpoint(run, weights, shards=shards, base=base_fingerprint(project / "model"))
    return run


def test_an_adapter_has_a_card_and_only_merged_it_is_quantised(adapter: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^--quantize: got a run that trained an adapter .*do: add --merge"):
        export_run(adapter.path, None, tmp_path / "refused", quantize=True)
    assert not (tmp_path / "refused").exists()
    exported = export_run(adapter.path, None, tmp_path / "adapter")
    front = read_front_matter(exported / FILE_NAME)
    assert front == {
        "license": "apache-2.0",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["shardtune", "sft", "lora"],
    }
    card = (exported / FILE_NAME).read_text()
    assert "AutoPeftModelForCausalLM" in card
    assert dict(tables(card)["What was trained"][1:])["licence of the base model"] == "apache-2.0"
    merged = export_run(adapter.path, None, tmp_path / "merged", merge=True, quantize=True, loss_tokens=0)
    assert "Its loss was not measured (--loss-tokens 0)." in (merged / FILE_NAME).read_text()
    assert "pip install compressed-tensors" in (merged / FILE_NAME).read_text()
    assert 'from_pretrained("merged")' in (merged / FILE_NAME).read_text()
    assert f"{ADAPTED}.weight_packed" in load_file(merged / "model.safetensors")


def test_an_adapter_answers_beside_its_own_base_alone(
    project: Path, adapter: RunFolder, exports: tuple[Path, Path], tmp_path: Path
) -> None:
    exported = export_run(adapter.path, None, tmp_path / "adapter")
    assert load_model_folder(exported, device="cpu").base == project / "model"
    settings = json.loads((exported / "adapter_config.json").read_text())
    for base in exports:
        text = json.dumps(settings | {"base_model_name_or_path": str(base)})
        (exported / "adapter_config.json").write_text(text)
        with pytest.raises(
            RunError, match=r"adapter: adapter of another base: got one trained beside weights"
        ):
            load_model_folder(exported, device="cpu")
    (
        exported / "shardtune.json"
    ).unlink()  # an adapter of peft's says nothing of its base, now the int8 export
    with pytest.raises(RunError, match=r"/adapter: cannot be loaded: .*; expected a whole folder"):
        load_model_folder(exported, device="cpu")


def test_a_model_of_the_hub_s_cache_is_named_as_on_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--owner--a-model" / "snapshots" / "0f3c"
    assert model_name(cached) == "owner/a-model"
    assert model_name(tmp_path / "llama") == "llama"
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    assert read_front_matter(tmp_path / "README.md") == {}


def test_without_the_library_both_ways_end_in_one_line(
    whole: RunFolder, exports: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "compressed_tensors" else known(name)
    )
    said = r"needs compressed-tensors, which is not installed; do: pip install 'shardtune\[quantize\]'"
    with pytest.raises(RunError, match=f"^--quantize: {said}"):
        export_run(whole.path, None, tmp_path / "out", quantize=True)
    with pytest.raises(RunError, match=said):
        load_model_folder(exports[1])


def test_the_command_prints_the_change_of_loss_and_chat_and_eval_take_the_folder(
    whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    done = run_shardtune(
        "export", whole.path, "--output", output, "--quantize", "int8", "--loss-tokens", "200"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output)
    line = next(line for line in done.stderr.splitlines() if line.startswith("int8: "))
    assert re.search(
        r"loss \d\.\d{4} in int8, \d\.\d{4} in bf16: difference [+-]0\.\d{4}, on \d+ target tokens", line
    )

    sampling = Sampling(max_new_tokens=4)
    chat(
        output,
        sampling,
        system=None,
        once="What is 2 plus 3?",
        chat_template=None,
        device=None,
        precision="auto",
    )
    assert capsys.readouterr().out.endswith("\n")
    choices = Choices(("validation",), tmp_path / "results", sampling, limit=3)
    results = evaluate(output, load_run_config(whole.config_path).shards, choices, make_console())
    assert results.about["answers"] == 3


def run_shardtune(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "training.cli", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.slow
def test_lm_eval_finds_the_likelihoods_that_the_model_has(exports: tuple[Path, Path], tmp_path: Path) -> None:
    """The real harness, offline, on a task of its own: two choices for each question."""
    questions: list[dict[str, Any]] = [
        {"question": "What is 2 plus 3?", "choices": ["2 plus 3 is 5.", "Quito"], "answer": 0},
        {"question": "What is 7 plus 1?", "choices": ["hot", "7 plus 1 is 8."], "answer": 1},
    ]
    rows = tmp_path / "sums.jsonl"
    rows.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "1"]
    command += ["--model_args", f"pretrained={exports[0]},dtype=float32", "--tasks", "sums"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    (samples,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    found = sorted(
        (json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"]
    )

    tokenizer = AutoTokenizer.from_pretrained(exports[0])
    network = AutoModelForCausalLM.from_pretrained(exports[0], dtype=torch.float32)
    right = 0
    for question, sample in zip(questions, found, strict=True):
        ours = []
        for choice in question["choices"]:
            context = tokenizer(question["question"], add_special_tokens=False)["input_ids"]
            ids = tokenizer(f"{question['question']} {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                scores = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(context), len(ids))
            ours.append(sum(float(scores[place - 1, ids[place]]) for place in places))
        theirs = [float(response[0][0]) for response in sample["resps"]]
        assert theirs == pytest.approx(ours, abs=1e-3)
        right += ours.index(max(ours)) == question["answer"]
    assert results["results"]["sums"]["acc,none"] == right / len(questions)
