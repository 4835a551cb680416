#!/usr/bin/env bash
# cluster.sh: a real Kubernetes cluster of one node (NODES=2: two), inside namespaces of its own.
#
#   cluster.sh up                 build what is missing, start, wait for the nodes and for DNS
#   cluster.sh down               end the nodes, remove their cgroups and state
#   cluster.sh load IMAGE.tar...  give every node an image (docker-archive or OCI tar)
#   cluster.sh enter CMD...       run CMD inside the node (all its namespaces); I=2 for node2
#   cluster.sh net CMD...         run CMD with only the node's network (host files, host pids)
#   cluster.sh restart PART       kill -9 a part of the node and start it anew: apiserver, kubelet, proxy, ...
#   cluster.sh cut I, join I      take node I off the network, and put it back
#   cluster.sh status             say whether it is up
#
# A "node" is one process tree with its own mount, network, pid, uts, ipc and cgroup namespaces, as
# a kind node is, but made by unshare(1). Nothing is written outside $STEAD_CACHE (and Go's caches)
# but the cgroup directories that "down" removes.
# Needs: root, go, apt-get, util-linux, iproute2.
set -euo pipefail
SELF=$(readlink -f "$0")
. "$(dirname "$SELF")/settings.sh"
export PATH

# The node's cgroups are children of the cgroups this shell is in, so whatever limits and accounts
# for this shell goes on doing so.
cgdir() { # controller -> this process's directory in it
  local p; p=$(awk -F: -v c="$1" '{n=split($2,a,","); for(i=1;i<=n;i++) if (a[i]==c || a[i]=="name=" c) print $3}' /proc/self/cgroup)
  echo "/sys/fs/cgroup/$1${p%/}/k8s-$(cksum <<< "$RUN" | cut -d' ' -f1)-$NODE"   # one of its own for each $RUN
}
join_cgroups() {
  : > "$N/cgroups"
  for c in $CTRLS; do
    local d; d=$(cgdir "$c"); mkdir -p "$d"
    if [ "$c" = cpuset ]; then   # an empty cpuset takes no process
      cat "$d/../cpuset.cpus" > "$d/cpuset.cpus"; cat "$d/../cpuset.mems" > "$d/cpuset.mems"
    fi
    echo $BASHPID > "$d/cgroup.procs"; echo "$d" >> "$N/cgroups"
  done
}


is_up() { [ -s "$RUN/node1/init.pid" ] && kill -0 "$(cat "$RUN/node1/init.pid")" 2>/dev/null; }

spawn() {  # start node $I; sets PID to its pid 1, as the host numbers it
  mkdir -p "$N/log"
  # join the cgroups first, so that the new cgroup namespace is rooted there
  ( join_cgroups
    exec env NODES="$NODES" I="$I" K8S_DIR="$K8S_DIR" STEAD_CLUSTER_RUN="$RUN" PROXY_MODE="$PROXY_MODE" setsid \
      unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child=KILL --propagation private \
      bash "$here/node.sh" </dev/null > "$N/log/node.log" 2>&1 9>&- ) &
  local u=$!; echo "$u" > "$N/unshare.pid"
  until [ -s "$N/init.pid" ]; do kill -0 $u || { cat "$N/log/node.log"; exit 1; }; sleep 0.02; done
  PID=$(cat "$N/init.pid"); say "$NODE: pid 1 is $PID"
  ip link add "sw$I" netns "$SWITCH" type veth peer name eth0 netns "$PID"
  nsenter -t "$SWITCH" -n bash -c "ip link set sw$I master sw up"
}

