"""The calls to vLLM, against a stand-in that keeps them: vLLM itself needs a GPU and was never run."""

import json
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.errors import RunError
from data_tools.pack import pack
from data_tools.settings import load_data_settings
from tests.training.small_run import make_small_run
from training.evaluation.answers import seed_of
from training.evaluation.command import Choices, evaluate
from training.evaluation.results import read_results, read_scored
from training.generation import Sampling
from training.model_folder import load_model_folder


@dataclass
class Params:
    """The parameters of vLLM's SamplingParams that we give; it refuses others."""

    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    stop_token_ids: list[int]
    detokenize: bool


@dataclass
class StandIn:
    """What was asked of vLLM. Every answer is the prompt's first tokens, then a stop token, then more."""

    started: list[dict[str, Any]] = field(default_factory=list)
    asked: list[tuple[list[int], Params]] = field(default_factory=list)

    def module(self) -> ModuleType:
        """Return the module vllm."""

        def start(**options: Any) -> SimpleNamespace:
            self.started.append(options)
            return SimpleNamespace(generate=generate)

        def generate(
            prompts: list[dict[str, list[int]]], params: list[Params], *, use_tqdm: bool
        ) -> list[SimpleNamespace]:
            made = []
            for prompt, one in zip(prompts, params, strict=True):
                ids = prompt["prompt_token_ids"]
                self.asked.append((ids, one))
                answer = [*ids[: one.max_tokens - 2], one.stop_token_ids[0], ids[0]]
                made.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(answer))]))
            return made

        module = ModuleType("vllm")
        module.LLM = start  # type: ignore[attr-defined]
        module.SamplingParams = Params  # type: ignore[attr-defined]
        return module


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_small_run(tmp_path_factory.mktemp("vllm")).parent
    pack(load_data_settings(folder / "data.yaml", [f"output={folder}/shards", "splits.test=0.1"]), workers=1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    model.save_pretrained(folder / "model")
    return folder


def test_prompts_go_in_as_ids_and_answers_come_back_as_text(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_tools.report import make_console

    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "vllm", stand_in.module())
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.99" if name == "vllm" else version(name))
    sampling = Sampling(max_new_tokens=6, temperature=0.7, top_p=0.9, seed=3)
    choices = Choices(("test",), tmp_path / "out", sampling, engine="vllm")
    results = evaluate(project / "model", project / "shards", choices, make_console())

    folder = load_model_folder(project / "model", device="cpu")
    scored = read_scored(tmp_path / "out")
    assert results.about["answers"] == len(scored) == len(stand_in.asked) > 5
    assert results.groups[0].scores["loss"].value > 0  # which transformers has measured
    longest = max(len(ids) for ids, _ in stand_in.asked)
    assert stand_in.started == [
        {
            "model": str(project / "model"),
            "dtype": "float32",
            "seed": 3,
            "max_model_len": longest + 6,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
        }
    ]
    by_prompt = {folder.tokenizer.decode(ids): (ids, params) for ids, params in stand_in.asked}
    stops = sorted(folder.tokenizer.stop_token_ids)
    for line in scored:
        ids, params = by_prompt[line["prompt"]]
        assert params == Params(0.7, 0.9, seed_of(3, line["number"]), 6, stops, False)
        assert line["answer"] == folder.tokenizer.decode_text(ids[:4]).strip()
    assert len({params.seed for _, params in stand_in.asked}) == len(stand_in.asked)

    # Another engine's answers are not mixed in; its own are not made again.
    with pytest.raises(RunError, match="holds answers of another model, split or way of drawing"):
        evaluate(
            project / "model",
            project / "shards",
            Choices(("test",), tmp_path / "out", sampling),
            make_console(),
        )
    evaluate(project / "model", project / "shards", choices, make_console())
    assert len(stand_in.started) == 1
    assert read_results(tmp_path / "out").about["engine"] == "vllm 0.99"


def test_without_vllm_and_for_an_adapter_there_is_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_tools.report import make_console

    choices = Choices(("test",), tmp_path / "out", Sampling(), engine="vllm")
    monkeypatch.setitem(sys.modules, "vllm", None)  # what an import of it then says is that it is not there
    with pytest.raises(RunError, match=r"^--engine vllm: vLLM cannot be imported: .*pip install vllm[^\n]*$"):
        evaluate(project / "model", project / "shards", choices, make_console())
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    base = {"base_model_name_or_path": str(project / "model")}
    (adapter / "adapter_config.json").write_text(json.dumps(base))
    with pytest.raises(RunError, match=r"^--engine vllm: .*is an adapter; .*--merge[^\n]*$"):
        evaluate(adapter, project / "shards", choices, make_console())
    assert not (tmp_path / "out").exists()
