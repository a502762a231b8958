"""Cross-entropy over target positions only, summed, and never with the logits of a whole pack in memory."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from training.loss_scale import LossScale
from training.optim_settings import POSITIONS_AT_A_TIME

HeadOutput = Literal["loss_sum", "token_losses", "logits"]


class TargetHead(nn.Module):
    """The output layer of a language model, which gives losses in place of logits.

    It takes the place of `lm_head` and holds its very parameters, so that names and tied embeddings stay. All
    chunks are worked through inside one module call: ZeRO-3 gathers a module's weights once for each call, and
    ranks with different numbers of targets must make the same number of calls.
    """

    def __init__(
        self,
        head: nn.Linear,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        loss_scale: LossScale | None = None,
    ) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.loss_scale = loss_scale or LossScale()

    def forward(
        self, hidden: torch.Tensor, labels: torch.Tensor, output: HeadOutput
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return what `output` names, for hidden states [N, hidden] and labels int64 [N].

        loss_sum: Σ cross-entropy of smoothed labels + z_loss x (log Σ exp logits)², a float32 scalar. N may be 0:
            the sum is then 0 and still has a gradient, so that a rank without targets takes part in the
            collectives of the backward pass.
        token_losses: each target's plain cross-entropy, float32 [N], and whether the likeliest token is the right
            one, bool [N].
        logits: [N, vocabulary]; for tests and self-tests.
        """
        if output == "logits":
            return self.logits(hidden)
        if output == "token_losses":
            parts = [self._token_losses(hidden[chunk], labels[chunk]) for chunk in _chunks(labels)]
            return torch.cat([losses for losses, _ in parts]), torch.cat([hits for _, hits in parts])
        total: torch.Tensor = _LossSum.apply(hidden, self.weight, self.bias, labels, self)  # type: ignore[no-untyped-call]
        return total

    def _token_losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(hidden).float()
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, vocabulary] of hidden states [N, hidden]."""
        return F.linear(_filled_up(hidden), self.weight, self.bias)[: len(hidden)]

    def loss_and_slope(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a chunk's Σ loss and its derivative by the logits, float32 [n, vocabulary] as these are."""
        smoothing, at = self.label_smoothing, labels[:, None]
        log_probs = logits.log_softmax(-1)
        right = log_probs.gather(-1, at)
        loss = -(1 - smoothing) * right.sum()
        if smoothing:
            loss = loss - smoothing * log_probs.mean(-1).sum()
        if self.z_loss:
            log_sum = logits.gather(-1, at) - right
            loss = loss + self.z_loss * log_sum.square().sum()
        slope = log_probs.exp_()
        if self.z_loss:
            slope *= 1 + 2 * self.z_loss * log_sum
        if smoothing:
            slope -= smoothing / slope.shape[-1]
        slope.scatter_add_(-1, at, torch.full_like(right, smoothing - 1))
        return loss, slope


def _chunks(labels: torch.Tensor) -> Iterator[slice]:
    """Yield what is worked on at a time; at least one chunk, even an empty one."""
    for start in range(0, max(len(labels), 1), POSITIONS_AT_A_TIME):
        yield slice(start, start + POSITIONS_AT_A_TIME)


def _filled_up(rows: torch.Tensor) -> torch.Tensor:
    """Return `rows`, in 16 bits with zeros behind them up to a multiple of 64: products of few different shapes.

    On a CPU oneDNN compiles a product in 16 bits for each shape that is new to it, at many times the product's cost.
    """
    missing = -len(rows) % 64 if rows.element_size() == 2 else 0
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


class _LossSum(torch.autograd.Function):
    """The sum of the losses, whose gradient is taken in the forward, while a chunk's logits are at hand.

    The head is what the backward begins with, so a gradient from the forward waits for nothing; otherwise the logits
    would be computed twice. (Hsu et al. 2024, Liger, do it so too.)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        head: TargetHead,
    ) -> torch.Tensor:
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        gradients = [torch.zeros_like(t) if t is not None and needed else None for t, needed in wanted]
        by_hidden, by_weight, by_bias = gradients
        # Small slopes would vanish in fp16; those of a mean, times the loss scale, are what the backward is to give.
        ctx.scale = head.loss_scale.scale / max(len(labels), 1) if hidden.dtype == torch.float16 else 1.0
        total = hidden.new_zeros((), dtype=torch.float32)
        for chunk in _chunks(labels):
            inputs, targets = _filled_up(hidden[chunk]), labels[chunk]
            loss, slope = head.loss_and_slope(head.logits(inputs)[: len(targets)].float(), targets)
            total += loss
            if ctx.scale != 1.0:
                slope *= ctx.scale
            slope = _filled_up(slope.to(hidden.dtype))
            if by_hidden is not None:
                by_hidden[chunk] = torch.mm(slope, weight)[: len(targets)]
            if by_weight is not None:
                by_weight.addmm_(slope.T, inputs)
            if by_bias is not None:
                by_bias += slope.sum(0)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *by_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factor = by_total[0] / ctx.scale
        # In place, so that there is one gradient of the vocabulary's size, not two; a second backward is an error.
        return (*(g if g is None else g.mul_(factor) for g in ctx.saved_tensors), None, None)
