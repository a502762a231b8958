"""`shardtune selftest`: what must not change a run's numbers is changed, on the user's own model and shards.

A few steps are trained again and again in a temporary run folder: documents alone or in packs, other micro-batches,
another number of ranks, other offload, from a checkpoint. The ranks' part is selftest_worker.py; here the launches are
planned and the numbers compared.
"""

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.errors import RunError
from training.config import BatchConfig, EvaluateConfig, LogConfig, RunConfig, SaveConfig, accumulation
from training.ds_config import offload_device, read_ds_file
from training.launch import Devices, check, find_devices, launch, settle, visible_gpus
from training.ops import needed_ops
from training.run_folder import RunFolder
from training.supervise import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED

logger = logging.getLogger(__name__)

WORKER = "training.selftest_worker"
NUM_STEPS = 4
FAILED = "FAILED"
CAPTION = (
    "2 x 1 x 2: ranks (4 by 2: two to a row) x packs of a micro-batch x accumulation. Losses, norms and logits: "
    "relative. Loss of a target: in nats. Weights: mean difference, in units of learning rate x steps."
)
SAVED_STEP = 2  # where the run is broken, to go on from its checkpoint
# What the ranks of the run itself do, in one launch: its steps, and those in other ways.
FIRST_CASES: tuple[Mapping[str, Any], ...] = (
    {"name": "run", "micro_packs": 1, "reference": True},
    {"name": "resume", "micro_packs": 1, "from_step": SAVED_STEP},
    {"name": "micro", "micro_packs": 2},
    {"name": "offload", "micro_packs": 1, "other_offload": True},
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that rounding alone makes.

    loss, norm: relative, of the losses and gradient norms of the steps. weights: mean difference in units of
    learning rate x steps, which is about as far as AdamW moves a weight. token: of one target's loss, in nats.
    logits: relative to the largest one.

    fp32: the same sums in another order. bf16: 8 bits for each product, rounded at other places for other shapes.
    """

    loss: float
    norm: float
    weights: float
    token: float
    logits: float


TOLERANCES = {
    "fp32": Tolerance(loss=1e-4, norm=1e-3, weights=0.02, token=1e-3, logits=1e-4),
    "fp16": Tolerance(loss=5e-3, norm=1e-2, weights=0.1, token=5e-2, logits=1e-2),
    "bf16": Tolerance(loss=2e-2, norm=5e-2, weights=0.3, token=0.2, logits=5e-2),
}
EXACT = Tolerance(loss=0.0, norm=0.0, weights=0.0, token=0.0, logits=0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what was compared, by which measure; `not_run` says why it was not."""

    name: str
    measure: str = ""
    difference: float = 0.0
    tolerance: float = 0.0
    not_run: str = ""

    @property
    def verdict(self) -> str:
        """Return ok, FAILED or not run; a difference that is not a number has failed."""
        if self.not_run:
            return "not run"
        return "ok" if self.difference <= self.tolerance else FAILED


def selftest(config: RunConfig) -> int:
    """Run the suite, print its table, and return 0 if nothing failed, else 1; 75 if it was stopped.

    Works in a folder of its own below `runs`, and removes it. Raises SettingsError, ShardError or RunError for a run
    that could not be trained either.
    """
    devices = find_devices(config)
    check(settle(config, devices), devices)
    other, reason = other_devices(devices)
    with _temporary_folder(config.runs) as folder:
        small = small_run(config, folder, num_ranks=devices.num_ranks)
        code, results = _launch(small, devices, FIRST_CASES)
        if code != EXIT_DONE:
            return code
        if other is not None:
            code, more = _launch(to_other_ranks(small, other), other, [{"name": "ranks", "micro_packs": 1}])
            if code == EXIT_STOPPED:
                return code
            results |= more
        rows = compare(results, small, devices, other, reason)
        rows.append(_compare_export(small, TOLERANCES[config.precision]))
    print_rows(rows, f"selftest of {config.model.name} on {config.shards.name}, {config.precision}")
    return EXIT_FAILED if any(row.verdict == FAILED for row in rows) else EXIT_DONE


def small_run(config: RunConfig, runs: Path, *, num_ranks: int) -> RunConfig:
    """Return the run that is trained: a few steps of two rows for each rank, at the run's full learning rate.

    Ranks that share a row have two together.
    """
    to_a_row = config.batch.sequence_parallel
    return config.model_copy(
        update={
            "name": "selftest",
            "runs": runs,
            "epochs": None,
            "steps": NUM_STEPS,
            "batch": BatchConfig(packs_per_step=2 * num_ranks // to_a_row, sequence_parallel=to_a_row),
            "optim": config.optim.model_copy(update={"warmup": 0.0, "schedule": "constant"}),
            # Their random numbers belong to a micro-batch, as those of dropout.
            "loss": config.loss.model_copy(update={"neftune": 0.0, "adversarial": None}),
            "save": SaveConfig(every_steps=SAVED_STEP, keep=NUM_STEPS),
            "evaluate": EvaluateConfig(splits=()),
            "log": LogConfig(tensorboard=False),
        }
    )


def to_other_ranks(config: RunConfig, other: Devices) -> RunConfig:
    """Return the same run on other ranks, of which as many share a row as can."""
    to_a_row = math.gcd(config.batch.sequence_parallel, other.num_ranks)
    batch = config.batch.model_copy(update={"sequence_parallel": to_a_row})
    return config.model_copy(update={"batch": batch})


def shape(config: RunConfig, num_ranks: int, *, micro_packs: int = 1) -> str:
    """Return what the table calls a way to take a step, such as 2 x 1 x 2 or (4 by 2) x 1 x 2."""
    to_a_row = config.batch.sequence_parallel
    batch = config.batch.model_copy(update={"micro_packs": micro_packs})
    accumulated = accumulation(config.model_copy(update={"batch": batch}), num_ranks)
    ranks = f"{num_ranks}" if to_a_row == 1 else f"({num_ranks} by {to_a_row})"
    return f"{ranks} x {micro_packs} x {accumulated}"


def other_devices(devices: Devices) -> tuple[Devices | None, str]:
    """Return half of the ranks (all but one if they are odd in number), twice the one; or why there are none."""
    count = devices.num_ranks
    if count > 1:
        fewer = count // 2 if count % 2 == 0 else 1
        return Devices(devices.ids[:fewer], on_gpu=devices.on_gpu), ""
    if not devices.on_gpu:
        return Devices(("0", "1"), on_gpu=False), ""
    gpus = visible_gpus()
    if len(gpus) > 1:
        return Devices(gpus[:2], on_gpu=True), ""
    return None, "there is one GPU here"


def other_offload(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return a DeepSpeed file's keys with offload taken out; with everything in CPU memory if they have none."""
    zero = dict(base["zero_optimization"])
    has_any = any(offload_device(base, what) != "none" for what in ("optimizer", "param"))
    for section in ("offload_optimizer", "offload_param"):
        zero.pop(section, None)
        if not has_any:
            zero[section] = {"device": "cpu"}
    return {**base, "zero_optimization": zero}


def too_little_memory(
    num_parameters: int, *, precision: str, num_ranks: int, ranks_here: int, available_bytes: int
) -> str:
    """Return why training without offload does not fit on this node; empty if it does.

    Without offload each rank holds its part of weights, fp32 gradients, master weights and two moments: 4 + 4 + 4 + 8
    bytes for each parameter, 2 less in bf16; and a fifth more for what is gathered and computed.
    """
    each = (20 if precision == "fp32" else 18) * 1.2
    needed = each * num_parameters / num_ranks * ranks_here
    if needed <= available_bytes:
        return ""
    return (
        f"without offload it takes about {needed / 2**30:.0f} GiB; free are {available_bytes / 2**30:.0f} GiB"
    )


@contextmanager
def _temporary_folder(runs: Path) -> Iterator[Path]:
    """Make a folder below `runs`, on the disk where a run's checkpoints would lie; leave nothing behind."""
    missing = [path for path in (runs, *runs.parents) if not path.exists()]
    try:
        runs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".selftest-", dir=runs))
    except OSError as error:
        raise RunError(
            f"runs: {runs}: cannot be written to: {error.strerror}; choose another place"
        ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in missing:  # the innermost first
            if not any(path.iterdir()):
                path.rmdir()


def _launch(
    config: RunConfig, devices: Devices, cases: Sequence[Mapping[str, Any]]
) -> tuple[int, dict[str, Any]]:
    """Start the ranks once for some cases; return the exit code and what each case found, by name."""
    shards, ds_config = check(config, devices)
    run = RunFolder(config.run_folder)
    with run.hold():
        run.prepare(config, ds_config, shards_fingerprint=shards.fingerprint)
        (run.path / "cases.json").write_text(json.dumps(cases))
        results = run.path / "results.jsonl"
        results.unlink(missing_ok=True)
        ops = list(needed_ops(ds_config, on_gpu=devices.on_gpu))
        if any(case.get("other_offload") for case in cases):
            ops += needed_ops(other_offload(read_ds_file(config.deepspeed)), on_gpu=devices.on_gpu)
        code = launch(run, devices, ds_config, ops=list(dict.fromkeys(ops)), module=WORKER)
    lines = results.read_text().splitlines() if results.exists() else []
    return code, {case["name"]: case for case in map(json.loads, lines)}


def compare(
    results: Mapping[str, Any], config: RunConfig, devices: Devices, other: Devices | None, reason: str
) -> list[Row]:
    """Return the table's rows, but for the export's."""
    tolerance = TOLERANCES[config.precision]
    ranks = devices.num_ranks
    base = results["run"]
    # On GPUs some kernels add up in no fixed order, and not even the same run twice gives the same bits.
    resumed = tolerance if devices.on_gpu else EXACT
    rows = [Row("packed = unpacked", "loss of a target", base["unpacked"], tolerance.token)]
    first = shape(config, ranks)
    name = f"{first} = {shape(config, ranks, micro_packs=2)}"
    rows += compare_runs(name, base, results["micro"], tolerance)
    if other is None:
        rows.append(Row("another number of ranks", not_run=reason))
    else:
        name = f"{first} = {shape(to_other_ranks(config, other), other.num_ranks)}"
        # Nothing was found where the ranks have failed, which the launch has told.
        failed = {"losses": [math.nan], "grad_norms": [math.nan], "weights": math.nan}
        rows += compare_runs(name, base, results.get("ranks", failed), tolerance)
    rows += compare_runs("offload on = off", base, results["offload"], tolerance)
    rows += compare_runs("save + load = unbroken", base, results["resume"], resumed)
    return rows


def compare_runs(
    name: str, base: Mapping[str, Any], other: Mapping[str, Any], tolerance: Tolerance
) -> list[Row]:
    """Return the rows for two ways to train the same steps; of a resumed run the last ones are compared."""
    if other.get("not_run"):
        return [Row(name, not_run=other["not_run"])]
    return [
        Row(name, "loss", furthest(base["losses"], other["losses"]), tolerance.loss),
        Row(name, "gradient norm", furthest(base["grad_norms"], other["grad_norms"]), tolerance.norm),
        Row(name, "weights", other["weights"], tolerance.weights),
    ]


def furthest(expected: Sequence[float], got: Sequence[float]) -> float:
    """Return the largest relative difference between the last `len(got)` numbers and these."""
    pairs = zip(expected[-len(got) :], got, strict=True)
    differences = [abs(a - b) / max(abs(a), 1e-12) for a, b in pairs]
    # max() would pass over a number that is none.
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _compare_export(config: RunConfig, tolerance: Tolerance) -> Row:
    """Export the run's last checkpoint, load it with transformers, and compare with the engine's logits."""
    import torch
    from safetensors.torch import load_file

    from training.export import export_run
    from training.model_weights import DTYPES
    from training.tuning.load import load_exported

    logger.info("export: loading it with transformers, on the CPU")
    exported = export_run(config.run_folder, None, config.runs / "exported")
    model = load_exported(exported, DTYPES[config.precision])
    kept = load_file(config.run_folder / "logits.safetensors")
    with torch.no_grad():
        logits = model(input_ids=kept["input_ids"][None], use_cache=False).logits[0].float()
    logits = logits[-len(kept["input_ids"]) :]  # without those of virtual tokens
    difference = (logits - kept["logits"]).abs().max() / kept["logits"].abs().max()
    return Row("export = engine", "logits", float(difference), tolerance.logits)


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=CAPTION)
    for header in ("what must be the same", "measured by"):
        table.add_column(header)
    for header in ("largest difference", "tolerance"):
        table.add_column(header, justify="right")
    table.add_column("")
    before = ""
    for row in rows:
        name = "" if row.name == before else row.name
        before = row.name
        if row.not_run:
            table.add_row(name, row.not_run, "", "", row.verdict)
        else:
            table.add_row(name, row.measure, f"{row.difference:.2g}", f"{row.tolerance:.2g}", row.verdict)
    Console().print(table)
