"""Training by the real command: exactness, resume, stops, and what comes out at the end."""

import json
import math
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_tools.shards import open_shards
from tests.conftest import ROOT
from tests.training.checkpoints import read_ledger, same_checkpoint
from tests.training.harness import (
    Project,
    engine_logits,
    environment,
    make_project,
    ranks_of,
    read_losses,
    shardtune,
    wait_for_step,
)
from training.checkpoint_files import checkpoint_folder
from training.data import PackOrder
from training.events import read_events
from training.metrics import read_metrics
from training.status.report import read_status

NUM_STEPS = 6


def plain_losses(project: Project, *, num_steps: int, packs_per_step: int) -> list[float]:
    """Train with plain PyTorch on one process, document by document; return the loss of each step."""
    shards = open_shards(project.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=17, num_packs=split.num_packs)
    model = AutoModelForCausalLM.from_pretrained(project.model, dtype=torch.float32)
    matrices = [p for n, p in model.named_parameters() if p.dim() >= 2 and "embed_tokens" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() < 2 or "embed_tokens" in n]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(num_steps):
        total, num_targets = torch.zeros(()), 0
        for position in range(step * packs_per_step, (step + 1) * packs_per_step):
            pack = split.pack(order[position])
            ids = torch.tensor(pack.input_ids.tolist())
            labels = torch.where(torch.tensor(pack.targets.tolist()), ids, -100)
            for document, wanted in zip(
                ids.split(pack.seq_lengths.tolist()), labels.split(pack.seq_lengths.tolist()), strict=True
            ):
                logits = model(document[None], use_cache=False).logits[0]
                total = total + F.cross_entropy(logits[:-1], wanted[1:], reduction="sum")
                num_targets += int((wanted != -100).sum())
        (total / num_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 2)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item() / num_targets)
    return losses


@pytest.fixture(scope="module")
def unbroken(tiny: Project) -> dict[int, float]:
    """Return the losses of 10 steps on 2 ranks, without an interruption."""
    return tiny.train("unbroken", steps=10, save={"every_steps": 3, "keep": 2})


@pytest.mark.slow
def test_every_shape_of_a_step_gives_the_losses_of_plain_pytorch(
    tiny: Project, unbroken: dict[int, float]
) -> None:
    expected = plain_losses(tiny, num_steps=NUM_STEPS, packs_per_step=4)
    shapes = {"2x1x2": unbroken}
    for ranks, micro in ((1, 4), (2, 2)):
        shapes[f"{ranks}x{micro}"] = tiny.train(
            f"shape-{ranks}-{micro}",
            steps=NUM_STEPS,
            batch={"packs_per_step": 4, "micro_packs": micro},
            launch={"gpus_per_node": ranks},
        )
    assert expected[-1] < expected[0]
    for name, losses in shapes.items():
        for step, loss in enumerate(expected, 1):
            assert losses[step] == pytest.approx(loss, abs=1e-5), (name, step)


def test_killed_stopped_and_started_again_it_ends_with_the_numbers_of_an_unbroken_run(
    tiny: Project, unbroken: dict[int, float]
) -> None:
    save = {"every_steps": 3, "keep": 2}
    run_yaml = tiny.write_run("broken", {"steps": 10, "save": save})

    process = tiny.start(run_yaml)
    wait_for_step(tiny, "broken", 4)
    ranks_of(process)[1].kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    status = read_status(tiny.run_folder("broken"))
    assert status.why is not None
    assert (status.state, status.why.kind, status.held_by) == ("failed", "killed", None)

    process = tiny.start(run_yaml)
    wait_for_step(tiny, "broken", 5)
    assert read_status(tiny.run_folder("broken")).state == "running"
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert (tiny.run_folder("broken") / "state").read_text().strip() == "stopped"

    losses = tiny.train("broken", steps=10, save=save)
    assert losses == unbroken
    assert (tiny.run_folder("broken") / "state").read_text().strip() == "done"
    kept = sorted(path.name for path in (tiny.run_folder("broken") / "checkpoints").iterdir())
    assert kept == ["step-000009", "step-000010"]
    files = [tiny.run_folder(name) / "checkpoints" / "step-000010" for name in ("unbroken", "broken")]
    for path in files[0].glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(files[1] / path.name)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_its_front_killed_it_waits_for_the_dying_ranks_and_goes_on(
    tiny: Project, unbroken: dict[int, float]
) -> None:
    save = {"every_steps": 3, "keep": 2}
    process = tiny.start(tiny.write_run("frontless", {"steps": 10, "save": save}))
    wait_for_step(tiny, "frontless", 5)
    process.kill()  # every process below it must go too
    process.wait()
    status = read_status(tiny.run_folder("frontless"))
    assert status.why is not None
    assert status.state in ("died", "failed")  # a rank that saw another one end says so before it ends itself
    assert (status.why.kind, status.restarts) == ("vanished", 0)
    assert tiny.train("frontless", steps=10, save=save) == unbroken