up() {
  "$here/build.sh" >/dev/null
  if is_up; then
    [ "$(ls -d "$RUN"/node*/ | wc -l)" = "$NODES" ] || { echo "error: up with another number of nodes; first: make cluster-down" >&2; exit 1; }
    echo "already up"; return
  fi
  down                                   # what a failed or killed one left
  mkdir -p "$RUN"
  local t0 j; t0=$(now); echo "$t0 all up" >> "$RUN/times"
  boot pki "$RUN/pki" "$SERVER" $SVC_IP $(for ((j = 1; j <= NODES; j++)); do echo "node$j=$(node_ip $j)"; done)
  # the switch that joins the nodes: a bridge in a namespace of its own, so that no
  # node's packet filter sees frames that are only passing
  setsid unshare --net sleep infinity </dev/null >/dev/null 2>&1 & SWITCH=$!; echo "$SWITCH" > "$RUN/switch.pid"
  until [ "$(readlink /proc/$SWITCH/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
  nsenter -t "$SWITCH" -n bash -c 'ip link add sw type bridge; ip link set sw up'
  for ((j = NODES; j >= 1; j--)); do I=$j NODE=node$j N=$RUN/node$j; spawn; done   # node1 last: PID is its
  local p=$PID
  sed "s#$SERVER#https://$HOST_API#" "$RUN/pki/admin.kubeconfig" > "$RUN/kubeconfig"
  setsid boot fwd "$HOST_API" "/proc/$p/ns/net" 127.0.0.1:6443 </dev/null > "$N/log/fwd.log" 2>&1 & echo $! > "$RUN/fwd.pid"
  local kc="$K8S_DIR/bin/kubectl --kubeconfig $RUN/kubeconfig"
  until $kc get --raw /readyz >/dev/null 2>&1; do
    kill -0 "$p" || { cat "$N/log/node.log"; exit 1; }
    kill -0 "$(cat "$RUN/fwd.pid")" 2>/dev/null || { cat "$N/log/fwd.log"; exit 1; }   # say, the port is taken
    sleep 0.1
  done
  say "API server ready"
  $kc apply -f "$here/coredns.yaml" >/dev/null
  for ((j = 1; j <= NODES; j++)); do
    until $kc get node "node$j" >/dev/null 2>&1; do sleep 0.1; done
    $kc wait --for=condition=Ready "node/node$j" --timeout=120s >/dev/null; echo "$(now) node$j Ready" >> "$RUN/times"
  done; say "$NODES node(s) Ready"
  $kc -n kube-system rollout status deploy/coredns --timeout=120s >/dev/null || { tail -n 3 "$RUN"/node*/log/*.log; exit 1; }
  echo "$(now) dns Ready" >> "$RUN/times"; say "CoreDNS Ready"
  sort "$RUN/times" | awk -v t0="$t0" '{printf "%7.2fs %s %s %s\n", $1-t0, $2, $3, $4}'
  echo "KUBECONFIG=$RUN/kubeconfig"
}

# Killing pid 1 of a pid namespace makes the kernel end every process in it; the mount and network
# namespaces (overlays, bridges, rules) go with the last of them.
down() {
  local f p d
  for f in "$RUN"/fwd.pid "$RUN"/node*/init.pid "$RUN"/node*/unshare.pid "$RUN"/switch.pid; do
    [ -s "$f" ] || continue
    p=$(cat "$f"); kill -9 "$p" 2>/dev/null || true
    for _ in {1..100}; do grep -q "^State:.[^ZX]" "/proc/$p/status" 2>/dev/null || break; sleep 0.05; done   # gone, or a zombie
    rm -f "$f"
  done
  for f in "$RUN"/node*/cgroups; do
    [ -s "$f" ] || continue
    while read -r d; do [ ! -d "$d" ] || find "$d" -depth -type d -exec rmdir {} + || true; done < "$f"   # deepest first
  done
  rm -rf "$RUN"
}

init_pid() { cat "$RUN/$NODE/init.pid"; }
case ${1:-} in
  up) up ;;
  down) down ;;
  status) if is_up; then echo up; else echo down; exit 1; fi ;;
  load) shift
    is_up || { echo "error: the cluster is not up; first: make cluster-up" >&2; exit 1; }
    for i in "$@"; do for n in "$RUN"/node*/init.pid; do
      nsenter -t "$(cat "$n")" -m -n -p -- "$K8S_DIR/root/usr/bin/ctr" -n k8s.io images import - < "$i"   # not by its name: the node's own tree may show an older one
    done; done ;;
  restart) [ -s "$N/$2.sh" ] || { echo "error: the node has no part $2" >&2; exit 2; }
    exec nsenter -t "$(init_pid)" -m -n -p -u -i -C -- bash -c '
      p=$(cat "$0/$1.nspid"); kill -9 "$p"; t=(x); while [ ${#t[@]} != 0 ]; do sleep 0.02; t=(); for d in "/proc/$p/task/"*; do grep -qs "^State:.[^ZX]" "$d/status" && t+=("$d"); done; done   # every thread: each holds the ports
      setsid bash "$0/$1.sh" >> "$0/log/$1.log" 2>&1 < /dev/null & echo $! > "$0/$1.nspid"' "$N" "$2" ;;
  cut|join) nsenter -t "$(cat "$RUN/switch.pid")" -n ip link set "sw$2" "$([ "$1" = cut ] && echo down || echo up)" ;;
  enter) shift; KUBECONFIG=$RUN/pki/admin.kubeconfig exec nsenter -t "$(init_pid)" -m -n -p -u -i -C -- "$@" ;;
  net) shift; KUBECONFIG=$RUN/pki/admin.kubeconfig exec nsenter -t "$(init_pid)" -n -- "$@" ;;
  *) echo "usage: cluster.sh up|down|status|restart PART|cut I|join I|load TAR...|enter CMD...|net CMD..." >&2; exit 2 ;;
esac
