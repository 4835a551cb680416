#!/usr/bin/env bash
# node.sh: pid 1 of a node's namespaces; started by cluster.sh. It mounts what a node has, starts
# the node's services and reaps what is re-parented to it. Its end is the end of the node.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/settings.sh"
export PATH
# /proc is still the host's here, so this is pid 1's number on the host
read -r hostpid _ < /proc/self/stat; echo "$hostpid" > "$N/init.pid"
[ -z "${DEBUG:-}" ] || set -x
mount --make-rprivate /
hostname "$NODE"
mount -t proc proc /proc
mount -t sysfs sysfs /sys                       # shows this netns's devices
mount -t tmpfs tmpfs /sys/fs/cgroup
for c in $CTRLS; do
  mkdir "/sys/fs/cgroup/$c"
  case $c in systemd) mount -t cgroup -o none,name=systemd cgroup "/sys/fs/cgroup/$c" ;;
             *)       mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c" ;; esac
done
mount -t tmpfs tmpfs /run                        # /run/containerd/containerd.sock at its usual place
mount -t overlay -o "lowerdir=$K8S_DIR/root/usr:/usr" overlay /usr   # what was unpacked, where it expects to be
# /var and /etc: writable here, unchanged on the host; the cluster's own state stays what it is, wherever
mkdir -p /run/ovl /run/state
mount --bind "$RUN" /run/state
for d in var etc; do
  mkdir -p /run/ovl/$d.up /run/ovl/$d.wk
  mount -t overlay -o lowerdir=/$d,upperdir=/run/ovl/$d.up,workdir=/run/ovl/$d.wk overlay /$d
done
mount --bind /run/state "$RUN"
# big or snapshot-bearing state lives on the real disk
mkdir -p "$N"/{containerd,kubelet,pods} /var/lib/{containerd,kubelet} /var/log/{pods,containers} /etc/cni/net.d /etc/kubernetes
mount --bind "$N/containerd" /var/lib/containerd
mount --bind "$N/kubelet" /var/lib/kubelet
mount --bind "$N/pods" /var/log/pods
mount --make-rshared /                           # so that pods may ask for mount propagation
# the kubelet sets these machine-wide; give it files that already say what it wants
mkdir -p /run/tun
fake() { echo "$2" > "/run/tun/${1//\//_}"; mount --bind "/run/tun/${1//\//_}" "/proc/sys/$1"; }
fake vm/overcommit_memory 1; fake vm/panic_on_oom 0; fake kernel/panic 10; fake kernel/panic_on_oops 1
fake kernel/keys/root_maxkeys 1000000; fake kernel/keys/root_maxbytes 25000000
# network: eth0 is a veth whose other end up() put on the switch; the default route
# leads nowhere, and is there because a ClusterIP needs some route to be rewritten on
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "$NODE_IP/24" dev eth0; ip link set eth0 up; ip route add default dev eth0
for ((j = 1; j <= NODES; j++)); do [ "$j" = "$I" ] || ip route add "$(pod_cidr $j)" via "$(node_ip $j)"; done
sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
: > /etc/resolv.conf
{ echo '127.0.0.1 localhost'; for ((j = 1; j <= NODES; j++)); do echo "$(node_ip $j) node$j"; done; } > /etc/hosts

cat > /etc/cni/net.d/10-bridge.conflist <<J
{"cniVersion":"1.0.0","name":"bridge","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
"ipam":{"type":"host-local","ranges":[[{"subnet":"$POD_CIDR"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
J
mkdir -p /etc/containerd; cat > /etc/containerd/config.toml <<T
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.local/pause:1"
restrict_oom_score_adj = true   # without CAP_SYS_RESOURCE nobody may lower an oom score, and runc fails trying
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$K8S_DIR/root/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
T
cat > /etc/kubernetes/kubelet.yaml <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failSwapOn: false
failCgroupV1: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $RUN/pki/ca.crt}}
authorization: {mode: Webhook}
kubeAPIQPS: 200
kubeAPIBurst: 400
registryPullQPS: 0
eventRecordQPS: 0
tlsCertFile: $RUN/pki/kubelet-serving-$NODE.crt
tlsPrivateKeyFile: $RUN/pki/kubelet-serving-$NODE.key
clusterDNS: [$DNS_IP]
clusterDomain: cluster.local
resolvConf: /etc/resolv.conf
makeIPTablesUtilChains: false
volumePluginDir: /var/lib/kubelet/volumeplugins
evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 8760h
shutdownGracePeriod: 0s
Y
cat > /etc/kubernetes/proxy.yaml <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $PROXY_MODE
clientConnection: {kubeconfig: $RUN/pki/proxy.kubeconfig}
hostnameOverride: $NODE
clusterCIDR: $CLUSTER_CIDR
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
Y
# kube-proxy in iptables mode looks for these by name, which Debian makes as alternatives
mkdir -p /run/bin
for t in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
  ln -sf "$K8S_DIR/root/usr/sbin/xtables-nft-multi" "/run/bin/$t"
done
PATH=/run/bin:$PATH
L=$N/log P=$RUN/pki; mkdir -p "$L"
# Each part is a script of its own, for cluster.sh restart.
run() {
  local n=$1; shift; echo "$(now) $NODE start $n" >> "$RUN/times"
  { printf 'exec'; printf ' %q' "$@"; echo; } > "$N/$n.sh"
  bash "$N/$n.sh" > "$L/$n.log" 2>&1 & echo $! > "$N/$n.nspid"
}
[ "$I" != 1 ] || run etcd etcd --name "$NODE" --data-dir "$RUN/etcd" --unsafe-no-fsync --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 \
    --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster "$NODE=http://127.0.0.1:2380" --log-level warn
run containerd containerd
[ "$I" != 1 ] || run apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address=$NODE_IP --secure-port=6443 \
    --service-cluster-ip-range=$SVC_CIDR --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement \
    --allow-privileged=true --client-ca-file=$P/ca.crt --tls-cert-file=$P/apiserver.crt --tls-private-key-file=$P/apiserver.key \
    --kubelet-certificate-authority=$P/ca.crt --kubelet-client-certificate=$P/apiserver-kubelet-client.crt \
    --kubelet-client-key=$P/apiserver-kubelet-client.key --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file=$P/sa.pub --service-account-signing-key-file=$P/sa.key --kubelet-preferred-address-types=InternalIP \
    --requestheader-client-ca-file=$P/ca.crt --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file=$P/front-proxy-client.crt --proxy-client-key-file=$P/front-proxy-client.key
# images go in while the API server starts
( until ctr version >/dev/null 2>&1; do sleep 0.05; done
  for i in "$K8S_DIR"/images/*.tar; do ctr -n k8s.io images import "$i"; done
  echo "$(now) $NODE images-imported" >> "$RUN/times" ) > "$L/images.log" 2>&1 &
kc="kubectl --kubeconfig $P/admin.kubeconfig"
until $kc get --raw /readyz >/dev/null 2>&1; do sleep 0.1; done
[ "$I" != 1 ] || echo "$(now) $NODE apiserver-ready" >> "$RUN/times"
[ "$I" != 1 ] || run controller-manager kube-controller-manager --kubeconfig=$P/controller-manager.kubeconfig \
    --authentication-kubeconfig=$P/controller-manager.kubeconfig --authorization-kubeconfig=$P/controller-manager.kubeconfig \
    --use-service-account-credentials --service-account-private-key-file=$P/sa.key --root-ca-file=$P/ca.crt \
    --kube-api-qps=500 --kube-api-burst=1000 \
    --cluster-signing-cert-file=$P/ca.crt --cluster-signing-key-file=$P/ca.key --leader-elect=false --cluster-cidr=$CLUSTER_CIDR
[ "$I" != 1 ] || run scheduler kube-scheduler --kubeconfig=$P/scheduler.kubeconfig --authentication-kubeconfig=$P/scheduler.kubeconfig \
    --authorization-kubeconfig=$P/scheduler.kubeconfig --leader-elect=false
run kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=$P/kubelet-$NODE.kubeconfig --hostname-override="$NODE" \
    --node-ip=$NODE_IP --root-dir=/var/lib/kubelet
run proxy kube-proxy --config=/etc/kubernetes/proxy.yaml
# pid 1: reap whatever is re-parented here, for as long as the node lives
trap : CHLD
while :; do sleep 3600 & wait $! || true; done
