# shellcheck shell=bash
# shellcheck disable=SC2034 # the job script reads what is set here
# A site profile: what a job needs to know of your cluster. Copy it, change it, and name the copy in run.yaml:
#     slurm: {site: mycluster.sh}
# The job script sources it on the first node of the job, before all else; what it exports reaches the ranks. Here is
# all that it may set, with the values that are taken without it. Run in the tests (as it is, on CPU nodes).

# ---- software: one of module, venv, conda
# module purge && module load gcc cuda
# source /project/me/shardtune/.venv/bin/activate
# PYTHON=python                    # of what was just activated; by default that of `shardtune submit`

# ---- caches: built ops and kernels on the node's own disk, models and datasets where every node sees them
# NODE_CACHE=${TMPDIR:-/tmp}/shardtune-$(id -un)
# export HF_HOME=/project/me/huggingface
# export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

# ---- scratch: a ds_config with "nvme_path": "${NVME}" offloads there
# export NVME=${TMPDIR:-/tmp}

# ---- network: see infiniband.sh and efa.sh
# MASTER_SUFFIX=""                 # appended to a host's name for its address on the fast network, such as i or -ib

# ---- the job of `shardtune submit --eval`: so long it waits in the queue, without a node, for a newer checkpoint
# LOOK_AGAIN_SECONDS=300

# ---- container: see apptainer.sh and pyxis.sh
# CONTAINER=()                     # a command in front of Python
# SRUN_OPTIONS=()                  # options of the srun that starts Python
