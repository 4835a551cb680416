# settings.sh: what the scripts of the test cluster share; sourced by them, sets variables only.
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
STEAD_CACHE=${STEAD_CACHE:-$HOME/.cache/stead}
K8S_DIR=${K8S_DIR:-$("$here/build.sh" path)}          # binaries, images (see build.sh)
RUN=${STEAD_CLUSTER_RUN:-$STEAD_CACHE/cluster/run}    # state of the running cluster
NODES=${NODES:-1}                                     # node1 is also the control plane; more are workers
HOST_API=${HOST_API:-127.0.0.1:6443}                  # where this machine reaches the API
PROXY_MODE=${PROXY_MODE:-nftables}                    # or iptables
# Node i (from 1): its name, address (a veth into a switch namespace) and pods.
I=${I:-1} NODE=node$I N=$RUN/node$I                   # N: the state of this node
node_ip() { echo "10.88.0.$(($1 + 1))"; }
pod_cidr() { echo "10.244.$(($1 - 1)).0/24"; }
CLUSTER_CIDR=10.244.0.0/16
NODE_IP=$(node_ip "$I") POD_CIDR=$(pod_cidr "$I") SERVER=https://$(node_ip 1):6443
SVC_CIDR=10.96.0.0/16 SVC_IP=10.96.0.1 DNS_IP=10.96.0.10
CTRLS="cpu cpuacct cpuset memory devices freezer blkio pids systemd"
PATH=$K8S_DIR/bin:$K8S_DIR/root/usr/bin:$K8S_DIR/root/usr/sbin:$PATH
now() { date +%s.%N; }
say() { echo "[$(date +%T.%3N)] $*"; }
