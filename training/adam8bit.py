"""AdamW whose moments take 8 bits each, for flat tensors on any device.

After Dettmers et al. 2022: blocks of 256 elements, each with the largest of them as its scale, and levels that lie the
closer together the smaller they are. Other than there the levels are symmetric, so that what is read and written again
stays as it is, and of the second moment the root is kept: where the first is not zero, it is not zero either.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

BLOCK = 256
ELEMENTS_AT_A_TIME = 2**22  # a multiple of BLOCK; bounds the memory of what is computed in between


@cache
def levels(signed: bool, device: torch.device) -> torch.Tensor:
    """Return the 255 or 256 numbers that a code stands for, from the smallest, float32.

    Each power of ten has half as many as the one above it; the largest is 1.
    """
    bits = 6 if signed else 7
    decades = [
        torch.linspace(0.1, 1.0, 2 ** (bits - e) + 1, dtype=torch.float64)[1:] * 10.0**-e
        for e in range(bits + 1)
    ]
    positive = torch.cat(decades).sort().values
    negative = -positive.flip(0) if signed else positive[:0]
    return torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).float().to(device)


class Moment:
    """A flat float32 tensor in 8 bits an element."""

    dtype = torch.float32

    def __init__(self, like: torch.Tensor, *, signed: bool) -> None:
        """Make one of zeros, with as many elements as `like` and on its device."""
        self._levels = levels(signed, like.device)
        self._between = (self._levels[1:] + self._levels[:-1]) / 2
        num_blocks = -(-like.numel() // BLOCK)
        zero = int(signed) * (len(self._levels) // 2)
        self._codes = torch.full((num_blocks, BLOCK), zero, dtype=torch.uint8, device=like.device)
        self._scales = torch.zeros(num_blocks, 1, device=like.device)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return the elements [start, stop)."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        values = self._levels[self._codes[first:last].int()] * self._scales[first:last]
        return values.flatten()[start - first * BLOCK : stop - first * BLOCK]

    def write(self, start: int, values: torch.Tensor) -> None:
        """Put `values` from `start` on, which is where a block begins; they end where one ends, or the tensor."""
        assert start % BLOCK == 0
        first, count = start // BLOCK, -(-values.numel() // BLOCK)
        blocks = torch.nn.functional.pad(values, (0, count * BLOCK - values.numel())).view(count, BLOCK)
        scales = blocks.abs().amax(1, keepdim=True)
        self._scales[first : first + count] = scales
        shares = blocks / torch.where(scales > 0, scales, 1.0)
        self._codes[first : first + count] = torch.bucketize(shares, self._between).to(torch.uint8)


class Adam8bit(torch.optim.Optimizer):
    """AdamW with decoupled weight decay; its state is `step`, `exp_avg` and `exp_avg_root`.

    m ← β1 m + (1 - β1) g; v ← β2 v + (1 - β2) g²; w ← w (1 - lr λ) - lr m̂ / (√v̂ + ε), with m̂, v̂ corrected for their
    start at zero. Parameters are flat, as ZeRO-3's partitions are.
    """

    MOMENTS = ("exp_avg", "exp_avg_root")

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "exp_avg" not in state:
                    state |= {"step": 0} | {kind: self.moment(parameter, kind) for kind in self.MOMENTS}
                state["step"] += 1
                for start in range(0, parameter.numel(), ELEMENTS_AT_A_TIME):
                    piece = slice(start, min(start + ELEMENTS_AT_A_TIME, parameter.numel()))
                    _update(parameter.data[piece], parameter.grad[piece], state, group, piece)

    @staticmethod
    def moment(parameter: torch.Tensor, kind: str) -> Moment:
        """Return a moment of zeros for a parameter."""
        return Moment(parameter, signed=kind == "exp_avg")


def _update(
    weight: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], group: dict[str, Any], piece: slice
) -> None:
    (beta1, beta2), step = group["betas"], state["step"]
    mean = state["exp_avg"].read(piece.start, piece.stop).lerp_(gradient, 1 - beta1)
    square = state["exp_avg_root"].read(piece.start, piece.stop).square_()
    root = square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).sqrt_()
    state["exp_avg"].write(piece.start, mean)
    state["exp_avg_root"].write(piece.start, root)
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    root.div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    weight.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
