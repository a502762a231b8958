"""The dashboard in TensorBoard's tabs Custom Scalars and HParams: charts by question, and runs by their settings.

docs/monitoring.md says what each chart answers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from training.config import RunConfig

SPLITS = "(validation|unseen_tasks|test)"
# Group, then chart, then what is drawn in it: names of metrics, as regular expressions. A chart of which a run has
# no metric stays empty.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "1 quality": {
        "loss": ("train/loss", f"{SPLITS}/loss"),
        "loss by family": (f"{SPLITS}_by_family/.*_loss",),
        "loss by source": (f"{SPLITS}_by_source/.*_loss",),
        "loss by task group": (f"{SPLITS}_by_category/.*_loss",),
        "token accuracy": (f"{SPLITS}/token_accuracy",),
        "token accuracy by family": (f"{SPLITS}_by_family/.*_token_accuracy",),
        "exact answers (shardtune eval)": ("eval_[a-z_]+/exact_match",),
    },
    "2 speed": {
        "tokens per second": ("speed/tokens_per_second", "speed/target_tokens_per_second"),
        "seconds of a step, by part": (
            *("time/step_seconds", "time/forward_seconds", "time/backward_seconds"),
            *("time/optimizer_seconds", "time/data_seconds", "time/save_seconds"),
        ),
        "waiting for data": ("time/data_seconds",),
        "MFU": ("speed/mfu",),
        "TFLOP/s": ("speed/teraflops_per_second",),
    },
    "3 memory": {
        "device (GiB)": ("memory/device_.*",),
        "host (GiB)": ("memory/host_gib", "memory/offload_.*"),
    },
    "4 health": {
        "gradient norm": ("train/grad_norm",),
        "share of clipped steps": ("health/clip_share",),
        "skipped steps and loss spikes": ("health/skipped_steps", "health/loss_spikes"),
        "slowest rank": ("health/slowest_rank",),
        "slowest and fastest rank (s)": ("time/slowest_rank_seconds", "time/fastest_rank_seconds"),
        "learning rate": ("train/lr",),
        "loss scale": ("health/loss_scale",),
    },
    "5 data": {
        "share seen by source": ("data_by_source/.*_share",),
        "epochs by source": ("data_by_source/.*_epochs",),
        "pack fill": ("data/pack_fill",),
        "epochs": ("train/epoch",),
    },
}
# Settings in which runs are compared, as in run.yaml.
COMPARED = (
    *("model", "shards", "precision", "epochs", "steps", "seed"),
    *("optim.name", "optim.lr", "optim.schedule", "optim.warmup", "optim.weight_decay", "optim.clip"),
    *("batch.packs_per_step", "batch.micro_packs", "tuning.method", "tuning.rank"),
)
FINAL_METRICS = (
    *("train/loss", "speed/tokens_per_second", "memory/host_gib", "memory/device_peak_gib"),
    *("eval_test/exact_match", "eval_test/rougeL"),  # of `shardtune eval`, where they have been added
)


def layout() -> dict[str, dict[str, list[Any]]]:
    """Return the charts as SummaryWriter.add_custom_scalars takes them; names are matched as a whole."""
    return {
        group: {chart: ["Multiline", [f"^{name}$" for name in names]] for chart, names in charts.items()}
        for group, charts in CHARTS.items()
    }


def compared_settings(config: "RunConfig") -> dict[str, str | float | bool]:
    """Return the settings that runs are compared by; of a path its last part, and nothing that is not set."""
    from training.run_folder import flatten

    settings = flatten(config.model_dump(mode="json"))
    found = {key: settings[key] for key in COMPARED if settings.get(key) is not None}
    for key in ("model", "shards"):
        found[key] = str(found[key]).rstrip("/").rpartition("/")[2]
    return found


def write_dashboard(board: "SummaryWriter", config: "RunConfig", splits: Sequence[str]) -> None:
    """Write charts and settings at the start of a run; the tab HParams shows the newest value of each final metric."""
    from torch.utils.tensorboard.summary import hparams

    board.add_custom_scalars(layout())
    names = [*FINAL_METRICS, *(f"{split}/{kind}" for split in splits for kind in ("loss", "token_accuracy"))]
    experiment, start, _ = hparams(compared_settings(config), dict.fromkeys(names, 0.0))
    board.file_writer.add_summary(experiment)
    board.file_writer.add_summary(start)