@pytest.mark.slow
def test_continued_on_other_numbers_of_ranks(tiny: Project, unbroken: dict[int, float]) -> None:
    for steps, ranks in ((4, 1), (7, 2), (10, 1)):
        losses = tiny.train("resized", steps=steps, launch={"gpus_per_node": ranks})
    assert losses.keys() == unbroken.keys()
    for step, loss in unbroken.items():
        assert losses[step] == pytest.approx(loss, abs=1e-4)
    same_rows = {read_ledger(tiny.run_folder(name), 10) for name in ("resized", "unbroken")}
    assert len(same_rows) == 1


@pytest.mark.slow
def test_the_exported_model_has_the_logits_of_the_engine(tiny: Project, unbroken: dict[int, float]) -> None:
    exported = tiny.folder / "exported"
    run_folder = tiny.run_folder("unbroken")
    command = shardtune("export", run_folder, "--output", exported)
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    card, metrics = (exported / "README.md").read_text(), read_metrics(run_folder)
    assert f"| ledger of the rows seen | {read_ledger(run_folder, metrics[-1]['step'])} |" in card
    assert f"| {metrics[-1]['train/loss']:.4g} (step {metrics[-1]['step']}) |" in card
    assert f"{metrics[-1]['validation/loss']:.4g}" in card
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)

    expected = engine_logits(run_folder, tiny.folder / "logits.safetensors")
    pack = open_shards(tiny.shards).splits["train"].pack(0)
    documents = torch.tensor(pack.input_ids.tolist()).split(pack.seq_lengths.tolist())
    with torch.no_grad():
        alone = torch.cat([model(document[None]).logits[0] for document in documents])
    assert (alone - expected).abs().max() < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    again = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert again.returncode == 2
    assert "is not empty" in again.stderr


