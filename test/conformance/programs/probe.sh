#!/bin/bash
# Prints what bash, its children and curl see of their machine; run natively in a pod and under stead it
# must print the same. `probe.sh look`, or `probe.sh serve PORT COUNT` by a child in the background, for
# neither bash nor curl can listen.
set -u
if [ "$1" = serve ]; then
	"$(dirname "$0")/goprobe" "$@" &
	wait $!
	exit
fi
echo "env $POD_NAME $DATABASE_URL $GREETING $(printenv GREETING)"
echo "hostname $(hostname) $(uname -n)"
# bash itself: files, a directory, names, TCP and UDP by its own hands
echo "bash $(</etc/orders/config.yaml)"; mapfile -t lines </etc/resolv.conf; echo "${#lines[@]} ${lines[1]}"
many=(/var/data/many/*); echo "${#many[@]} ${many[0]} ${many[-1]}"
[ -L /var/data/link ] && [ -r /var/data/big.bin ] && [ ! -e /var/data/none ] && echo "tests"
read -r line </etc/hosts; echo "hosts $line"
echo "file $(cat /etc/orders/config.yaml | sha256sum) $(cat /var/run/secrets/orders/token)"
(cd /var/data && echo "cwd $(pwd) $(/bin/pwd) $(readlink link) $(realpath link)" && sha256sum -c big.bin.sha256 && cksum < link)
ls /var/data/many | sha256sum
find /var/data/many -type f | wc -l
ls /etc/no/such 2>/dev/null; echo "none $?"
getent hosts db.shop.svc.cluster.local
getent ahostsv4 db | sort -u
exec 3<>/dev/tcp/db/5432; echo ping >&3; read -r line <&3; echo "tcp $line"; exec 3>&-
exec 3<>/dev/udp/db/5433; echo ping >&3; echo "udp $(timeout 10 dd bs=100 count=1 <&3 2>/dev/null)"; exec 3>&-
# curl: files, names, HTTP by TCP of both families, tftp's datagrams
curl -s file:///etc/orders/config.yaml | sha256sum
curl -s file:///var/data/big.bin | sha256sum
curl -s file:///etc/no/such; echo "curl $?"
curl -s http://no-such-name/; echo "curl $?"
for f in 4 6; do curl -s -$f -w '%{remote_ip} %{local_ip}\n' http://db/ | sed 's/:[0-9]*$//'; done
curl -s -w ' %{local_ip}:%{local_port} [%{local_ip}]:%{local_port}' http://db/ | { read -r -d '' said a b; case "$said" in "$a"|"$b") echo "ends";; *) echo "ends differ: $said $a";; esac; }
for f in 4 6; do # the echo of its own datagram is no answer, which it says, and waits on
	exec 3< <(exec curl -sv -$f --max-time 60 tftp://db:5433/x 2>&1); asks=$!
	grep -om1 'Unexpected packet' <&3; kill $asks 2>/dev/null; exec 3<&-
done
curl -s http://127.0.0.1:8080/self; curl -s -g 'http://[::1]:8080/self'
echo "$(getent ahostsv4 dozens | sort -u | wc -l) $(getent ahostsv4 hundreds | sort -u | wc -l)"
curl -s http://db/ | sed 's/:[0-9]*$//'
curl -s -6 -g -o /dev/null -w '%{http_code} %{remote_ip}\n' http://db/
curl -s -o /dev/null -w '%{http_code}\n' http://db:1/; echo "curl $?"
curl -s --http2-prior-knowledge http://127.0.0.1:8080/self
for i in 1 2 3; do (curl -s "http://127.0.0.1:8080/child/$i" &) ; done | sort
seq 20 | xargs -P 8 -I{} curl -s -o /dev/null -w '%{http_code}\n' http://db/ | sort | uniq -c
sh -c 'exit 3'; echo "code $?"
