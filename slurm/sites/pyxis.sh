# shellcheck shell=bash
# shellcheck disable=SC2034 # the job script reads what is set here
# Python in a container that Slurm itself starts (pyxis with enroot). Not run by the project's tests.
# Change: the image, and the folders that hold the run, the shards, the model and scratch.

IMAGE=/project/me/images/shardtune.sqsh  # enroot import docker://…, with shardtune installed: docs/install.md
# These go to srun and not to sbatch: in a container the batch script would have no srun.
SRUN_OPTIONS=(
  --container-image="$IMAGE"
  --container-mounts="/project/me:/project/me,/scratch:/scratch,/dev/shm:/dev/shm"
  --no-container-mount-home
)
PYTHON=python

# pyxis passes the environment on; what the image sets itself wins, unless it is named here.
SRUN_OPTIONS+=("--container-env=HF_HUB_OFFLINE,HF_HOME,OMP_NUM_THREADS")
