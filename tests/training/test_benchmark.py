"""The training benchmark: its turns, its ratios and its arithmetic. What it measures is measured by running it."""

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.trainers.cases import GPU_CASES, GPU_SEQ_LEN, LLAMA_3B, LLAMA_7B, TIERS, TINY
from benchmarks.trainers.project import Shape
from benchmarks.trainers.turns import Racer, Step, TrainerError, race
from tests.conftest import ROOT
from tests.training.harness import environment, load_script

pytestmark = pytest.mark.alone

# A trainer that writes its name each step, and ends after as many steps as it is told.
STEPPER = """
import sys
from benchmarks.trainers.turns import Turn
turn, name, steps, path = Turn(), sys.argv[1], int(sys.argv[2]), sys.argv[3]
for _ in range(steps):
    turn.wait()
    with open(path, "a") as file:
        file.write(name)
"""


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script(ROOT / "benchmarks" / "train.py")


def stepper(name: str, folder: Path, *, steps: int) -> Racer:
    env = environment() | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT), "RANK": "0"}
    command = ["sh", "-c", 'exec "$@" & wait $!', "sh", sys.executable, "-c", STEPPER, name, str(steps)]
    return Racer(name, [*command, str(folder / "order")], env, folder, num_ranks=1)


def test_trainers_take_turns_and_the_first_one_changes(tmp_path: Path) -> None:
    steps: dict[str, list[Step]] = {}
    with ExitStack() as stack:
        racers = [stack.enter_context(stepper(name, tmp_path, steps=9)) for name in "ab"]
        race(racers, steps, rounds=3, deadline=time.monotonic() + 120)
        assert all(racer.host_peak_gib > 0.01 for racer in racers)
    assert (tmp_path / "order").read_text() == "abbaab"
    assert [len(taken) for taken in steps.values()] == [3, 3]
    assert all(step.seconds > 0 for taken in steps.values() for step in taken)


def test_a_trainer_that_ends_is_an_error_and_its_steps_are_kept(tmp_path: Path) -> None:
    steps: dict[str, list[Step]] = {}
    with (
        stepper("short", tmp_path, steps=2) as racer,
        pytest.raises(TrainerError, match=r"short: has ended with exit code 0"),
    ):
        race([racer], steps, rounds=5, deadline=time.monotonic() + 120)
    assert len(steps["short"]) == 1  # the second step began, and never came to its end


@pytest.mark.parametrize("shape", [LLAMA_7B, LLAMA_3B, TINY])
def test_the_number_of_parameters_is_that_of_the_model(shape: Shape, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    shape.write(tmp_path / "model", tmp_path / "tokenizer")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model"))
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.num_parameters


def test_the_large_cases_fit_the_machine_that_they_are_for() -> None:
    assert {case.tier for case in GPU_CASES} == set(TIERS) - {"nvme"}
    for case in GPU_CASES:
        needs = case.memory_gib(GPU_SEQ_LEN)
        assert needs["device"] < 139, case.name
        assert needs["host"] < 128, case.name
        assert needs["nvme"] < 64, case.name
        # Without offload: weights 2, gradients 4, states 12 bytes each; no arithmetic may come to less.
        assert sum(needs.values()) * 2**30 > 14 * case.shape.num_parameters, case.name


def test_ratios_are_taken_round_by_round(benchmark: ModuleType) -> None:
    # The machine is half as fast in the second half: the medians of either trainer's seconds would say nothing.
    ours = [Step(seconds, 1.0) for seconds in (9.0, 1.0, 1.0, 2.0, 2.0)]
    other = [Step(seconds, 1.0) for seconds in (1.0, 1.1, 1.1, 2.2, 2.2)]
    found = benchmark.ratios(ours, other, skip=1)
    assert found["seconds"]["median"] == pytest.approx(1.1)
    assert found["seconds"]["high"] - found["seconds"]["low"] == pytest.approx(0)
    assert found["cpu_seconds"]["median"] == 1


def test_list_names_every_case_and_runs_nothing(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.main(["--gpu", "--list"])
    printed = capsys.readouterr().out
    assert all(case.name in printed for case in GPU_CASES if case.module == "shardtune")
    assert "124.4" in printed  # 6.74 G parameters x 18 bytes, and what a step takes
