"""Whether a run that is done has steps left, told from its files without torch."""

import json
from typing import TYPE_CHECKING

from training.config import RunConfig, derive_steps
from training.run_folder import RunFolder

if TYPE_CHECKING:
    from data_tools.shards import Shards


def nothing_left(config: RunConfig, shards: "Shards") -> str | None:
    """Return what there is to say to someone who starts a run whose steps are all done; None if there is more to do."""
    run = RunFolder(config.run_folder)
    newest = run.newest_checkpoint
    if run.state != "done" or newest is None:
        return None
    try:
        kept = json.loads((newest / "progress.json").read_text(encoding="utf-8"))
        step, consumed, owes = kept["step"], kept["packs_consumed"], kept.get("owes_evaluation")
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the checkpoint's reader says what is wrong
    num_packs = shards.splits["train"].num_packs
    num_steps = derive_steps(config, num_packs, steps_done=step, consumed=consumed)
    if owes or step < num_steps:
        return None
    return f"{run.path}: nothing left to do: {step} steps are done of {num_steps}; set more epochs or steps to go on"
