# shellcheck shell=bash
# shellcheck disable=SC2034 # the job script reads what is set here
# Nodes with InfiniBand. Not run by the project's tests.
# Change: the names of adapters (`ibstat -l`) and of the interface for the rendezvous (`ip -brief address`).

# shellcheck source=/dev/null
source /project/me/shardtune/.venv/bin/activate
PYTHON=python

export NCCL_IB_HCA=mlx5_0,mlx5_1    # the adapters beside the GPUs, not those of the storage network
export NCCL_SOCKET_IFNAME=ib0       # where NCCL's ranks find each other; the wrong one hangs at the start
export GLOO_SOCKET_IFNAME=ib0
MASTER_SUFFIX=i                     # node0001i is the address on InfiniBand of node0001; "" where names are the same
export NCCL_DEBUG=WARN              # INFO once: "NET/IB" must stand there, and not "NET/Socket"

# Pinned memory and InfiniBand both lock pages: what the login shell's limit was does not suffice.
ulimit -l unlimited || true
