"""Every optimizer and every addition to the loss under ZeRO-3: against plain PyTorch, and resumed to the last bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.muon import original_muon
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from data_tools.shards import open_shards
from tests.training.harness import Project, make_project
from tests.training.optim_worker import float32
from tests.training.ranks import run_ranks
from training.config import RunConfig, load_run_config
from training.data import PackOrder
from training.optim import learning_rate
from training.optim_settings import FgmConfig

NUM_STEPS, RESUMED_STEPS = 4, 2
LR = 1e-3
# Mean difference of the weights to plain PyTorch's after the last step, in units of the learning rate. Sums are taken
# in another order, and where a gradient is nearly nothing its sign may tip over: a whole step, two for Lion. Seen:
# adamw 2.6e-6, sgd 6e-10, lion 4e-6 (no sign has tipped over), muon 1.1e-6.
TOLERANCES = {"adamw": 2e-5, "sgd": 1e-8, "lion": 2e-3, "muon": 2e-5}
ADAMW = {"lr": LR, "weight_decay": 0.1, "warmup": 0.25, "schedule": "wsd", "decay": 2.0, "layer_decay": 0.8}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": ADAMW,
    "lion": {"name": "lion", "lr": LR, "weight_decay": 0.1, "schedule": "inverse_sqrt", "warmup": 1.0},
    "sgd": {"name": "sgd", "lr": LR, "weight_decay": 0.1, "schedule": "linear", "clip": 0.5},
    "muon": {"name": "muon", "lr": LR, "adam_lr": 5e-4, "weight_decay": 0.1, "schedule": "constant"},
}
LOSSES: dict[str, dict[str, Any]] = {
    "smoothed": {"label_smoothing": 0.1, "z_loss": 1e-3},
    "fgm": {"adversarial": {"method": "fgm", "epsilon": 0.5, "weight": 0.7}},
    "freelb": {"adversarial": {"method": "freelb", "passes": 3, "start": 0.0, "epsilon": 0.15}},
}


class PlainLion(torch.optim.Optimizer):
    """The algorithm as its authors write it (table 2), a parameter at a time."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p -= group["lr"] * ((b1 * m + (1 - b1) * p.grad).sign() + group["weight_decay"] * p)
                m.copy_(b2 * m + (1 - b2) * p.grad)


def plain_optimizer(model: PreTrainedModel, config: RunConfig) -> torch.optim.Optimizer:
    """Return an optimizer with a group for each parameter of a Llama, by the rules as README states them."""
    optim, layers = config.optim, model.config.num_hidden_layers
    groups = []
    for name, parameter in model.named_parameters():
        depth = layers + 1 if "embed_tokens" in name else 0
        if ".layers." in name:
            depth = layers - int(name.split(".")[2])
        by_adam = parameter.dim() < 2 or "embed_tokens" in name or "lm_head" in name
        scale = 0.5 if by_adam and optim.adam_lr else 1.0
        decays = parameter.dim() > 1 and "embed_tokens" not in name
        group = {"params": [parameter], "lr": 1.0, "weight_decay": optim.weight_decay if decays else 0.0}
        if optim.name == "muon":
            group |= {"use_muon": not by_adam} | ({"betas": optim.betas, "eps": optim.eps} if by_adam else {})
        groups.append(group | {"scale": scale * optim.layer_decay**depth})
    if optim.name == "lion":
        return PlainLion(groups, optim.betas)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    if optim.name == "muon":
        rest = [{k: v for k, v in group.items() if k != "scale"} for group in groups]
        muon: torch.optim.Optimizer = original_muon.SingleDeviceMuonWithAuxAdam(rest)
        for group, made in zip(groups, muon.param_groups, strict=True):
            made["scale"] = group["scale"]
        return muon
    return torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)


def document_loss(
    model: PreTrainedModel, config: RunConfig, ids: torch.Tensor, labels: torch.Tensor, move: torch.Tensor
) -> torch.Tensor:
    """Return a document's Σ loss with its embeddings moved by [T, hidden]."""
    embeddings = model.get_input_embeddings()(ids) + move
    logits = model(inputs_embeds=embeddings[None], use_cache=False).logits[0, :-1][labels[1:] != -100]
    wanted = labels[1:][labels[1:] != -100]
    log_sums = logits.exp().sum(-1).log()
    plain = (log_sums - logits.gather(1, wanted[:, None])[:, 0]).sum()
    spread = (log_sums[:, None] - logits).mean(-1).sum()
    smoothing = config.loss.label_smoothing
    return (1 - smoothing) * plain + smoothing * spread + config.loss.z_loss * log_sums.square().sum()


