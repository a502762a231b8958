"""`shardtune chat` on a tiny model that has learnt one answer by heart."""

import importlib.util
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.chat import ChatTokenizer
from data_tools.conversation import Conversation, Message
from data_tools.errors import RunError
from tests.training.small_run import make_small_run
from training.base_model import base_fingerprint
from training.cli import main
from training.generation import Sampling, answer
from training.model_folder import ModelFolder, load_model_folder
from training.tuning.adapter_files import PROVENANCE

QUESTION, ANSWER = "What is 2 plus 3?", "2 plus 3 is 5."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose model answers QUESTION with ANSWER."""
    folder = make_small_run(tmp_path_factory.mktemp("chat")).parent / "model"
    tokenizer = ChatTokenizer.load(folder, None)
    messages = (Message("user", QUESTION), Message("assistant", ANSWER))
    document = tokenizer.encode(Conversation(messages, "single_turn"), train_on="assistant")
    ids = torch.tensor(document.ids.tolist())[None]
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model: Path) -> ModelFolder:
    return load_model_folder(model, device="cpu")


def shardtune(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "training.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def test_one_question_by_argument_and_through_a_pipe(model: Path) -> None:
    once = shardtune("chat", str(model), "--once", QUESTION)
    assert (once.returncode, once.stdout) == (0, f"{ANSWER}\n"), once.stderr
    piped = shardtune("chat", str(model), input=f"{QUESTION}\n")
    assert (piped.returncode, piped.stdout) == (0, f"{ANSWER}\n"), piped.stderr


def test_a_conversation_in_a_terminal(model: Path) -> None:
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "training.cli", "chat", str(model)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(mine, f"/help\n{QUESTION}\n/again\n/system Be brief.\n/new\n{QUESTION}\n/exit\n".encode())
    seen = b"".join(_read_all(mine)).decode()
    assert process.wait(timeout=60) == 0
    # After the change of the system turn the model, which knows one conversation, may say anything.
    assert seen.count(ANSWER) >= 2
    assert "/system TEXT" in seen
    assert "Traceback" not in seen


def _read_all(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # how Linux tells that the other end is closed
            return
        if not block:
            return
        yield block


def test_an_answer_is_shown_piece_by_piece_and_only_as_text(loaded: ModelFolder) -> None:
    pieces: list[str] = []
    reply = answer(loaded, [Message("user", QUESTION)], Sampling(), show=pieces.append)
    assert reply == "".join(pieces) == ANSWER
    assert len(pieces) > 2


def test_draws_follow_from_the_seed(loaded: ModelFolder) -> None:
    replies = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sampling = Sampling(temperature=50.0, max_new_tokens=12)
        replies.append(answer(loaded, [Message("user", "Why?")], sampling))
    assert replies[0] == replies[1] != replies[2]


def test_text_that_spells_a_special_token_stays_text(loaded: ModelFolder) -> None:
    plain = loaded.tokenizer.encode_prompt([Message("user", "a b")])
    spelled = loaded.tokenizer.encode_prompt([Message("user", "a </s> b")])
    eos = loaded.tokenizer.eos_token_id
    assert (spelled == eos).sum() == (plain == eos).sum()


def test_a_conversation_that_leaves_no_room_is_told(loaded: ModelFolder) -> None:
    with pytest.raises(RunError, match="positions; begin a new one"):
        answer(loaded, [Message("user", QUESTION * 40)], Sampling())


def test_the_base_of_an_adapter_is_looked_for(model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone", "peft_type": "LORA"}')
    with pytest.raises(RunError, match="no model folder there: got /gone"):
        load_model_folder(tmp_path)


def damage(folder: Path, how: str) -> None:
    """Damage a model folder as a broken copy or a wrong edit does."""
    weights, settings = folder / "model.safetensors", folder / "config.json"
    match how:
        case "missing" | "misshaped":
            tensors = load_file(weights)
            name = "model.layers.1.mlp.up_proj.weight"
            tensor = tensors.pop(name)
            save_file(tensors if how == "missing" else tensors | {name: tensor[:5].clone()}, weights)
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "no weights":
            weights.unlink()
        case "cut":
            settings.write_text("{")
        case "list":
            settings.write_text("[1]")
        case "adapter":
            (folder / "adapter_config.json").write_text("[1]")
        case _:
            settings.write_text(json.dumps(json.loads(settings.read_text()) | json.loads(how)))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", r"the weights do not fit config.json: model.layers.1.mlp.up_proj.weight is missing;"),
        ("misshaped", r"the weights do not fit config.json: \S+up_proj.weight is \[5, 32\], not \[64, 32\];"),
        ('{"hidden_size": 64}', r"the weights do not fit config.json: .* and \d+ more;"),
        ("truncated", "cannot be loaded: SafetensorError: "),
        ("no weights", "cannot be loaded: OSError: "),
        ("cut", r"config.json: damaged: .*expected a JSON object"),
        ("list", "config.json: damaged: got list; expected a JSON object"),
        ("adapter", "adapter_config.json: damaged: got list; expected a JSON object"),
        ('{"model_type": "nix"}', "cannot be loaded: ValueError: .*`nix`"),
        ('{"hidden_size": "many"}', "cannot be loaded: Strict.*'hidden_size' expected int"),
        ('{"hidden_act": "nix"}', "cannot be loaded: KeyError: 'nix'"),
    ],
)
def test_a_damaged_folder_is_named_and_never_answers(
    model: Path, tmp_path: Path, how: str, said: str
) -> None:
    folder = shutil.copytree(model, tmp_path / "broken")
    damage(folder, how)
    with pytest.raises(RunError, match=rf"^{folder}\S*: {said}|^{folder}/{said}") as caught:
        load_model_folder(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_an_adapter_with_a_tensor_missing_is_refused(model: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    text = json.dumps(settings | {"base_model_name_or_path": str(model)})
    (tmp_path / "adapter_config.json").write_text(text)
    load_model_folder(tmp_path, device="cpu")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RunError, match="cannot be loaded: UserWarning: Found missing adapter keys"):
        load_model_folder(tmp_path, device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_an_adapter_on_4_bits_says_what_it_needs(model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    made = {"method": "qlora", "double_quant": True, "base_fingerprint": base_fingerprint(model)}
    (tmp_path / PROVENANCE).write_text(json.dumps(made))
    with pytest.raises(RunError, match=r"needs bitsandbytes.* not installed; run: pip install bitsandbytes"):
        load_model_folder(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--once", "x"], "nowhere: no such folder"),
        (["MODEL", "--once", " "], "the question is empty"),
        (["MODEL", "--once", "x", "--temperature", "-1"], "--temperature: got -1.0"),
        (["MODEL", "--once", "x", "--top-p", "0"], "--top-p: got 0.0"),
        (["MODEL", "--once", "x", "--max-new-tokens", "0"], "--max-new-tokens: got 0"),
        (["MODEL", "--once", "x", "--device", "abacus"], "--device: got 'abacus'"),
        (["MODEL", "--once", "x", "--device", "cuda:99"], "--device: got cuda:99"),
        (["BARE", "--once", "x"], "chat_template: the tokenizer has none of its own"),
        (["RUN", "--once", "x"], "is a run folder; do: shardtune export"),
    ],
)
def test_each_mistake_gets_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if "template" not in file.name:
            (bare / file.name).write_bytes(file.read_bytes())
    settings = (bare / "tokenizer_config.json").read_text()
    (bare / "tokenizer_config.json").write_text(settings.replace("chat_template", "no_template"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: x\n")
    places = {"MODEL": model, "BARE": bare, "RUN": run}
    named = [str(places.get(argument, argument)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["shardtune", "chat", *named])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
