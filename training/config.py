"""The whole run as one frozen, typed value: run.yaml and overrides in, `RunConfig` out.

Workers read the copy in the run folder and nothing else. What follows from the numbers (steps, accumulation)
is computed here and stored nowhere; what can be known to be wrong without torch is said by `check_run`.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from data_tools.errors import RunError
from data_tools.settings import AnyPath, Settings, did_you_mean, dump_settings, load_settings
from training.base_model import base_fingerprint, head_mistakes
from training.best import best_mistakes
from training.cluster.settings import SlurmConfig
from training.optim_checks import optim_mistakes
from training.optim_settings import LossConfig, OptimConfig
from training.sequence_checks import sequence_mistakes
from training.speed_checks import speed_mistakes
from training.tuning.checks import tuning_mistakes, vocabulary_mistakes
from training.tuning.settings import FullTuning, Tuning, trains_everything

if TYPE_CHECKING:
    from data_tools.shards import Shards

# Models whose attention is plain causal attention with rotary positions: packed attention is proved for them.
SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# A split that training uses itself cannot be evaluated on; these are evaluated on by default where they are.
DEFAULT_EVALUATION_SPLITS = ("validation", "unseen_tasks")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_micro_packs(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("auto, or a whole number above 0")
    return value


def _as_loss_scale(value: Any) -> Any:
    if value is None or value == "dynamic":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError("dynamic, or a number above 0")
    return float(value)


class BatchConfig(Settings):
    """What one optimizer step takes, over all ranks, and what one forward takes on one rank.

    `micro_packs: auto` becomes a number before a run's config.yaml is written: see plan/choose.py.
    """

    packs_per_step: int = Field(gt=0, le=1_000_000)
    micro_packs: Annotated[int | Literal["auto"], BeforeValidator(_as_micro_packs)] = 1
    sequence_parallel: int = Field(default=1, gt=0)

    @property
    def packs_per_forward(self) -> int:
        """Return micro_packs as the number that it is by now."""
        assert self.micro_packs != "auto", "micro_packs: auto was not resolved"
        return self.micro_packs


class SaveConfig(Settings):
    """When checkpoints are written, how, and which of them are kept.

    `keep` counts the newest; every one whose step is a multiple of `keep_every` stays beside them, and the one with the
    best evaluation by the metric that `best` names, such as validation/loss.
    """

    every_steps: int = Field(default=200, gt=0)
    keep: int = Field(default=2, gt=0)
    keep_every: int | None = Field(default=None, gt=0)
    best: str | None = None
    mode: Literal["async", "sync"] = "async"
    on_error: Literal["stop", "continue"] = "stop"


class EvaluateConfig(Settings):
    """When and on what the loss is measured; `splits` null: validation and unseen_tasks, if there.

    After `patience` evaluations that have not improved `save.best` the run ends early.
    """

    every_steps: int = Field(default=200, gt=0)
    splits: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] | None = None
    max_packs: int | None = Field(default=200, gt=0)
    patience: int | None = Field(default=None, gt=0)


class LogConfig(Settings):
    """How often a step is logged, and whether TensorBoard and Weights & Biases get it too.

    wandb: `offline` keeps it in the run folder, for `wandb sync`.
    """

    every_steps: int = Field(default=1, gt=0)
    tensorboard: bool = True
    wandb: Literal["offline", "online"] | None = None
    wandb_project: str = Field(default="shardtune", min_length=1)


class LaunchConfig(Settings):
    """The ranks of a node: null takes every GPU there is; without GPUs it is the number of CPU ranks.

    `gpu_memory_gib` is for the plan, where there is no GPU to ask.
    """

    gpus_per_node: int | None = Field(default=None, gt=0)
    gpu_memory_gib: float | None = Field(default=None, gt=0)


class RunConfig(Settings):
    """run.yaml: everything a run is made of. Exactly one of `epochs` and `steps` is set."""

    path_keys: ClassVar[tuple[str, ...]] = (
        "model",
        "shards",
        "runs",
        "deepspeed",
        "tuning.continue_from",
        "slurm.site",
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    model: AnyPath
    from_scratch: bool = False
    shards: AnyPath
    runs: AnyPath = Path("runs")
    deepspeed: AnyPath
    seed: int = Field(default=17, ge=0, lt=2**63)
    batch: BatchConfig
    epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    steps: int | None = Field(default=None, gt=0, le=1_000_000_000)
    optim: OptimConfig
    loss: LossConfig = LossConfig()
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    loss_scale: Annotated[Literal["dynamic"] | float | None, BeforeValidator(_as_loss_scale)] = None
    activation_checkpointing: bool | Literal["selective"] = True
    offload_activations: bool = False
    kernels: Literal["torch", "liger"] = "torch"
    compile: bool = False
    max_bad_steps: int = Field(default=5, gt=0)
    watchdog: int | None = Field(default=600, gt=0, le=7 * 86400)
    tuning: Tuning = FullTuning()
    resize_embeddings: bool = False
    save: SaveConfig = SaveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()
    launch: LaunchConfig = LaunchConfig()
    slurm: SlurmConfig = SlurmConfig()

    @classmethod
    def mistakes_between_keys(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield a mistake unless exactly one of epochs and steps is given."""
        given = [key for key in ("epochs", "steps") if raw.get(key) is not None]
        if len(given) == 2:
            yield "steps", "epochs and steps are both set; expected exactly one of them"
        if not given:
            yield "steps", "neither epochs nor steps is set; expected exactly one of them"
        precision, scale = raw.get("precision", "bf16"), raw.get("loss_scale")
        if precision == "fp16" and scale is None:
            yield (
                "loss_scale",
                "missing with precision fp16, whose gradients vanish without one; expected dynamic, or a number",
            )
        if precision != "fp16" and scale is not None:
            yield "loss_scale", f"got {scale} with precision {precision}; belongs to fp16; take it out"

    @property
    def run_folder(self) -> Path:
        """Return where the run lives: runs/NAME."""
        return self.runs / self.name

    def write(self, path: Path) -> None:
        """Write the resolved run as YAML, with absolute paths; the file appears whole or not at all."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(dump_settings(self.model_dump(mode="json")), encoding="utf-8")
        partial.replace(path)


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read run.yaml with `key=value` overrides. Raise SettingsError with all mistakes."""
    return load_settings(RunConfig, path, overrides, path_keys=RunConfig.path_keys)


