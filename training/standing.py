"""Where a run stands: all that its next step depends on beside the engine's own state."""

from dataclasses import dataclass, field
from typing import Any

from data_tools.shards import Shards
from training.best import Best
from training.checkpoint_files import Progress
from training.config import RunConfig
from training.distributed import World
from training.health import Health
from training.ledger import BEGINNING
from training.monitoring.trend import Trend


@dataclass(frozen=True, slots=True)
class Standing:
    """What is done after `step` steps; kept in the checkpoint of that step.

    consumed, ledger: the packs, and the hash of their rows. owes_evaluation: the run was stopped at a step that it is
    to be evaluated at, before it was.
    """

    best: Best
    step: int = 0
    consumed: int = 0
    ledger: str = BEGINNING
    health: Health = field(default_factory=Health)
    trend: Trend = field(default_factory=Trend)
    owes_evaluation: bool = False

    @classmethod
    def beginning(cls, config: RunConfig) -> "Standing":
        """Return that of a run of which nothing is done."""
        return cls(Best(config.save.best or ""))

    @classmethod
    def of(cls, progress: Progress, config: RunConfig) -> "Standing":
        """Return that of a checkpoint; another metric than the one before is watched from here on."""
        watched = config.save.best or ""
        return cls(
            best=progress.best if progress.best.metric == watched else Best(watched),
            step=progress.step,
            consumed=progress.packs_consumed,
            ledger=progress.ledger,
            health=Health(progress.skipped_steps, progress.skipped_in_a_row),
            trend=progress.trend,
            owes_evaluation=progress.owes_evaluation,
        )

    def as_progress(self, config: RunConfig, shards: Shards, world: World, **engine_facts: Any) -> Progress:
        """Return what a checkpoint says of it; engine_facts: see checkpoint.describe."""
        exhausted = self.health.skipped_in_a_row >= config.max_bad_steps
        return Progress(
            step=self.step,
            packs_consumed=self.consumed,
            shards_fingerprint=shards.fingerprint,
            seed=config.seed,
            world_size=world.size,
            ledger=self.ledger,
            skipped_steps=self.health.skipped_steps,
            # Whoever starts the run again after its end by skipped steps means it to go on.
            skipped_in_a_row=0 if exhausted else self.health.skipped_in_a_row,
            best=self.best,
            trend=self.trend,
            owes_evaluation=self.owes_evaluation,
            settings=config.model_dump(mode="json"),
            **engine_facts,
        )
