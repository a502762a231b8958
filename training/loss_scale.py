"""The loss scale of fp16: what the loss is multiplied by, so that small gradients do not vanish in 16 bits.

DeepSpeed multiplies the loss and divides the gradient; here is only which scale a step has. The dynamic scale of
DeepSpeed 0.19.8 itself grows between the two: in such a step the gradient comes out as half of what it is.
"""

from dataclasses import dataclass
from typing import Any

FIRST, LEAST = 2.0**16, 1.0
GROWS_AFTER = 2000  # steps


@dataclass(slots=True)
class LossScale:
    """The scale of the next step, and the steps without an overflow since it last changed.

    dynamic: halved when a gradient overflows, doubled after GROWS_AFTER steps without; else it stays. The numbers are
    those of torch.amp.GradScaler.
    """

    scale: float = 1.0
    dynamic: bool = False
    clean_steps: int = 0

    @classmethod
    def of(cls, setting: "str | float | None") -> "LossScale":
        """Return the first one of a run with this `loss_scale`; null is no scale at all."""
        if setting == "dynamic":
            return cls(FIRST, dynamic=True)
        return cls(float(setting or 1.0))

    def settle(self, optimizer: Any, *, overflowed: bool) -> bool:
        """Take note of a step; return whether it was lost to a scale that is lower now.

        optimizer: DeepSpeed's, whose scale is set. An overflow that no lower scale can mend is the step's own fault.
        """
        if not self.dynamic:
            return False
        before = self.scale
        self.clean_steps = 0 if overflowed else self.clean_steps + 1
        if overflowed:
            self.scale = max(LEAST, before / 2)
        elif self.clean_steps == GROWS_AFTER:
            self.scale, self.clean_steps = before * 2, 0
        optimizer.loss_scale = self.scale
        return self.scale < before

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps of it; nothing of one that stays."""
        return {"scale": self.scale, "clean_steps": self.clean_steps} if self.dynamic else {}

    def restore(self, state: dict[str, float], optimizer: Any) -> None:
        """Go on from a checkpoint's `state`."""
        if self.dynamic and state:
            self.scale, self.clean_steps = float(state["scale"]), int(state["clean_steps"])
            optimizer.loss_scale = self.scale
