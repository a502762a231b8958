"""Which evaluation of a run was the best by `save.best`, and whether it is long ago; needs no torch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from data_tools.errors import RunError
from data_tools.settings import did_you_mean

if TYPE_CHECKING:
    from data_tools.shard_index import TaskInfo
    from data_tools.shards import Shards
    from training.config import RunConfig

MEASURES = ("loss", "token_accuracy")
KINDS = ("family", "source", "category")


def task_groups(split_name: str, tasks: Sequence["TaskInfo"]) -> dict[str, list[int]]:
    """Return what a split is evaluated by: the beginning of a metric's name, and the tasks that it is the mean of.

    Example: {"validation/": [0, 1], "validation_by_family/multi_task_": [0], …}; `loss` or `token_accuracy` follows.
    """
    groups = {f"{split_name}/": list(range(len(tasks)))}
    for kind in KINDS:
        for index, task in enumerate(tasks):
            if name := getattr(task, kind):
                groups.setdefault(f"{split_name}_by_{kind}/{name}_", []).append(index)
    return groups


def best_mistakes(config: "RunConfig", shards: "Shards", splits: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with `save.best` and `evaluate.patience`; `splits` are those that are evaluated."""
    wanted = config.save.best
    if wanted is None:
        if config.evaluate.patience is not None:
            yield (
                f"evaluate.patience: needs a metric to watch: got {config.evaluate.patience} without save.best; "
                "expected one, such as save.best: validation/loss"
            )
        return
    names = [prefix + measure for split in splits for prefix in task_groups(split, shards.tasks)
             for measure in MEASURES]  # fmt: skip
    if wanted in names:
        return
    split = wanted.partition("/")[0].partition("_by_")[0]
    if not splits:
        yield f"save.best: got {wanted!r} and no split is evaluated; expected one in evaluate.splits"
    elif split in shards.splits and split not in splits:
        yield (
            f"save.best: got {wanted!r} and {split} is not evaluated; expected it in evaluate.splits, which are "
            f"{', '.join(splits)}"
        )
    else:
        plain = [name for name in names if "_by_" not in name]
        yield (
            f"save.best: no such metric of the evaluation: got {wanted!r}; expected one of {', '.join(plain)}, or one "
            f"by {', '.join(KINDS)}{did_you_mean(wanted, names)}"
        )


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far by `metric` (empty: none is watched), and how many there were since.

    value: None if there was none yet whose value is finite. step: of that evaluation, and of its checkpoint.
    """

    metric: str = ""
    step: int = 0
    value: float | None = None
    evaluations_since: int = 0

    def after(self, step: int, metrics: Mapping[str, float]) -> "Best":
        """Return the best after one more evaluation. Raises RunError if it does not give the metric."""
        if not self.metric:
            return self
        if self.metric not in metrics:
            raise RunError(
                f"save.best: the evaluation gives no {self.metric}: none of its targets is in the packs that are "
                f"evaluated; expected one of {', '.join(sorted(metrics))}; or set evaluate.max_packs: null"
            )
        value = metrics[self.metric]
        if math.isfinite(value) and (self.value is None or self._is_better(value, self.value)):
            return Best(self.metric, step, value)
        return replace(self, evaluations_since=self.evaluations_since + 1)

    def _is_better(self, value: float, than: float) -> bool:
        return value > than if self.metric.endswith("accuracy") else value < than

    def is_stale(self, patience: int | None) -> bool:
        """Return whether as many evaluations as `patience` have not improved it."""
        return patience is not None and self.evaluations_since >= patience

    def describe(self) -> str:
        """Return for people why a run ends early."""
        since = f"has not improved in {self.evaluations_since} evaluations"
        if self.value is None:
            return f"{self.metric} {since}: it never was finite"
        return f"{self.metric} {since} since step {self.step}, where it was {self.value:.6g}"
