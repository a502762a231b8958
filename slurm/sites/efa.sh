# shellcheck shell=bash
# shellcheck disable=SC2034 # the job script reads what is set here
# AWS with the Elastic Fabric Adapter (ParallelCluster, HyperPod). Not run by the project's tests.
# Change: the environment; with p4d and older instances keep FI_EFA_USE_DEVICE_RDMA, newer ones need nothing.

# shellcheck source=/dev/null
source /fsx/me/shardtune/.venv/bin/activate
PYTHON=python

# aws-ofi-nccl lets NCCL speak to the adapter; without it NCCL falls back to sockets, at a tenth of the speed.
export LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib:${LD_LIBRARY_PATH:-}
export FI_PROVIDER=efa
export FI_EFA_USE_DEVICE_RDMA=1
export NCCL_SOCKET_IFNAME=^docker,lo,veth
export NCCL_DEBUG=WARN              # INFO once: "NET/OFI Selected provider is efa" must stand there

export NVME=/opt/dlami/nvme         # the instance's own disks, where the image mounts them
NODE_CACHE=$NVME/shardtune-$(id -un)
