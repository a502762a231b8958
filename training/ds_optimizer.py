"""DeepSpeed's keys for the optimizer and the precision of its states, from run.yaml.

Lion and AdamW with 8 bits are not among them: `engine.py` hands DeepSpeed our own.
"""

from typing import TYPE_CHECKING, Any

from training.loss_scale import LossScale

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.optim_settings import OptimConfig

DEFAULT_MOMENTUM = {"sgd": 0.9, "muon": 0.95}


def optimizer_keys(config: "RunConfig", *, offload: str) -> dict[str, Any]:
    """Return the top-level keys of DeepSpeed that follow from `optim` and `precision`.

    offload: where the file keeps the optimizer: none, cpu or nvme.
    """
    optim = config.optim
    keys: dict[str, Any] = {
        # DeepSpeed would clip Muon's updates in place of its gradients: gradients.py does it.
        "gradient_clipping": 0.0 if optim.name == "muon" else optim.clip or 0.0,
    }
    if section := _section(optim, offload=offload):
        keys["optimizer"] = section
    if optim.name in ("sgd", "lion", "adamw8bit"):  # DeepSpeed's lists have neither torch's SGD nor ours
        keys |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if config.precision == "fp16":
        # To DeepSpeed every scale is a constant: loss_scale.py changes a dynamic one.
        keys["fp16"] = {"enabled": True, "loss_scale": LossScale.of(config.loss_scale).scale}
    if config.precision != "fp32":
        # By default DeepSpeed adds the micro-batches' gradients up in the 16 bits of the weights.
        keys["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.precision == "bf16":
        keys["bf16"] = {"enabled": True}
        if optim.states != "fp32":
            keys["bf16"]["bf16_master_weights_and_grads"] = True
            keys["bf16"]["bf16_optimizer_states"] = optim.states == "bf16"
    if optim.name == "muon":
        keys["communication_data_type"] = "fp32"  # the type that DeepSpeed keeps Muon's momentum in
    return keys


def _section(optim: "OptimConfig", *, offload: str) -> dict[str, Any] | None:
    """Return what DeepSpeed builds the optimizer from; None for the one that it is given."""
    if optim.name in ("lion", "adamw8bit"):
        return None
    # Not offloaded, torch's own AdamW does: DeepSpeed's needs a CUDA compiler where the job runs.
    adam = {"betas": list(optim.betas), "eps": optim.eps, "torch_adam": offload == "none"}
    shared: dict[str, Any] = {"lr": optim.lr, "weight_decay": optim.weight_decay}
    if optim.name == "adamw":
        return {"type": "AdamW", "params": shared | adam}
    if optim.name == "sgd":
        return {"type": "SGD", "params": shared | {"momentum": momentum(optim)}}
    return {"type": "Muon", "params": shared | adam | {"momentum": momentum(optim)}}


def momentum(optim: "OptimConfig") -> float:
    """Return the momentum of an optimizer that has one."""
    return DEFAULT_MOMENTUM[optim.name] if optim.momentum is None else optim.momentum