def backward(
    model: PreTrainedModel, config: RunConfig, ids: torch.Tensor, labels: torch.Tensor, num_targets: int
) -> float:
    """Add a document's gradient to the weights', over all its passes; return the first one's loss."""
    adversarial, losses = config.loss.adversarial, []
    move = torch.zeros(len(ids), model.config.hidden_size)
    weights = [1.0]
    if isinstance(adversarial, FgmConfig):
        weights = [1.0, adversarial.weight]
    elif adversarial is not None:
        weights = [1 / adversarial.passes] * adversarial.passes
    for weight in weights:
        move = move.detach().requires_grad_()
        loss = document_loss(model, config, ids, labels, move)
        torch.autograd.backward(loss * weight / num_targets)
        losses.append(loss.item())
        if adversarial is None or move.grad is None or not move.grad.any():
            continue
        up = move.grad / move.grad.norm()
        if isinstance(adversarial, FgmConfig):
            move = adversarial.epsilon * up
        else:
            move = move.detach() + adversarial.step_size * up
            move = move * min(1.0, adversarial.epsilon / move.norm().item())
    return losses[0]


def train_plainly(config: RunConfig) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Train on one process, document by document; return the loss and the norm of each step, and the weights."""
    shards = open_shards(config.shards)
    split = shards.splits["train"]
    order = PackOrder(fingerprint=shards.fingerprint, seed=config.seed, num_packs=split.num_packs)
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    optimizer = plain_optimizer(model, config)
    packs, losses, norms = config.batch.packs_per_step, [], []
    for step in range(1, NUM_STEPS + 1):
        numbers = [order[position] for position in range((step - 1) * packs, step * packs)]
        num_targets = sum(int(split.target_tokens[number]) for number in numbers)
        total = 0.0
        for pack in map(split.pack, numbers):
            ids = torch.tensor(pack.input_ids.tolist())
            labels = torch.where(torch.tensor(pack.targets.tolist()), ids, -100)
            lengths = pack.seq_lengths.tolist()
            for document, wanted in zip(torch.split(ids, lengths), torch.split(labels, lengths), strict=True):
                total += backward(model, config, document, wanted, num_targets)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or float("inf"))
        norms.append(norm.item())
        lr = learning_rate(config.optim, step=step, num_steps=NUM_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / num_targets)
    return losses, norms, {name: value.detach() for name, value in model.named_parameters()}


class Cases:
    """Cases for the ranks, and the losses and norms that plain PyTorch has for them."""

    def __init__(self, project: Project, folder: Path, *, sub_group_size: int = 20_000) -> None:
        self.folder, self.sub_group_size = folder, sub_group_size
        self.config = load_run_config(project.write_run("optimizers", {"steps": NUM_STEPS}))
        self.listed: list[dict[str, Any]] = []
        self.plain: dict[str, tuple[list[float], list[float]]] = {}

    def add(self, name: str, offload: str, *, compare: bool = True, **changes: Any) -> None:
        """Add a case: the keys of run.yaml that differ, and where the optimizer is kept."""
        resolved = RunConfig.model_validate(self.config.model_dump() | changes)
        expected = self.folder / f"{name.split()[0]}.safetensors"
        if compare and not expected.exists():
            losses, norms, weights = train_plainly(resolved)
            save_file({key: value.contiguous() for key, value in weights.items()}, expected)
            self.plain[name.split()[0]] = (losses, norms)
        zero: dict[str, Any] = {"stage": 3, "sub_group_size": self.sub_group_size}
        if offload != "none":
            on_disk = {"nvme_path": str(self.folder / "swap"), "buffer_count": 4} if offload == "nvme" else {}
            zero["offload_optimizer"] = {"device": offload} | on_disk
        path = self.folder / f"{offload}.json"
        path.write_text(json.dumps({"zero_optimization": zero}))
        self.listed.append(
            {
                "name": name,
                "deepspeed": str(path),
                "config": json.loads(json.dumps(changes)),
                "expected": str(expected) if compare else None,
            }
        )

    def run(self, name: str, *, ranks: int = 2, on_disk: bool = False) -> dict[str, dict[str, Any]]:
        """Run all cases in one launch; check each against its plain run and its own resumption."""
        results = run_ranks(
            "tests.training.optim_worker",
            self.folder / name,
            self.config,
            self.listed,
            num_ranks=ranks,
            ops=("ShareMemCommBuilder", "CPUAdamBuilder", *(("AsyncIOBuilder",) if on_disk else ())),
        )
        for result in results:
            self.check(result)
        return {result["name"]: result for result in results}

    def check(self, result: dict[str, Any]) -> None:
        name = result["name"]
        assert result["resumed_losses"] == result["losses"][RESUMED_STEPS:], name
        assert result["resumed_weights"] == result["weights"], name
        if "mean" in result:
            kind = name.split()[0]
            optimizer = kind if kind in OPTIMIZERS else "adamw"
            print(name, f"mean {result['mean'] / LR:.2g} largest {result['largest'] / LR:.2g} lr")
            losses, norms = self.plain[kind]
            assert result["losses"] == pytest.approx(losses, rel=1e-5), name
            assert result["grad_norms"] == pytest.approx(norms, rel=1e-4), name
            assert result["mean"] / LR <= TOLERANCES[optimizer], name


@pytest.fixture
def cases(tiny: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cases]:
    """Return no cases yet. Muon's kernels are not compiled: that takes minutes here, and its numbers are the same."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    monkeypatch.setattr(original_muon, "ns_compute_dtype", float32)  # as in the ranks
    with torch.compiler.set_stance("force_eager"):
        yield Cases(tiny, tmp_path)


