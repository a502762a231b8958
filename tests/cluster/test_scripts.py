"""The job scripts and site profiles as shell, and the text that `shardtune submit` makes of them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.small_run import make_small_run
from training.cluster.script import Request, sbatch_options, train_script
from training.config import RunConfig, load_run_config

pytestmark = pytest.mark.alone

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm" / "sites").glob("*.sh")])


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_run(tmp_path_factory.mktemp("scripts") / "project")


def load(run_yaml: Path, *overrides: str) -> RunConfig:
    return load_run_config(run_yaml, ["slurm.cpus_per_task=8", "slurm.gpus=null", *overrides])


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs the Debian package shellcheck")
    assert len(SCRIPTS) > 6
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_job_asks_for_what_run_yaml_says(run_yaml: Path) -> None:
    config = load(
        run_yaml,
        "slurm.nodes=4",
        "slurm.spare_nodes=1",
        'slurm.time="1-0"',
        "slurm.account=me",
        "slurm.partition=long",
        "slurm.qos=high",
        "slurm.constraint=a100&nvme",
        "slurm.gpus=gpus-per-node",
        "slurm.gpu_type=a100",
        "slurm.mem=0",
        "slurm.mail=me@example.org",
        "slurm.options=[--exclusive, --nice=6]",
    )
    request = Request(ranks_per_node=8, signal_seconds=600, exclude=("n3", "n4"))
    options = list(sbatch_options(config, request))
    assert options == [
        "--job-name=small",
        f"--output={config.run_folder}/logs/job-%j.out",
        "--open-mode=append",
        "--nodes=5",
        "--ntasks-per-node=8",
        "--gpus-per-node=a100:8",
        "--cpus-per-task=8",
        "--mem=0",
        "--time=1-0",
        "--account=me",
        "--partition=long",
        "--qos=high",
        "--constraint='a100&nvme'",
        "--signal=B:USR1@600",
        "--requeue",
        "--dependency=singleton",
        "--no-kill",
        "--exclude=n3,n4",
        "--mail-user=me@example.org",
        "--mail-type=END,FAIL,REQUEUE",
        "--exclusive",
        "--nice=6",
    ]


@pytest.mark.parametrize(
    ("gpu_type", "option", "expected"),
    [
        ("null", "gpus-per-node", "--gpus-per-node=2"),
        ("null", "gres", "--gres=gpu:2"),
        ("h100", "gres", "--gres=gpu:h100:2"),
    ],
)
def test_forms_of_asking_for_gpus(run_yaml: Path, gpu_type: str, option: str, expected: str) -> None:
    config = load(run_yaml, f"slurm.gpu_type={gpu_type}", f"slurm.gpus={option}")
    assert [text for text in sbatch_options(config, Request(2, 60)) if "gpu" in text] == [expected]
    assert not any("gpu" in text for text in sbatch_options(load(run_yaml), Request(2, 60)))


def test_the_script_is_whole_and_its_folder_may_have_spaces(run_yaml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my runs; rm -rf nothing"
    config = load(run_yaml, f"runs={folder}", "slurm.site=slurm/sites/example.sh", "slurm.max_restarts=3")
    text = train_script(config, Request(2, 60), python="/opt/my python/bin/python")
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=small\n")
    assert f"#SBATCH --output='{folder}/small/logs/job-%j.out'\n" in text
    assert f"\nRUN='{folder}/small'\nPYTHON='/opt/my python/bin/python'\nSITE={ROOT}/slurm" in text
    assert "\nMAX_RESTARTS=3\n" in text
    # What every run shares is as it stands in slurm/, and nothing of the example above it is left.
    assert (ROOT / "slurm" / "train.sbatch").read_text().endswith(text[text.index("# ====") :])
    assert text.count("#SBATCH --nodes=") == 1
    (tmp_path / "job.sh").write_text(text)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
