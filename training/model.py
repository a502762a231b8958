"""The model of a run: loaded in partitions under ZeRO-3, made ready for its tuning method, losses for batches."""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from data_tools.errors import RunError
from training.activations import checkpoint_activations
from training.adversarial import neftune_noise
from training.attention import ATTENTION_NAME, SEQUENCE_ATTENTION_NAME
from training.base_model import Shapes, parameter_shapes, read_weight_shapes
from training.config import SUPPORTED_MODEL_TYPES, RunConfig, trained_base
from training.data import Batch
from training.distributed import World
from training.kernels import use_compiled, use_liger
from training.loss import HeadOutput, TargetHead
from training.loss_scale import LossScale
from training.optim_settings import LossConfig
from training.sequence_parallel import sequence_group
from training.tuning.adalora import OrthogonalityPenalty, make_penalty
from training.tuning.methods import continue_adapter, keep_quantized_layers_training, quantization, tune
from training.tuning.settings import AddedTuning, QloraTuning
from training.tuning.virtual import Prefix, Prompt, Row, make_virtual_tokens, num_added

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class PackedCausalLM(nn.Module):
    """A Hugging Face causal language model that takes a `Batch` and gives the sum of its losses."""

    PREFIX = "hf."  # of the model's parameter names, seen from this module

    def __init__(
        self,
        model: PreTrainedModel,
        hf_deepspeed_config: object = None,
        *,
        virtual: Prompt | Prefix | None = None,
        orthogonality: OrthogonalityPenalty | None = None,
        base: str = "",
        loss: LossConfig | None = None,
        loss_scale: LossScale | None = None,
        sequence_group: dist.ProcessGroup | None = None,
    ) -> None:
        """Take over `model`.

        virtual: what stands in front of documents; orthogonality: what is added to the loss; base: who the weights are
        that are not trained; loss: what is added to the plain one; loss_scale: of the first step; sequence_group: the
        ranks that share rows with this one, each of which is given its piece of a batch, see cut_row.
        """
        super().__init__()
        self.hf = model
        self.virtual = virtual
        self.orthogonality = orthogonality
        self.penalty: torch.Tensor | float = 0.0  # of the last forward that gave a loss
        self.base = base
        self.loss_scale = loss_scale or LossScale()
        self.sequence_group = sequence_group
        loss = loss or LossConfig()
        self.neftune = loss.neftune
        self.moves_embeddings = bool(loss.neftune) or loss.adversarial is not None
        head = model.get_output_embeddings()
        model.set_output_embeddings(
            TargetHead(
                head,
                label_smoothing=loss.label_smoothing,
                z_loss=loss.z_loss,
                loss_scale=self.loss_scale,
            )
        )
        # transformers finds the ZeRO configuration through a weak reference to this object.
        self._hf_deepspeed_config = hf_deepspeed_config

    def forward(
        self, batch: Batch, output: HeadOutput = "loss_sum", move: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return Σ cross-entropy of the batch's targets, or what else `output` names (see TargetHead).

        `logits` are given for every position of the row, [T, vocabulary]; the rest for the targets only.
        move: is added to the input embeddings, [1, T, hidden].
        """
        embeddings = None
        if self.moves_embeddings or isinstance(self.virtual, Prompt):
            embeddings = self._moved_embeddings(batch, move, noisy=self.training and output == "loss_sum")
        row = Row(embeddings, batch.position_ids, batch.document_lengths)
        if self.virtual is not None:
            row = self.virtual.put_in_front(row)
        device = batch.input_ids.device
        lengths = torch.tensor((0, *row.document_lengths), dtype=torch.int32, device=device)
        hidden = self.hf.base_model(
            input_ids=batch.input_ids if row.embeddings is None else None,
            inputs_embeds=row.embeddings,
            position_ids=row.position_ids,
            use_cache=False,
            document_lengths=row.document_lengths,
            document_offsets=lengths.cumsum(0, dtype=torch.int32),
            prefix=row.prefix,
            sequence_group=self.sequence_group,
        ).last_hidden_state[0]
        if row.real is not None:
            hidden = hidden[row.real]
        if output != "logits":
            hidden = hidden[batch.predictors]
        if output == "loss_sum" and self.orthogonality is not None:
            self.penalty = self.orthogonality()
        return self.hf.get_output_embeddings()(hidden, batch.labels, output)  # type: ignore[no-any-return]

    def _moved_embeddings(self, batch: Batch, move: torch.Tensor | None, *, noisy: bool) -> torch.Tensor:
        """Return the input embeddings [1, T, hidden], with NEFTune's noise if they are to be `noisy`, and `move`."""
        embeddings: torch.Tensor = self.hf.get_input_embeddings()(batch.input_ids)
        if noisy and self.neftune:
            embeddings = embeddings + neftune_noise(embeddings, batch.document_lengths, self.neftune)
        return embeddings if move is None else embeddings + move.to(embeddings.dtype)

    def train(self, mode: bool = True) -> "PackedCausalLM":
        """Set training or evaluation mode, as every module does."""
        super().train(mode)
        keep_quantized_layers_training(self)
        return self


def load_model(
    config: RunConfig, ds_config: dict[str, Any], world: World, *, vocab_size: int
) -> PackedCausalLM:
    """Return the run's model in partitions: no rank holds the whole of it.

    vocab_size: of the shards; with `resize_embeddings` a smaller model gets as many embeddings, before DeepSpeed
    partitions them.

    Needs an initialised process group. Raises RunError, on every rank, if the weights do not fit the model's
    configuration: DeepSpeed itself would raise on rank 0 and let the others go on with garbage.
    """
    hf_config = AutoConfig.from_pretrained(config.model)
    check_architecture(config, hf_config)
    unset_hf_deepspeed_config()  # of an engine that this process had before, which would partition the skeleton
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(hf_config)
    numels = [parameter.numel() for parameter in skeleton.parameters()]
    numels.append(num_added(config, hf_config))
    if config.resize_embeddings:
        numels.append(vocab_size * hf_config.hidden_size)
    size_nvme_buffers(ds_config, max(numels), world.size)
    live = HfDeepSpeedConfig(ds_config)
    dtype = DTYPES[config.precision]
    attention = ATTENTION_NAME if world.sequence_size == 1 else SEQUENCE_ATTENTION_NAME
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if config.kernels == "liger":
        use_liger(hf_config)
    if config.compile:
        use_compiled(hf_config)
    shapes: Shapes = {}
    if config.from_scratch:
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(hf_config, **options)
    else:
        shapes = parameter_shapes(config.model)
        check_weights(skeleton, read_weight_shapes(config.model), config.model)
        if isinstance(config.tuning, QloraTuning):
            logger.info("qlora: every rank loads the whole model in 4 bits before it is partitioned")
            options["quantization_config"] = quantization(double=config.tuning.double_quant, dtype=dtype)
        model = AutoModelForCausalLM.from_pretrained(config.model, config=hf_config, **options)
    # transformers loads weights in 4 bits whole, on every rank; they are partitioned after that.
    assert isinstance(config.tuning, QloraTuning) or all(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    ), "the model is not partitioned"
    if config.resize_embeddings and hf_config.vocab_size < vocab_size:
        torch.manual_seed(config.seed)
        model.resize_token_embeddings(vocab_size)
    tune(model, config, shapes)
    checkpoint_activations(model, config)
    packed = PackedCausalLM(
        model,
        live,
        virtual=make_virtual_tokens(config, hf_config, dtype),
        orthogonality=make_penalty(config, model),
        base=trained_base(config),
        loss=config.loss,
        loss_scale=LossScale.of(config.loss_scale),
        sequence_group=sequence_group(world.sequence_size),
    )
    if isinstance(config.tuning, AddedTuning) and config.tuning.continue_from is not None:
        continue_adapter(packed, config.tuning.continue_from, prefix=PackedCausalLM.PREFIX)
    packed.train()
    return packed


def size_nvme_buffers(ds_config: dict[str, Any], largest_numel: int, world_size: int) -> None:
    """Give parameters offloaded to NVMe buffers of the size they need, unless the file names one.

    A buffer holds one rank's partition of a parameter; one that is too small is an assertion deep in DeepSpeed, and
    there are dozens of them, so one that is too large is memory lost.
    """
    offload = ds_config["zero_optimization"].get("offload_param") or {}
    if offload.get("device") == "nvme":
        offload.setdefault("buffer_size", -(-largest_numel // world_size))


def check_architecture(config: RunConfig, hf_config: PretrainedConfig) -> None:
    """Refuse models that the packed attention is not right for."""
    if hf_config.model_type not in SUPPORTED_MODEL_TYPES:
        raise RunError(
            f"{config.model}: packed attention is not proved for this type of model: "
            f"got {hf_config.model_type}; expected one of {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    window = getattr(hf_config, "sliding_window", None)
    longest = getattr(hf_config, "max_position_embeddings", None)
    if window is not None and (longest is None or window < longest):
        raise RunError(
            f"{config.model}: sliding-window attention is not supported: got sliding_window {window} in "
            "config.json; expected none; set it to null there if the model attends to whole documents"
        )


def check_weights(model: PreTrainedModel, shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Compare the weights of a folder with what the model's configuration asks for, by name and shape.

    Raises RunError with every weight that is missing or has another shape.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)  # tied parameters have several names
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    if tied:
        tied |= set(model.all_tied_weights_keys.values())
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    prefix = f"{model.base_model_prefix}."
    mistakes = []
    tied_found = any(name in shapes for name in tied)
    for aliases in names.values():
        candidates = [*aliases, *(alias.removeprefix(prefix) for alias in aliases)]
        found = next((name for name in candidates if name in shapes), None)
        if found is None:
            if not (tied_found and any(alias in tied for alias in aliases)):
                mistakes.append(f"{aliases[0]} is missing; config.json expects {list(wanted[aliases[0]])}")
        elif shapes[found] != wanted[aliases[0]]:
            expected = list(wanted[aliases[0]])
            mistakes.append(f"{found} has shape {list(shapes[found])}; config.json expects {expected}")
    if mistakes:
        shown = "\n  ".join(
            mistakes[:20] + ([f"and {len(mistakes) - 20} more"] if len(mistakes) > 20 else [])
        )
        raise RunError(f"{folder}: the weights do not fit config.json:\n  {shown}")
