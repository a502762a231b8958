"""What TensorBoard is told of a run, read back with TensorBoard's own reader."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.training.small_run import make_small_run, write_run
from training.config import RunConfig, load_run_config
from training.metrics import MetricsLog
from training.monitoring.dashboard import CHARTS, compared_settings

# What a run of 2 CPU ranks with offload logs, and what `shardtune eval` adds.
METRICS = """
train/loss train/lr train/grad_norm train/epoch health/skipped_steps health/clip_share health/loss_spikes
health/slowest_rank time/slowest_rank_seconds time/fastest_rank_seconds data_by_source/a_share data_by_source/a_epochs
data/pack_fill time/step_seconds time/data_seconds time/forward_seconds time/backward_seconds time/optimizer_seconds
time/save_seconds speed/tokens_per_second speed/target_tokens_per_second speed/teraflops_per_second speed/mfu
memory/host_gib memory/offload_gib memory/device_peak_gib health/loss_scale validation/loss validation/token_accuracy
validation_by_family/multi_task_loss validation_by_family/multi_task_token_accuracy validation_by_source/a_loss
unseen_tasks_by_category/Question Answering_loss eval_test/exact_match
""".replace("\n", " ")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = make_small_run(tmp_path_factory.mktemp("board") / "made").parent
    return load_run_config(write_run(folder, name="board", optim={"lr": 2e-3}))


def logged(folder: Path, config: RunConfig) -> EventAccumulator:
    log = MetricsLog(folder, resume_step=0, tensorboard=True)
    log.describe(config, ["validation"])
    log.write(1, {"train/loss": 1.5})
    log.close()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_reads_the_layout_back(tmp_path: Path, config: RunConfig) -> None:
    events = logged(tmp_path, config)
    text = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(text)
    assert [category.title for category in layout.category] == list(CHARTS)
    assert [len(category.chart) for category in layout.category] == [
        len(charts) for charts in CHARTS.values()
    ]
    assert events.Scalars("train/loss")[0].value == 1.5


def test_every_chart_draws_something_that_is_logged_and_nothing_is_left_out() -> None:
    names = re.split(r" +(?!Answering)", METRICS.strip())
    patterns = [re.compile(name) for charts in CHARTS.values() for chart in charts.values() for name in chart]
    assert [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)] == []
    for charts in CHARTS.values():
        for chart in charts.values():
            assert any(re.fullmatch(pattern, name) for pattern in chart for name in names), chart


def test_a_chart_by_family_takes_no_other_measure() -> None:
    (pattern,) = CHARTS["1 quality"]["loss by family"]
    assert re.fullmatch(pattern, "validation_by_family/multi_task_loss")
    assert not re.fullmatch(pattern, "validation_by_family/multi_task_token_accuracy")
    assert not re.fullmatch(pattern, "validation_by_source/alpaca_loss")


def test_runs_are_compared_by_their_settings(tmp_path: Path, config: RunConfig) -> None:
    settings = compared_settings(config)
    assert settings["optim.lr"] == 2e-3
    assert settings["model"] == config.model.name
    assert "/" not in str(settings["shards"])
    metadata = logged(tmp_path, config).SummaryMetadata("_hparams_/session_start_info")
    data = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    assert data.session_start_info.hparams["optim.lr"].number_value == 2e-3
    experiment = logged(tmp_path, config).SummaryMetadata("_hparams_/experiment")
    described = plugin_data_pb2.HParamsPluginData.FromString(experiment.plugin_data.content).experiment
    assert "validation/loss" in [metric.name.tag for metric in described.metric_infos]