def test_an_offloaded_optimizer_equals_plain_pytorch_and_resumes_to_the_last_bit(cases: Cases) -> None:
    for name, optim in OPTIMIZERS.items():
        cases.add(f"{name} cpu", "cpu", optim=optim)
    cases.add("fgm cpu", "cpu", optim=ADAMW, loss=LOSSES["fgm"])
    cases.run("run")


@pytest.mark.slow
def test_the_same_without_offload_and_with_what_is_added_to_the_loss(cases: Cases) -> None:
    for name, optim in OPTIMIZERS.items():
        cases.add(f"{name} none", "none", optim=optim)
    for name, loss in LOSSES.items():
        cases.add(f"{name} none", "none", optim=ADAMW, loss=loss)
    cases.add("neftune none", "none", compare=False, optim=ADAMW, loss={"neftune": 5.0})
    cases.run("run")


@pytest.mark.slow
def test_states_in_bfloat16_train_as_those_in_float32_and_resume_to_the_last_bit(cases: Cases) -> None:
    for states in ("fp32", "bf16_master", "bf16"):
        optim = ADAMW | {"states": states}
        cases.add(f"states-{states} cpu", "cpu", compare=False, optim=optim, precision="bf16")
    results = cases.run("run")
    for states, dtype in (("fp32", "float32"), ("bf16_master", "float32"), ("bf16", "bfloat16")):
        result = results[f"states-{states} cpu"]
        assert result["states"] == [f"torch.{dtype}"]
        assert result["losses"] == pytest.approx(results["states-fp32 cpu"]["losses"], rel=5e-3)


@pytest.mark.slow
def test_on_nvme_each_optimizer_does_what_it_does_in_memory_and_resumes_to_the_last_bit(
    tmp_path: Path,
) -> None:
    layers = {
        "hidden_size": 384,
        "intermediate_size": 2816,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
    }
    project = make_project(tmp_path / "project", rows_per_family=30, seq_len=96, layers=layers)
    cases = Cases(project, tmp_path, sub_group_size=1_500_000)
    for name in ("adamw", "lion", "sgd"):
        for offload in ("cpu", "nvme"):
            cases.add(f"{name} {offload}", offload, compare=False, optim=OPTIMIZERS[name])
    results = cases.run("run", on_disk=True)
    for name in ("adamw", "lion", "sgd"):
        assert results[f"{name} nvme"]["swapped_groups"] > 1
        assert results[f"{name} nvme"]["weights"] == results[f"{name} cpu"]["weights"]
