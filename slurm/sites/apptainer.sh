# shellcheck shell=bash
# shellcheck disable=SC2034 # the job script reads what is set here
# Python in an Apptainer image, srun outside of it. Not run by the project's tests.
# Change: the image, and the folders that hold the run, the shards, the model and scratch.

module load apptainer

IMAGE=/project/me/images/shardtune.sif   # with shardtune installed: docs/install.md
# --nv brings the driver in; the run's folders and node-local disks must be bound, the current folder is by itself.
CONTAINER=(apptainer exec --nv --bind "/project/me,/scratch,/dev/shm,${TMPDIR:-/tmp}" "$IMAGE")
PYTHON=python

# Variables of the host are seen inside; a Python from the host's home must not be.
export PYTHONNOUSERSITE=1
export NCCL_SOCKET_IFNAME=ib0
