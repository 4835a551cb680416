package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Processes returns the command lines of all processes of the machine but the tests' own, each as
// "process PID STATE ARGS"; a zombie is one.
func Processes(t testing.TB) (out []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		comm := strings.LastIndexByte(string(stat), ')')
		args, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if len(args) == 0 {
			args = stat[strings.IndexByte(string(stat), '('):comm]
		}
		out = append(out, fmt.Sprintf("process %d %c %s", pid, stat[comm+2], strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")))
	}
	return out
}

// Files returns what is in the directories for temporary files, but for what the tests run.
func Files(t testing.TB) (out []string) {
	t.Helper()
	for _, dir := range temporary {
		var dev any
		err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if name == dir {
				dev = device(name)
				return nil
			}
			if d.IsDir() && device(name) != dev {
				return filepath.SkipDir // the repository
			}
			out = append(out, "file "+name)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// In returns what is in the network and mount namespaces of a process: links, tables of nftables,
// sk_lookup programs, packet sockets, listeners, unix sockets with a name, mounts. Each line begins with
// its kind, then who.
func In(t testing.TB, who string, pid int) (out []string) {
	t.Helper()
	add := func(kind, what string) {
		if l := kind + " of " + who + ": " + what; !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	rows := func(name string, f func(fields []string)) {
		t.Helper()
		b, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			f(strings.Fields(l))
		}
	}
	rows("mountinfo", func(f []string) {
		rest := f[slices.Index(f, "-")+1:]
		add("mount", fmt.Sprintf("%s from %s of %s type %s", f[4], f[3], rest[1], rest[0]))
	})
	rows("net/dev", func(f []string) {
		if name, ok := strings.CutSuffix(f[0], ":"); ok {
			add("link", name)
		}
	})
	rows("net/packet", func(f []string) {
		if f[0] != "sk" {
			add("packet socket", "protocol "+f[3])
		}
	})
	rows("net/unix", func(f []string) {
		if len(f) >= 8 && f[7] != "Path" {
			add("unix socket", strings.Join(f[7:], " "))
		}
	})
	for _, table := range []struct{ name, state string }{{"tcp", "0A"}, {"tcp6", "0A"}, {"udp", "07"}, {"udp6", "07"}} {
		rows("net/"+table.name, func(f []string) {
			if f[3] == table.state {
				add("listener", table.name+" "+f[1])
			}
		})
	}
	ns, err := os.Open(proc + "ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	nft, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := nft.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tables {
		add("nft table", x.Name)
	}
	bpf, err := link.QueryPrograms(link.QueryOptions{Target: int(ns.Fd()), Attach: ebpf.AttachSkLookup})
	if err != nil {
		t.Fatal(err)
	}
	for range bpf.Programs {
		add("sk_lookup program", "steals")
	}
	return out
}

func device(name string) any {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil {
		return nil
	}
	return st.Dev
}