def test_epochs_evaluation_and_logs(tiny: Project) -> None:
    """Run 1 epoch with a last step that is filled up, evaluate, log to TensorBoard; then go on to 2 epochs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings: dict[str, Any] = {
        "epochs": 1,
        "batch": {"packs_per_step": 8, "micro_packs": 4},
        "evaluate": {"every_steps": 5, "splits": ["validation", "test"]},
        "log": {"tensorboard": True},
        "precision": "bf16",
    }
    num_packs = open_shards(tiny.shards).splits["train"].num_packs
    assert num_packs % 8, "the last step must be one that is filled up"
    losses = tiny.train("epochs", **settings)
    num_steps = math.ceil(num_packs / 8)
    assert list(losses) == list(range(1, num_steps + 1))
    run_folder = tiny.run_folder("epochs")
    progress = json.loads(next(run_folder.glob("checkpoints/*/progress.json")).read_text())
    assert progress["packs_consumed"] == num_packs

    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row["step"] for row in rows if "validation/loss" in row]
    assert evaluated == [*range(5, num_steps, 5), num_steps]
    for key in (
        "test/loss",
        "validation/token_accuracy",
        "validation_by_family/multi_turn_loss",
        "train/epoch",
    ):
        assert key in rows[-1]
    assert rows[-1]["train/epoch"] == pytest.approx(1)

    settings["epochs"] = 2
    losses = tiny.train("epochs", **settings)
    assert len(losses) == num_steps + math.ceil(num_packs / 8)
    board = EventAccumulator(str(run_folder / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == list(losses)

    started = len(read_events(run_folder))
    said = f"nothing left to do: {len(losses)} steps are done of {len(losses)}"
    run_yaml = tiny.write_run("epochs", settings)
    for command, code in (("train", 0), ("submit", 2)):
        done = subprocess.run(
            shardtune(command, run_yaml), env=environment(), cwd=tiny.folder, capture_output=True, text=True
        )
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert len(read_events(run_folder)) == started
    assert (run_folder / "state").read_text().strip() == "done"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose partitions are large enough to be swapped to NVMe (1 MiB)."""
    layers = {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    return make_project(tmp_path_factory.mktemp("wide"), rows_per_family=30, seq_len=128, layers=layers)


@pytest.mark.slow  # in a fresh environment DeepSpeed compiles its disk access for some five minutes first
def test_nvme_offload_resumes_exactly_and_equals_offload_to_cpu(wide: Project) -> None:
    nvme = json.loads((ROOT / "ds_configs" / "zero3_offload_nvme.json").read_text())
    for section in ("offload_param", "offload_optimizer"):
        nvme["zero_optimization"][section]["nvme_path"] = "${SHARDTUNE_TEST_NVME}"
    nvme["zero_optimization"]["offload_param"]["max_in_cpu"] = 0  # so that parameters really go to the disk
    (wide.folder / "nvme.json").write_text(json.dumps(nvme))
    os.environ["SHARDTUNE_TEST_NVME"] = str(wide.folder / "nvme")
    save = {"every_steps": 1, "keep": 9}
    on_nvme = {"deepspeed": "nvme.json", "save": save}

    on_cpu = wide.train("cpu", steps=4, save=save)
    wide.train("nvme", steps=2, **on_nvme)
    assert wide.train("nvme", steps=4, **on_nvme) == on_cpu
    for step in range(1, 5):  # copied from the swap files while the next step was under way
        folders = [checkpoint_folder(wide.run_folder(name) / "checkpoints", step) for name in ("cpu", "nvme")]
        assert same_checkpoint(*folders), step
    assert not any((wide.folder / "nvme").iterdir()), "the run's swap folder is removed at its end"


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero3", "zero3_offload_optimizer"])
def test_without_parameter_offload_it_resumes_exactly_with_the_same_losses(
    tiny: Project, unbroken: dict[int, float], ds_config: str
) -> None:
    settings = {"deepspeed": str(ROOT / "ds_configs" / f"{ds_config}.json")}
    whole = tiny.train(ds_config, steps=6, **settings)
    tiny.train(f"{ds_config}-parts", steps=3, **settings)
    assert tiny.train(f"{ds_config}-parts", steps=6, **settings) == whole
    for step, loss in whole.items():
        assert loss == pytest.approx(unbroken[step], abs=1e-5)


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_losses_to_the_last_bit(
    tiny: Project, unbroken: dict[int, float]
) -> None:
    assert tiny.train("again", steps=10) == unbroken


def test_a_model_whose_weights_do_not_fit_is_refused_on_every_rank(tiny: Project, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for path in tiny.model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    process = tiny.start(tiny.write_run("shape", {"steps": 2, "model": str(broken)}))
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "model.layers.0.mlp.gate_proj.weight has shape [96, 32]; config.json expects [64, 32]" in output


def test_a_step_that_is_no_multiple_of_the_ranks_says_which_are_possible(tiny: Project) -> None:
    run_yaml = tiny.write_run("uneven", {"steps": 2, "batch": {"packs_per_step": 3, "micro_packs": 1}})
    process = tiny.start(run_yaml)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "batch.packs_per_step" in output
    assert "1, 3 ranks" in output


def test_losses_are_read_once_per_step(tiny: Project, unbroken: dict[int, float]) -> None:
    assert list(read_losses(tiny.run_folder("unbroken"))) == list(range(1, 11))
    assert all(math.isfinite(loss) for loss in unbroken.values())