def read_run_config(path: Path) -> RunConfig:
    """Read the config.yaml of a run folder, as its workers do."""
    return load_run_config(path)


def trained_base(config: RunConfig) -> str:
    """Return the fingerprint of the weights that a run builds on and does not keep; empty if it trains all of them."""
    return "" if trains_everything(config.tuning) else base_fingerprint(config.model)


def end_of_run(config: RunConfig, num_packs: int) -> int | None:
    """Return the packs of the whole run, over all its epochs; None if the run is counted in steps."""
    return None if config.epochs is None else round(config.epochs * num_packs)


def derive_steps(config: RunConfig, num_packs: int, *, steps_done: int = 0, consumed: int = 0) -> int:
    """Return the number of optimizer steps of the whole run, of which some may be done.

    Raises RunError if `epochs` comes to no pack at all.
    Example: 2 epochs of 9 packs, 4 packs a step: 5 steps, the last of which is filled up with 2 of weight 0.
    """
    end = end_of_run(config, num_packs)
    if end is None:
        assert config.steps is not None
        return config.steps
    if end == 0:
        raise RunError(
            f"epochs: nothing to train on: got {config.epochs} epochs of {num_packs} packs; use more"
        )
    return steps_done + math.ceil((end - consumed) / config.batch.packs_per_step)


