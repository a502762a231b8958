"""The keys of the optimizer, its schedule and the loss in run.yaml."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from data_tools.settings import Settings

# Of targets whose logits are in memory at once. They cost about 12 bytes x vocabulary for each: 1024 of a vocabulary
# of 128k are 1.6 GB.
POSITIONS_AT_A_TIME = 1024


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _refuse_adafactor(value: Any) -> Any:
    if value == "adafactor":
        # It keeps the sums of a matrix's rows and columns. ZeRO-3 gives each rank a run of the flattened matrix, which
        # holds pieces of both: every step would have to gather every matrix's squared gradient.
        raise ValueError(
            "adamw, adamw8bit, lion, muon or sgd; adafactor factors whole matrices, and under ZeRO-3 no rank holds "
            "one; adamw8bit keeps moments of 8 bits, lion one instead of two"
        )
    return value


class OptimConfig(Settings):
    """The optimizer and its schedule.

    `warmup`, and `decay` of the schedule wsd: below 1 a share of all steps, else a number of steps. Weights whose names
    match one of the globs in `no_decay` do not decay, nor do norms, biases and other vectors. `adam_lr` is for the
    weights that muon leaves to AdamW. `states`: the precision of master weights and moments.
    """

    name: Annotated[
        Literal["adamw", "adamw8bit", "lion", "muon", "sgd"], BeforeValidator(_refuse_adafactor)
    ] = "adamw"
    lr: float = Field(gt=0)
    adam_lr: float | None = Field(default=None, gt=0)
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        BeforeValidator(_as_tuple),
    ] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    no_decay: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("*embed_tokens*",)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    warmup: float = Field(default=0.03, ge=0)
    schedule: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = "cosine"
    decay: float = Field(default=0.2, ge=0)
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    clip: float | None = Field(default=1.0, gt=0)
    states: Literal["fp32", "bf16_master", "bf16"] = "fp32"

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a mistake for one and a half steps, and for keys that the optimizer has no use for."""
        for key in ("warmup", "decay"):
            value = raw.get(key)
            if isinstance(value, float) and value >= 1 and not value.is_integer():
                yield key, f"got {value}; expected a share below 1, or a whole number of steps"
        name = raw.get("name", "adamw")
        for key, optimizers in (("momentum", ("muon", "sgd")), ("adam_lr", ("muon",))):
            if raw.get(key) is not None and name not in optimizers:
                yield (
                    key,
                    f"got {raw[key]} with name: {name}; belongs to {' and '.join(optimizers)}; take it out",
                )

    def warmup_steps(self, num_steps: int) -> int:
        """Return the steps of the warm-up of a run of `num_steps`."""
        return _in_steps(self.warmup, num_steps)

    def decay_steps(self, num_steps: int) -> int:
        """Return the steps of the decay at the end of a run of `num_steps` with the schedule wsd."""
        return _in_steps(self.decay, num_steps)


def _in_steps(length: float, num_steps: int) -> int:
    return round(length * num_steps) if length < 1 else round(length)


class FgmConfig(Settings):
    """A second pass of each micro-batch, with each document's embeddings moved by `epsilon` (L2) up its gradient.

    Its loss is added to the first one's, times `weight` (Miyato et al. 2017).
    """

    method: Literal["fgm"] = "fgm"
    epsilon: float = Field(default=1.0, gt=0)
    weight: float = Field(default=1.0, gt=0)


class FreelbConfig(Settings):
    """`passes` passes of each micro-batch, whose gradients are averaged (Zhu et al. 2020).

    Each document's embeddings begin at random within `start` (L2) and move by `step_size` up the gradient from pass to
    pass, within `epsilon`.
    """

    method: Literal["freelb"] = "freelb"
    passes: int = Field(default=3, gt=1)
    start: float = Field(default=0.05, ge=0)
    step_size: float = Field(default=0.1, gt=0)
    epsilon: float = Field(default=0.3, gt=0)

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a mistake if the embeddings could begin farther away than they may go."""
        start, epsilon = raw.get("start", 0.05), raw.get("epsilon", 0.3)
        if isinstance(start, int | float) and isinstance(epsilon, int | float) and start > epsilon:
            yield "start", f"got {start}; expected at most epsilon, which is {epsilon}"


Adversarial = FgmConfig | FreelbConfig


class LossConfig(Settings):
    """What is added to the cross-entropy in training; evaluation measures the plain one.

    `z_loss` weighs (log Σ exp logits)², `neftune` is the noise on input embeddings (Jain et al. 2023: 5 to 15).
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    z_loss: float = Field(default=0.0, ge=0)
    neftune: float = Field(default=0.0, ge=0)
    adversarial: Adversarial | None = Field(default=None, discriminator="method")
