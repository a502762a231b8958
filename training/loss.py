"""Cross-entropy over target positions only, summed, and never with the logits of a whole pack in memory."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from training.optim_settings import POSITIONS_AT_A_TIME

HeadOutput = Literal["loss_sum", "token_losses", "logits"]


class TargetHead(nn.Module):
    """The output layer of a language model, which gives losses in place of logits.

    It takes the place of `lm_head` and holds its very parameters, so that names and tied embeddings stay. All
    chunks are worked through inside one module call: ZeRO-3 gathers a module's weights once for each call, and
    ranks with different numbers of targets must make the same number of calls.
    """

    def __init__(self, head: nn.Linear, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

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
            return self._logits(hidden)
        # At least one chunk, even an empty one.
        chunks = [
            slice(at, at + POSITIONS_AT_A_TIME) for at in range(0, max(len(labels), 1), POSITIONS_AT_A_TIME)
        ]
        if output == "token_losses":
            parts = [self._token_losses(hidden[chunk], labels[chunk]) for chunk in chunks]
            return torch.cat([losses for losses, _ in parts]), torch.cat([hits for _, hits in parts])
        total = hidden.new_zeros((), dtype=torch.float32)
        for chunk in chunks:
            total = total + checkpoint(self._loss_sum, hidden[chunk], labels[chunk], use_reentrant=False)
        return total

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def _loss_sum(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self._logits(hidden).float()
        total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        return total + self.z_loss * logits.logsumexp(-1).square().sum() if self.z_loss else total

    def _token_losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(hidden).float()
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels
