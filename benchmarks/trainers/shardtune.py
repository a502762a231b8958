"""A rank of this trainer, which waits for its turn at the start of each step: where `train` starts its clock."""

import sys
from typing import Any

import training.train as trainer
from benchmarks.trainers.turns import Turn
from training.clock import Clock


class TurnClock(Clock):
    """The clock of a step that begins when it is this trainer's turn."""

    turn = Turn()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.turn.wait()
        super().__init__(*arguments, **named)


if __name__ == "__main__":
    trainer.Clock = TurnClock  # type: ignore[attr-defined]
    sys.exit(trainer.main(sys.argv[1:]))
