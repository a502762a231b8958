"""One optimizer step over all ranks: the forwards and backwards of its micro-batches, then an update or none."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import deepspeed
import torch

from training.adversarial import first_move, next_move, pass_weights
from training.clock import Clock
from training.data import Batch, seed_random
from training.distributed import World, all_sum
from training.engine import prepare_step
from training.gradients import clip_before_muon, drop_gradients, forget_untouched, settle_gradients
from training.optim_settings import Adversarial
from training.saver import Saver
from training.sequence_parallel import cut_row


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step; the same on every rank but for `micro_losses`.

    loss: mean loss of the step's targets. grad_norm: before clipping; infinity where it is not finite.
    applied: False for a step that was skipped, with weights and optimizer as before. rescaled: it was skipped because
    its gradient overflowed in fp16, at a loss scale that is lower now. num_tokens, num_squares: Σ length
    and Σ length² of its documents. micro_losses: Σ cross-entropy of each of this rank's micro-batches.
    """

    loss: float
    grad_norm: float
    applied: bool
    rescaled: bool
    num_tokens: float
    num_squares: float
    micro_losses: tuple[torch.Tensor, ...]


def train_step(
    engine: deepspeed.DeepSpeedEngine,
    batches: Iterable[Batch],
    world: World,
    *,
    num_targets: int,
    lr: float,
    seed: int,
    clock: Clock,
    saver: Saver | None = None,
    adversarial: Adversarial | None = None,
    clip: float | None = None,
) -> StepResult:
    """Take one step on this rank's `batches`, as many as the engine accumulates; `num_targets` are those of all ranks.

    A step whose loss or gradient is not finite updates nothing. An update waits until `saver` has read the state that
    it is to change. adversarial: the passes of each micro-batch, if more than one. clip: the largest norm of the
    gradient with Muon; for other optimizers DeepSpeed clips by itself.
    """
    losses: list[torch.Tensor] = []
    num_tokens = num_squares = 0
    remaining, num_batches = iter(batches), int(engine.gradient_accumulation_steps())
    for number in range(1, num_batches + 1):
        with clock.part("data"):
            row = next(remaining)
            batch = cut_row(row, rank=world.sequence_rank, size=world.sequence_size).to(engine.device)
        losses.append(
            _accumulate(
                engine,
                batch,
                # DeepSpeed averages the gradients over the ranks: times world_size they add up, and every
                # target of the step weighs the same, whichever rank and micro-batch it is in. Ranks that share a
                # row have different targets of it, so it is all the same to them.
                scale=world.size / num_targets,
                place=(number, num_batches),
                seed=seed,
                adversarial=adversarial,
                clock=clock,
            )
        )
        num_tokens += batch.num_tokens
        num_squares += batch.num_squares
    # The sums stay on the device until here: this is the one time that a step waits for its forwards and backwards.
    sums = torch.tensor([0.0, num_tokens, num_squares], dtype=torch.float64).to(engine.device)
    sums[0] = sum(losses[1:], losses[0])
    total_loss, total_tokens, total_squares = all_sum(sums).tolist()
    mean_loss = total_loss / num_targets

    if saver is not None:
        saver.wait_until_read()
    with clock.part("optimizer"):
        norm, rescaled = math.inf, False
        if math.isfinite(mean_loss):
            settle_gradients(engine)
            prepare_step(engine, lr=lr)
            norm = clip_before_muon(engine, clip) if engine.optimizer.use_muon else 0.0
        if math.isfinite(norm):
            engine.step()  # looks at the gradient's norm itself, and updates nothing if it is not finite
            if not engine.optimizer.use_muon:
                norm = float(engine.get_global_grad_norm())
            overflowed = not engine.was_step_applied()
            rescaled = engine.module.loss_scale.settle(engine.optimizer, overflowed=overflowed)
        else:
            drop_gradients(engine)
    applied = math.isfinite(norm) and engine.was_step_applied()
    return StepResult(
        loss=mean_loss,
        grad_norm=norm if applied else math.inf,
        applied=applied,
        rescaled=rescaled,
        # Each of the ranks that share a row has counted the whole of it.
        num_tokens=total_tokens / world.sequence_size,
        num_squares=total_squares / world.sequence_size,
        micro_losses=tuple(losses),
    )


def _accumulate(
    engine: deepspeed.DeepSpeedEngine,
    batch: Batch,
    *,
    scale: float,
    place: tuple[int, int],
    seed: int,
    adversarial: Adversarial | None,
    clock: Clock,
) -> torch.Tensor:
    """Add a micro-batch's gradient to the step's; return its Σ loss, that of the first pass if there are several.

    scale: what a target's loss is multiplied by. place: which micro-batch of how many, from 1. seed: that of the run;
    every pass draws the same random numbers.
    """
    number, num_micro_batches = place
    weights = pass_weights(adversarial)
    losses: list[torch.Tensor] = []
    move = None
    if adversarial is not None:
        seed_random(seed, batch.position, batch.piece)
        width = engine.module.hf.config.hidden_size
        move = first_move(adversarial, batch.document_lengths, width, engine.device)
    for turn, weight in enumerate(weights, 1):
        seed_random(seed, batch.position, batch.piece)
        engine.set_gradient_accumulation_boundary(number == num_micro_batches and turn == len(weights))
        with clock.part("forward"):
            loss = engine(batch) if move is None else engine(batch, move=move)
        with clock.part("backward"):
            # A penalty of the tuning method is the same in every forward: a share in each, one in all.
            share = engine.module.penalty / (num_micro_batches * len(weights))
            engine.backward(loss * (scale * weight) + share, scale_wrt_gas=False)
        if number == turn == 1:
            forget_untouched(engine)
        losses.append(loss.detach())
        if adversarial is not None and move is not None and turn < len(weights):
            move = next_move(adversarial, move, batch.document_lengths)
    return losses[0]
