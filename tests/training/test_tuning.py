"""Each tuning method by the real command on two ranks with everything offloaded: train, resume, export, use.

What plain peft and transformers make of the export is held against the engine, document by document.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen2Config

from data_tools.shards import open_shards
from tests.training.harness import Project, engine_logits, environment, shardtune
from training.tuning.bottleneck import load_adapter

CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 4, "dropout": 0.1},
    "dora": {"method": "lora", "rank": 4, "dora": True, "rslora": True, "targets": ["q_proj", "down_proj"]},
    "pissa": {"method": "lora", "rank": 4, "init": "pissa"},
    "qlora": {"method": "qlora", "rank": 4},
    "adalora": {"method": "adalora", "rank": 2, "initial_rank": 4, "final_steps": 1},
    "prefix": {"method": "prefix", "num_virtual_tokens": 5},
    "prompt": {"method": "prompt", "num_virtual_tokens": 5},
    "ia3": {"method": "ia3"},
    "adapter": {"method": "adapter", "size": 8},
    "bitfit": {"method": "bitfit"},
    "part": {"method": "full", "train": ["*.layers.1.*", "*norm*"]},
}
QUICK = ("lora",)
MERGEABLE = ("lora", "dora", "pissa", "adalora", "ia3")
WHOLE = ("bitfit", "part")  # exported as models, for there is no adapter
TOLERANCE = 1e-4  # of logits in float32; a merged weight is another sum of the same products


def base_of(project: Project, case: str) -> Path:
    """Return the model folder of a case: of a type with biases, where only these are trained."""
    if case != "bitfit":
        return project.model
    folder = project.folder / "qwen2"
    if not folder.exists():
        torch.manual_seed(0)
        there = json.loads((project.model / "config.json").read_text())
        keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = Qwen2Config(
            **{key: there[key] for key in keys},
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.1,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def export(run_folder: Path, output: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = shardtune("export", run_folder, "--output", output, *options)
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def load_export(folder: Path, base: Path, case: str) -> PreTrainedModel:
    """Load an export as a user would: peft beside the base, or a whole model."""
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options: dict[str, Any] = {"dtype": torch.float32}
    if case == "qlora":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    if case == "adapter":
        load_adapter(model, folder)
        return model.eval()
    model = PeftModel.from_pretrained(model, folder)
    # bitsandbytes 0.50 has a CPU kernel for evaluation that takes no weights narrower than 64. There is no dropout.
    return model.train() if case == "qlora" else model.eval()


def logits_alone(model: PreTrainedModel, project: Project) -> torch.Tensor:
    """Return the logits of the first pack's documents, each given to the model by itself, [T, vocabulary]."""
    pack = open_shards(project.shards).splits["train"].pack(0)
    documents = torch.tensor(pack.input_ids.tolist()).split(pack.seq_lengths.tolist())
    with torch.no_grad():
        rows = [model(input_ids=document[None]).logits[0] for document in documents]
    return torch.cat([row[-len(document) :] for row, document in zip(rows, documents, strict=True)])


def states(run_folder: Path) -> dict[str, torch.Tensor]:
    folder = run_folder / "checkpoints" / "step-000004"
    return {
        f"{path.name} {name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_a_method_trains_resumes_to_the_last_bit_and_its_export_has_the_engine_s_logits(
    tiny: Project, case: str
) -> None:
    if case == "qlora":
        pytest.importorskip("bitsandbytes")
    base = base_of(tiny, case)
    settings: dict[str, Any] = {
        "steps": 4,
        "model": str(base),
        "tuning": CASES[case],
        "save": {"every_steps": 2, "keep": 5},
    }
    run_folder = tiny.run_folder(f"tuned-{case}")
    unbroken = tiny.train(run_folder.name, **settings)
    saved = states(run_folder)
    names = {name.partition("|")[2] for name in saved}
    assert all("base_layer" not in name and "embed_tokens" not in name for name in names), names

    shutil.rmtree(run_folder / "checkpoints" / "step-000004")
    assert tiny.train(run_folder.name, **settings) == unbroken
    again = states(run_folder)
    assert again.keys() == saved.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())

    expected = engine_logits(run_folder, run_folder / "logits.safetensors")
    before = logits_alone(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tiny)
    assert (before - expected).abs().max() > 10 * TOLERANCE, "training has changed nothing"
    for options in ((), ("--merge",)):
        output = run_folder / "-".join(("export", *options))
        done = export(run_folder, output, *options)
        if options and case not in (*MERGEABLE, *WHOLE):
            assert done.returncode == 2
            assert "--merge: is not defined for tuning.method" in done.stderr
            continue
        assert done.returncode == 0, done.stderr
        is_adapter = not options and case not in WHOLE
        assert (output / "adapter_config.json").exists() == is_adapter
        found = logits_alone(load_export(output, base, case), tiny)
        assert (found - expected).abs().max() < TOLERANCE, options
        assert AutoTokenizer.from_pretrained(output).chat_template
        library = "peft" if is_adapter else "transformers"
        assert f"library_name: {library}\n" in (output / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "precision"), [("prefix", "bf16"), ("adalora", "bf16"), ("lora", "bf16")])
