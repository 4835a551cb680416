# A shell and its children: each is in the pod's stead. It has no server.
echo "env    GREETING: $GREETING"
echo "host   $(uname -n)"
echo "file   /etc/orders/config.yaml: $(wc -c </etc/orders/config.yaml) bytes"
echo "name   db: $(getent ahostsv4 db | awk 'NR == 1 { print $1 }')"
exec 3<>/dev/tcp/db/5432
echo hello >&3
read -r answer <&3
echo "tcp    db:5432: $answer"
if command -v curl >/dev/null; then
	echo "curl   http://db/ answers: $(curl -sS http://db/)"
fi
