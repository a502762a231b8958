"""Loss and token accuracy on a split during training, in total, by family, by source and by category of tasks."""

import deepspeed
import torch

from data_tools.shards import Shards
from training.best import task_groups
from training.config import RunConfig, evaluation_splits
from training.data import eval_shares
from training.distributed import World, all_sum
from training.feed import Ahead, make_batches
from training.heartbeat import Place
from training.sequence_parallel import cut_row


def evaluate(
    engine: deepspeed.DeepSpeedEngine,
    shards: Shards,
    config: RunConfig,
    world: World,
    place: Place,
) -> dict[str, float]:
    """Return the metrics of all splits that the run is evaluated on; every rank must call it, and gets the same."""
    metrics: dict[str, float] = {}
    for name in evaluation_splits(config, shards):
        metrics |= evaluate_split(
            engine,
            shards,
            name,
            world,
            max_packs=config.evaluate.max_packs,
            micro_packs=config.batch.packs_per_forward,
            place=place,
        )
    return metrics


@torch.no_grad()
def evaluate_split(
    engine: deepspeed.DeepSpeedEngine,
    shards: Shards,
    split_name: str,
    world: World,
    *,
    max_packs: int | None,
    micro_packs: int,
    place: Place | None = None,
) -> dict[str, float]:
    """Return the metrics of one split; every rank must call it, and gets the same.

    Each target token weighs the same. Keys: `validation/loss`, `validation/token_accuracy`, and the same by family,
    source and category: `validation_by_family/multi_task_loss`, `validation_by_source/alpaca_loss`, ….
    """
    split, place = shards.splits[split_name], place or Place()
    num_packs = min(split.num_packs, max_packs or split.num_packs)
    shares = eval_shares(num_packs, micro_packs=micro_packs, rank=world.data_rank, world_size=world.data_size)
    # For each task: Σ loss, right tokens, tokens; they stay on the device until all is done.
    sums = torch.zeros(len(shards.tasks), 3, dtype=torch.float64, device=engine.device)
    engine.eval()
    with Ahead(make_batches(split, shares)) as rows:
        for row in rows:
            place.at("evaluation")
            batch = cut_row(row, rank=world.sequence_rank, size=world.sequence_size).to(engine.device)
            losses, hits = engine(batch, output="token_losses")
            values = torch.stack(
                [losses.double(), hits.double(), torch.ones_like(losses, dtype=torch.float64)], 1
            )
            sums.index_add_(0, batch.label_tasks, values)
    engine.train()
    return _as_metrics(split_name, shards, all_sum(sums).cpu())


def _as_metrics(split_name: str, shards: Shards, sums: torch.Tensor) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for prefix, tasks in task_groups(split_name, shards.tasks).items():
        metrics |= _means(prefix, sums[tasks].sum(0))
    return metrics


def _means(prefix: str, sums: torch.Tensor) -> dict[str, float]:
    loss, hits, count = sums.tolist()
    return {f"{prefix}loss": loss / count, f"{prefix}token_accuracy": hits / count} if count else {}
