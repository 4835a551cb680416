#!/usr/bin/env bash
# check.sh: what an end-to-end test needs of the cluster, one line each.
set -u
. "$(dirname "$(readlink -f "$0")")/settings.sh"; D=$K8S_DIR K="$K8S_DIR/bin/kubectl --kubeconfig $RUN/kubeconfig"
pass=0 fail=0
t() { local n=$1 want=$2; shift 2; local out; out=$(timeout 30 "$@" 2>&1); if grep -qE -- "$want" <<<"$out"; then pass=$((pass+1)); echo "ok   $n: $(grep -E -m1 -- "$want" <<<"$out" | cut -c1-150)"; else fail=$((fail+1)); echo "FAIL $n (want $want): $out"; fi; }
t0=$(date +%s.%N)
$K apply -f - <<'Y' >/dev/null
apiVersion: v1
kind: Namespace
metadata: {name: t}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: t}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: registry.local/busybox:1
        command: [sh, -c, 'mkdir /w; hostname > /w/index.html; echo serving; exec httpd -f -p 8080 -h /w']
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: t}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cli, namespace: t}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: registry.local/busybox:1, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: t}
spec:
  nodeName: node1   # what it looks for below is there
  hostPID: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: a
    image: registry.local/busybox:1
    command: [sleep, "3600"]
    securityContext: {capabilities: {add: [SYS_ADMIN, SYS_PTRACE, NET_ADMIN, NET_RAW]}}
    volumeMounts: [{name: s, mountPath: /run/containerd}]
  volumes: [{name: s, hostPath: {path: /run/containerd}}]
---
apiVersion: v1
kind: Pod
metadata: {name: hp, namespace: t}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: c
    image: registry.local/busybox:1
    command: [sh, -c, "echo hp > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    ports: [{containerPort: 8080, hostPort: 31080}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Pod
metadata: {name: priv, namespace: t}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: registry.local/busybox:1, command: [sleep, "3600"], securityContext: {privileged: true}}]
Y
$K -n t wait --for=condition=Ready pod --all --timeout=60s >/dev/null
printf 'pods Ready %.2fs after apply\n' "$(echo "$(date +%s.%N) - $t0" | bc 2>/dev/null || awk -v a=$t0 -v b=$(date +%s.%N) 'BEGIN{print b-a}')"
$K get pods -A -o wide
C="$K -n t exec cli --"; A="$K -n t exec agent --"
SVC=$($K -n t get svc web -o jsonpath='{.spec.clusterIP}')
WEB=$($K -n t get pod -l app=web -o jsonpath='{.items[0].metadata.name}')
WEBPID=$($A sh -c "ps -o pid,args | grep 'httpd -f -p 8080 -h /w$' | head -1" | awk "{print \$1}")
t exec          '^uid=0'            $C id
t exec-stdin    'hello'             bash -c "echo hello | $K -n t exec -i cli -- cat"
t exec-exit     '^7$'               bash -c "$C sh -c 'exit 7' 2>/dev/null; echo \$?"
t exec-tty      'tty|/dev/pts'      bash -c "script -qec '$K -n t exec -it cli -- tty' /dev/null"
t logs          'serving'           $K -n t logs "$WEB"
t clusterip     '^web-'             $C wget -qO- "http://$SVC/"
t hairpin       '^web-'             $K -n t exec "$WEB" -- sh -c "for i in 1 2 3 4 5 6; do wget -qO- http://$SVC/ || exit 1; done"
t dns-short     '^web-'             $C wget -qO- http://web/
t dns-fqdn      "$SVC"              $C nslookup web.t.svc.cluster.local
t dns-api       '10.96.0.1'         $C nslookup kubernetes.default.svc.cluster.local
t api-clusterip 'Unauthorized|"code": 401|403|server returned error|alert code' $C wget --no-check-certificate -qO- https://kubernetes.default/api
t nodeport      '^web-'             $C wget -qO- http://10.88.0.2:30081/
t node-clusterip '^web-'            "$here/cluster.sh" net "$D/root/bin/busybox" wget -qO- "http://$SVC/"
t hostport      "^hp"               $C wget -qO- http://$($K -n t get pod hp -o jsonpath={.status.hostIP}):31080/
t seccomp       "Seccomp:.2"        $K -n t exec hp -- grep Seccomp: /proc/self/status
$K -n t port-forward svc/web 18080:80 >/dev/null 2>&1 & pf=$!
for _ in {1..50}; do (exec 3<>/dev/tcp/127.0.0.1/18080) 2>/dev/null && break; sleep 0.1; done
t port-forward  '^web-'             "$D/root/bin/busybox" wget -qO- http://127.0.0.1:18080/
kill $pf
t hostpid-sees  'kube-apiserver'    $A ps -o comm,args
t hostpid-caps  'CapEff:.00000000a8' $A grep CapEff /proc/self/status
t agent-nsenter 'eth0'              $A nsenter -t "$WEBPID" -n ip -o addr
t agent-rules   '8080|1F90'         $A nsenter -t "$WEBPID" -n netstat -ltn
t agent-netadm  'tmp0'              $A nsenter -t "$WEBPID" -n sh -c 'ip link add tmp0 type bridge; ip -o link show tmp0; ip link del tmp0'
t agent-netraw  "1 response|Received 1|eceived 1"  $A nsenter -t "$WEBPID" -n arping -c 1 -I eth0 10.244.0.1
t agent-setns-m 'index.html'        $A nsenter -t "$WEBPID" -m ls /w
t agent-ptrace  'httpd'             $A sh -c "readlink /proc/$WEBPID/exe; cat /proc/$WEBPID/root/w/index.html; grep -a -o httpd /proc/$WEBPID/cmdline"
t agent-crisock 'containerd.sock'   $A ls /run/containerd/
t privileged    'CapEff'            $K -n t exec priv -- grep CapEff /proc/self/status
t hostnetwork   "inet $($K -n t get pod priv -o jsonpath={.status.hostIP})/" $K -n t exec priv -- ip -o addr
t mem-limit     '67108864'          $K -n t exec "$WEB" -- cat /sys/fs/cgroup/memory/memory.limit_in_bytes
t cp            'abc'               bash -c "echo abc > $RUN/x; $K -n t cp $RUN/x cli:/tmp/x && $C cat /tmp/x"
t debug-ephem   'uid=0'             bash -c "$K -n t debug cli --image=registry.local/busybox:1 --target=c -c dbg -- id >/dev/null 2>&1; for i in 1 2 3 4 5 6 7 8; do $K -n t logs cli -c dbg 2>/dev/null && break; sleep 0.5; done"
t job           'condition met'     bash -c "$K -n t create job j --image=registry.local/busybox:1 -- true >/dev/null; $K -n t wait --for=condition=complete job/j --timeout=20s"
t rbac-deny     'no'                $K auth can-i list pods --as=system:serviceaccount:t:default
t sa-token      '^eyJ'              $C cat /var/run/secrets/kubernetes.io/serviceaccount/token
t events        'Started'           $K -n t get events
t ns-delete     'deleted'           $K delete ns t --timeout=30s
echo "$pass passed, $fail failed"; [ "$fail" = 0 ]
