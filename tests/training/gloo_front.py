"""The front process of `shardtune train` with the small rank of gloo_worker.py in place of the trainer.

python -m tests.training.gloo_front RUN_FOLDER
"""

import sys
from pathlib import Path

from training.launch import Devices, launch
from training.run_folder import RunFolder

if __name__ == "__main__":
    run = RunFolder(Path(sys.argv[1]))
    with run.hold():
        run.logs.mkdir(exist_ok=True)
        run.config_path.touch()
        devices = Devices(("0", "1"), on_gpu=False)
        sys.exit(launch(run, devices, {"zero_optimization": {}}, ops=(), module="tests.training.gloo_worker"))
