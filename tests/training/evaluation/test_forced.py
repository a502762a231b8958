"""Teacher-forced losses of batches against plain forwards of one document at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from data_tools.chat import ChatTokenizer
from tests.training.small_run import make_small_run
from training.evaluation.forced import force_documents
from training.model_folder import ModelFolder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("forced")).parent / "model"


@pytest.mark.parametrize("tuning", [None, "lora", "prompt"])
def test_batches_are_as_documents_alone_and_the_head_sees_targets_only(
    path: Path, tuning: str | None
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    if tuning == "lora":
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora)
    elif tuning == "prompt":
        model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
    model.eval()
    tokenizer = ChatTokenizer.load(path, None)
    folder = ModelFolder(path, path, model, tokenizer, torch.device("cpu"), max_positions=40)

    generator = np.random.default_rng(0)
    documents = []
    for length in (12, 31, 7, 41, 20):
        targets = generator.random(length) < 0.4
        targets[0] = False
        documents.append((generator.integers(3, 290, size=length).astype(np.int32), targets))
    documents.append((documents[0][0], np.zeros(12, dtype=np.bool_)))
    rows: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _, given, made: rows.append(made[..., 0].numel())
    )
    found = force_documents(folder, documents, batch_size=2)
    hook.remove()
    assert sum(rows) == sum(int(targets.sum()) for ids, targets in documents if len(ids) <= 40)
    for (ids, targets), one in zip(documents, found, strict=True):
        if len(ids) > 40:
            assert one is None
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(ids.tolist())[None]).logits[0, -len(ids) :]
        places = np.flatnonzero(targets)
        likely = torch.log_softmax(logits[places - 1], -1)
        labels = torch.tensor(ids[targets].tolist(), dtype=torch.long)
        assert one is not None
        assert one.tokens == len(places)
        assert one.loss == pytest.approx(float(-likely.gather(1, labels[:, None]).sum()), abs=1e-4)
        assert one.hits == int((likely.argmax(-1) == labels).sum())
