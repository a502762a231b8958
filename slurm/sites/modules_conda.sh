# shellcheck shell=bash
# shellcheck disable=SC2034 # the job script reads what is set here
# A cluster with environment modules, Python from conda. Not run by the project's tests.
# Change: the modules (`module avail`), the place of conda, the name of the environment.

module purge
module load gcc/12 cuda/12.4

# `conda activate` needs its shell function, which a batch shell does not have; it also reads unset variables.
set +u
# shellcheck source=/dev/null
source /project/me/miniforge3/etc/profile.d/conda.sh
conda activate shardtune
set -u
PYTHON=python

# DeepSpeed compiles its ops with this toolkit: the same CUDA version that torch was built with.
export CUDA_HOME=${CUDA_HOME:-$CONDA_PREFIX}
export HF_HOME=/project/me/huggingface
