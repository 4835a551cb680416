package agent

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzTheKernelsFiles reads whatever text as those files of /proc and of the target's that are read.
func FuzzTheKernelsFiles(f *testing.F) {
	for _, s := range []string{
		"Main:\n  +-- 10.0.0.0/8 2 0 2\n     |-- 10.0.0.1\n        /32 host LOCAL\n",
		"fe800000000000000000000000000001 02 40 20 80     eth0\n",
		"search shop.svc\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\n",
		"40 (child) of (it) S 30 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 7 0",
		"0::/kubepods/pod1/0123456789ab\n3:pids:/a:cri-containerd:0123456789ab\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, a := range append(localIPv4(strings.NewReader(s)), localIPv6(strings.NewReader(s))...) {
			if !a.IsValid() || a.IsLoopback() {
				t.Errorf("the node has %v", a)
			}
		}
		for _, a := range nameservers(s) {
			if !a.IsValid() {
				t.Errorf("nameserver %v", a)
			}
		}
		_, _, _ = parseStat([]byte(s))
		if inContainer([]byte(s), "0123456789ab") && !bytes.Contains([]byte(s), []byte("0123456789ab")) {
			t.Error("in a container that is not named")
		}
	})
}

// FuzzAnswersOfConnectionTracking: what is no answer names nobody.
func FuzzAnswersOfConnectionTracking(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 0x14, 0, 2, 0x80, 8, 0, 1, 0, 10, 0, 0, 1})
	f.Add(question(testKey))
	f.Fuzz(func(t *testing.T, b []byte) {
		if from, to, ok := replyTuple(b); ok && (!from.IsValid() || !to.IsValid()) {
			t.Errorf("from %v to %v", from, to)
		}
	})
}
