#!/bin/bash
# Prints what a program and its children see of their machine; run natively in a pod and under stead it
# must print the same. `probe.sh look`, or `probe.sh serve PORT COUNT` by a child in the background.
set -u
if [ "$1" = serve ]; then
	"$(dirname "$0")/goprobe" "$@" &
	wait $!
	exit
fi
echo "env $POD_NAME $DATABASE_URL $GREETING"
echo "hostname $(hostname) $(uname -n)"
echo "file $(cat /etc/orders/config.yaml | sha256sum) $(cat /var/run/secrets/orders/token)"
(cd /var/data && echo "cwd $(pwd) $(/bin/pwd) $(readlink link) $(realpath link)" && sha256sum -c big.bin.sha256 && cksum < link)
ls /var/data/many | sha256sum
find /var/data/many -type f | wc -l
ls /etc/no/such 2>/dev/null; echo "none $?"
getent hosts db.shop.svc.cluster.local
getent ahostsv4 db | sort -u
exec 3<>/dev/tcp/db/5432; echo ping >&3; read -r line <&3; echo "tcp $line"; exec 3>&-
exec 3<>/dev/udp/db/5433; echo ping >&3; echo "udp $(timeout 10 dd bs=100 count=1 <&3 2>/dev/null)"; exec 3>&-
curl -s file:///etc/orders/config.yaml | sha256sum
curl -s http://db/ | sed 's/:[0-9]*$//'
curl -s -6 -g -o /dev/null -w '%{http_code} %{remote_ip}\n' http://db/
curl -s -o /dev/null -w '%{http_code}\n' http://db:1/; echo "curl $?"
curl -s --http2-prior-knowledge http://127.0.0.1:8080/self
for i in 1 2 3; do (curl -s "http://127.0.0.1:8080/child/$i" &) ; done | sort
seq 20 | xargs -P 8 -I{} curl -s -o /dev/null -w '%{http_code}\n' http://db/ | sort | uniq -c
sh -c 'exit 3'; echo "code $?"
