package playground

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// What is in the playground. Addresses: the pods' are 10.244.0.N and fd00:244::N, the switch is
// N=1, the nameserver has the usual address of a cluster's.
const (
	gateway4   = "10.244.0.1"
	gateway6   = "fd00:244::1"
	nameserver = "10.96.0.10"
	zone       = "shop.svc.cluster.local."
	bigSize    = 64 << 20
	manyFiles  = 2000
)

// podSpec is one pod: a row of the table.
type podSpec struct {
	name, hostname string
	ipv4, ipv6     string
	env            []string
	app            string            // see apps
	files          map[string]string // path -> contents
	furnish        func(root string) error
}

var pods = []podSpec{
	{
		name: "orders", hostname: "orders-0", ipv4: "10.244.0.11", ipv6: "fd00:244::11", app: "orders",
		env: []string{
			"POD_NAME=orders-0", "DATABASE_URL=tcp://db.shop.svc.cluster.local:5432", "GREETING=hello from the pod",
		},
		files: map[string]string{
			"/etc/orders/config.yaml":       "name: orders\ndatabase: db.shop.svc.cluster.local:5432\ngreeting: hello from the pod\n",
			"/var/run/secrets/orders/token": "s3cr3t-of-orders-0",
			"/etc/ssl/certs/orders-pod.pem": "the certificates of orders-0\n",
		},
		furnish: furnishOrders,
	},
	{name: "db", hostname: "db-0", ipv4: "10.244.0.12", ipv6: "fd00:244::12", app: "db", env: []string{"POD_NAME=db-0"}},
	{name: "client", hostname: "client-0", ipv4: "10.244.0.13", ipv6: "fd00:244::13", app: "client", env: []string{"POD_NAME=client-0"}},
}

// podEnv is what every container has of its own: none of it may reach a program on the laptop.
var podEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/pod/bin",
	"HOME=/home/pod", "PWD=/home/pod", "PYTHONPATH=/home/pod/python", "JAVA_HOME=/home/pod/java", "KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443",
}

func specOf(name string) *podSpec {
	for i := range pods {
		if pods[i].name == name {
			return &pods[i]
		}
	}
	return nil
}

// write puts the pod's files below root, the upper layer of its overlay.
func (p *podSpec) write(root string) error {
	files := map[string]string{
		"/etc/hostname":      p.hostname + "\n",
		"/etc/hosts":         fmt.Sprintf("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n%s %s\n%s %s\n", p.ipv4, p.hostname, p.ipv6, p.hostname),
		"/etc/resolv.conf":   "nameserver " + nameserver + "\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
		"/home/pod/.keep":    "",
	}
	for name, data := range p.files {
		files[name] = data
	}
	for name, data := range files {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, []byte(data), 0o644); err != nil {
			return err
		}
	}
	if p.furnish != nil {
		return p.furnish(root)
	}
	return nil
}

// furnishOrders makes /var/data: a large file that is the same in every playground, its sum, a
// link, and a directory with many entries.
func furnishOrders(root string) error {
	data := filepath.Join(root, "var/data")
	if err := os.MkdirAll(filepath.Join(data, "many"), 0o755); err != nil {
		return err
	}
	big := make([]byte, bigSize)
	rand.NewChaCha8([32]byte{1}).Read(big)
	if err := os.WriteFile(filepath.Join(data, "big.bin"), big, 0o644); err != nil {
		return err
	}
	sum := fmt.Sprintf("%x  big.bin\n", sha256.Sum256(big))
	if err := os.WriteFile(filepath.Join(data, "big.bin.sha256"), []byte(sum), 0o644); err != nil {
		return err
	}
	if err := os.Symlink("big.bin", filepath.Join(data, "link")); err != nil {
		return err
	}
	for i := range manyFiles {
		name := filepath.Join(data, "many", fmt.Sprintf("entry-%04d", i))
		if err := os.WriteFile(name, []byte(name[len(root):]+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}