def test_without_offload_in_bfloat16_it_resumes_exactly_too(tiny: Project, case: str, precision: str) -> None:
    settings: dict[str, Any] = {
        "steps": 4,
        "tuning": CASES[case],
        "precision": precision,
        "deepspeed": str(Path(__file__).parents[2] / "ds_configs" / "zero3.json"),
        "save": {"every_steps": 2, "keep": 5},
    }
    run_folder = tiny.run_folder(f"{precision}-{case}")
    unbroken = tiny.train(run_folder.name, **settings)
    saved = states(run_folder)
    shutil.rmtree(run_folder / "checkpoints" / "step-000004")
    assert tiny.train(run_folder.name, **settings) == unbroken
    assert all(torch.equal(tensor, saved[name]) for name, tensor in states(run_folder).items())


@pytest.mark.slow
def test_an_exported_adapter_is_continued_and_refused_beside_another_base(tiny: Project) -> None:
    tuning = {"method": "lora", "rank": 4}
    tiny.train("first", steps=3, tuning=tuning)
    exported = tiny.folder / "first-adapter"
    assert export(tiny.run_folder("first"), exported).returncode == 0
    trained = load_export(exported, tiny.model, "lora")

    going_on = tuning | {"continue_from": str(exported)}
    optim = {"lr": 1e-30, "weight_decay": 0.0, "warmup": 0, "schedule": "constant"}
    tiny.train("second", steps=1, tuning=going_on, optim=optim)
    found = engine_logits(tiny.run_folder("second"), tiny.folder / "second.safetensors")
    assert (found - logits_alone(trained, tiny)).abs().max() < TOLERANCE

    other = tiny.folder / "other"
    shutil.copytree(tiny.model, other)
    model = AutoModelForCausalLM.from_pretrained(other)
    model.model.norm.weight.data.add_(0.5)
    model.save_pretrained(other)
    for name, tuned, said in (
        ("third", going_on, "adapter of another base"),
        ("first", tuning, "holds other weights than those beside which the run was trained"),
    ):
        run_yaml = tiny.write_run(name, {"steps": 2, "tuning": tuned, "model": str(other)})
        done = subprocess.run(shardtune("train", run_yaml), env=environment(), capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stderr

    # Moved behind the run's back, as far as its settings can tell.
    shutil.rmtree(tiny.folder / "first-adapter")
    config = tiny.run_folder("first") / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny.model), str(other)))
    refused = export(tiny.run_folder("first"), tiny.folder / "refused")
    assert refused.returncode == 2
    assert "trained beside other weights" in refused.stderr


@pytest.mark.slow
def test_new_tokens_get_embeddings_that_are_trained_saved_and_exported(tiny: Project, tmp_path: Path) -> None:
    small = tmp_path / "small"
    model = AutoModelForCausalLM.from_pretrained(tiny.model)
    vocab_size = model.config.vocab_size
    model.resize_token_embeddings(vocab_size - 7, mean_resizing=False)
    model.save_pretrained(small)
    settings: dict[str, Any] = {
        "model": str(small),
        "resize_embeddings": True,
        "save": {"every_steps": 2, "keep": 5},
    }
    unbroken = tiny.train("resized-embeddings", steps=4, **settings)
    run_folder = tiny.run_folder("resized-embeddings")
    saved = states(run_folder)
    shutil.rmtree(run_folder / "checkpoints" / "step-000004")
    assert tiny.train("resized-embeddings", steps=4, **settings) == unbroken
    assert all(torch.equal(tensor, saved[name]) for name, tensor in states(run_folder).items())
    assert export(run_folder, tmp_path / "export").returncode == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    assert exported.config.vocab_size == vocab_size
    expected = engine_logits(run_folder, tmp_path / "logits.safetensors")
    assert (logits_alone(exported, tiny) - expected).abs().max() < TOLERANCE