def accumulation(config: RunConfig, world_size: int) -> int:
    """Return the micro-batches of one step on one rank.

    Raises RunError if a step cannot be shared out evenly.
    """
    packs, micro, to_a_row = (
        config.batch.packs_per_step,
        config.batch.packs_per_forward,
        config.batch.sequence_parallel,
    )
    if world_size % to_a_row:
        raise RunError(
            f"batch.sequence_parallel: the ranks cannot be grouped: got {world_size} ranks, {to_a_row} to a row; "
            f"expected a multiple of {to_a_row} ranks"
        )
    shares = world_size // to_a_row
    if packs % (shares * micro):
        possible = [n * to_a_row for n in range(1, packs // micro + 1) if packs % (n * micro) == 0]
        hint = (
            f"this step can be shared by {', '.join(map(str, possible))} ranks"
            if possible
            else f"with micro_packs {micro} no number of ranks can share it; set micro_packs: 1"
        )
        what = "there are more ranks than packs" if packs < shares else "cannot be shared out"
        ranks = f"{shares} ranks" if to_a_row == 1 else f"{shares} groups of {to_a_row} ranks"
        raise RunError(
            f"batch.packs_per_step: {what}: got {packs} packs for {ranks} x "
            f"micro_packs {micro}; expected a multiple of {shares * micro}; {hint}"
        )
    return packs // (shares * micro)


def evaluation_splits(config: RunConfig, shards: "Shards") -> tuple[str, ...]:
    """Return the splits to evaluate on during training. Raise RunError for one that is named and absent."""
    present = [name for name, split in shards.splits.items() if split.num_packs > 0]
    if config.evaluate.splits is None:
        return tuple(name for name in DEFAULT_EVALUATION_SPLITS if name in present)
    for name in config.evaluate.splits:
        if name not in present:
            raise RunError(
                f"evaluate.splits: no such split in {config.shards}: got {name!r}; "
                f"expected one of {', '.join(present)}{did_you_mean(name, present)}"
            )
    return config.evaluate.splits


def check_run(config: RunConfig) -> "Shards":
    """Check everything about a run that can be known without torch; return its shards.

    Raises ShardError for shards that cannot be used, RunError with all other mistakes, one a line.
    """
    from data_tools.shards import open_shards  # pulls in pyarrow, which `--help` must not pay

    shards = open_shards(config.shards)
    mistakes: list[str] = []
    try:
        mistakes += best_mistakes(config, shards, evaluation_splits(config, shards))
    except RunError as error:
        mistakes.append(str(error))
    num_steps = 0
    train = shards.splits.get("train")
    if train is None or train.num_packs == 0:
        mistakes.append(f"{config.shards}: has no train split; expected at least one pack to train on")
    else:
        try:
            num_steps = derive_steps(config, train.num_packs)
        except RunError as error:
            mistakes.append(str(error))
    mistakes += _model_mistakes(config, shards, num_steps)
    if mistakes:
        raise RunError("\n".join(mistakes))
    return shards


def no_model(config: RunConfig) -> str:
    """Return the mistake of a model without a config.json."""
    what = "has no config.json" if config.model.is_dir() else "no such folder"
    return f"model: {config.model}: {what}; expected a Hugging Face model folder"


def _model_mistakes(config: RunConfig, shards: "Shards", num_steps: int) -> Iterator[str]:
    path = config.model / "config.json"
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield no_model(config)
        return
    except (OSError, ValueError) as error:
        yield f"model: {path}: cannot be read: {error}"
        return
    if not isinstance(model, dict):
        yield f"model: {path}: got {type(model).__name__}; expected a JSON object"
        return
    model_type = model.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        yield (
            f"model: {path}: this type of model is not supported: got {model_type!r}; "
            f"expected one of {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    yield from head_mistakes(path, model)
    yield from vocabulary_mistakes(config, model, vocab_size=shards.vocab_size)
    yield from tuning_mistakes(config, model, seq_len=shards.seq_len, num_steps=num_steps)
    yield from optim_mistakes(config, num_steps=num_steps)
    yield from sequence_mistakes(config, model)
    yield from speed_mistakes(config)
    positions = model.get("max_position_embeddings")
    if isinstance(positions, int) and positions < shards.seq_len:
        yield (
            f"model: {path}: the shards' seq_len is beyond the model's positions: got {shards.seq_len} in "
            f"{config.shards}; expected at most {positions}; pack with a smaller seq_len"
        )
    if not config.from_scratch and not any(config.model.glob("*.safetensors")):
        yield f"model: {config.model}: holds no *.safetensors; expected weights, or from_scratch: true"
