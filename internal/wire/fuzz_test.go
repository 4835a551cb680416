package wire

import (
	"bytes"
	"io"
	"net/netip"
	"reflect"
	"testing"
)

// FuzzMessages reads whatever bytes as each of the messages. What is one stays the same when it is sent on.
func FuzzMessages(f *testing.F) {
	messages := []any{
		Open{Kind: KindControl, Hello: &Hello{Version: 1, Build: "v1", Holder: "ann@laptop", Secret: []byte("s")}},
		Open{Kind: KindDial, Dial: &Dial{Network: "tcp", To: netip.MustParseAddrPort("10.0.0.1:80"), Bind: netip.MustParseAddrPort("[fe80::1%eth0]:1")}},
		Open{Kind: KindPacket, Packet: &Packet{IPv6: true}},
		Open{Kind: KindSubscribe, Subscribe: &Subscribe{Network: "tcp", Port: 80, Mode: Steal, Probes: []string{"/healthz"}}},
		Open{Kind: KindIncoming, Incoming: &Incoming{Subscription: 7, Remote: netip.MustParseAddrPort("[::1]:2")}},
		Welcome{Version: 1, Target: Target{Hostname: "orders-0", Env: []string{"A=b"}, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Listening: []uint16{80}}},
		Reply{Errno: 111, Error: "refused"},
		Event{Kind: EventDropped, Count: 1},
		Status{Sessions: []SessionStatus{{Holder: "ann@laptop", Incoming: []Subscribe{{Port: 80}}}}},
	}
	for _, m := range messages {
		b, err := Append(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, m := range messages {
			v := reflect.New(reflect.TypeOf(m))
			if Read(bytes.NewReader(b), v.Interface()) != nil {
				continue
			}
			again, err := Append(nil, v.Interface())
			if err != nil {
				t.Fatalf("%+v: %v", v.Interface(), err)
			}
			w := reflect.New(reflect.TypeOf(m))
			if err := Read(bytes.NewReader(again), w.Interface()); err != nil {
				t.Fatalf("%+v: %v", v.Interface(), err)
			}
			if last, err := Append(nil, w.Interface()); err != nil || !bytes.Equal(last, again) {
				t.Errorf("%+v became %+v, %v", v.Interface(), w.Interface(), err)
			}
		}
	})
}

// FuzzDatagrams reads whatever bytes in both ways that there are.
func FuzzDatagrams(f *testing.F) {
	at := netip.MustParseAddrPort("10.0.0.1:53")
	f.Add(AppendDatagram(AppendDatagram(nil, []byte("hello")), nil))
	f.Add(AppendErrno(AppendDatagram(nil, make([]byte, 600)), 111))
	f.Add(AppendPacketErrno(AppendPacket(nil, at, []byte("hello")), at, 111))
	f.Add([]byte{0xff, 0xf8, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		buf := make([]byte, MaxDatagram)
		one, other := bytes.NewReader(b), Datagrams{R: bytes.NewReader(b)}
		for {
			n, errno, err := ReadDatagram(one, buf)
			got, gotErrno, gotErr := other.Next()
			if (err == nil) != (gotErr == nil) || err == nil && (errno != gotErrno || !bytes.Equal(buf[:n], got)) {
				t.Fatalf("%q, %d, %v and %q, %d, %v", buf[:n], errno, err, got, gotErrno, gotErr)
			}
			if err != nil {
				break
			}
		}
		one, other = bytes.NewReader(b), Datagrams{R: bytes.NewReader(b)}
		for {
			from, n, errno, err := ReadPacket(one, buf)
			gotFrom, got, gotErrno, gotErr := other.NextPacket()
			if (err == nil) != (gotErr == nil) || err == nil && (from != gotFrom || errno != gotErrno || !bytes.Equal(buf[:n], got)) {
				t.Fatalf("%s, %q, %d, %v and %s, %q, %d, %v", from, buf[:n], errno, err, gotFrom, got, gotErrno, gotErr)
			}
			if err != nil {
				return
			}
		}
	})
}

// FuzzFileMessages reads whatever bytes as a request for a file and as an answer.
func FuzzFileMessages(f *testing.F) {
	f.Add(AppendFileRequest(nil, &FileRequest{ID: 1, Op: FileOpen, Path: "/etc/hosts"}))
	f.Add(AppendFileRequest(nil, &FileRequest{ID: 2, Op: FileRead, Handle: 3, Offset: 4, Count: 5}))
	f.Add(AppendEntry(AppendEntry(nil, &Entry{Name: "a", Attr: Attr{Ino: 1}}), &Entry{Name: "bc"}))
	f.Add(EndFileAnswer(append(BeginFileAnswer(nil, 1, 0), "body"...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := ReadFileRequest(bytes.NewReader(b)); err == nil {
			if !bytes.HasPrefix(b, AppendFileRequest(nil, &q)) {
				t.Errorf("%+v of %q", q, b)
			}
		}
		if entries, err := ParseEntries(b); err == nil {
			var again []byte
			for i := range entries {
				again = AppendEntry(again, &entries[i])
			}
			if !bytes.Equal(again, b) {
				t.Errorf("%+v of %q", entries, b)
			}
		}
		r := bytes.NewReader(b)
		if _, _, size, err := ReadFileAnswerHead(r); err == nil {
			if size < 0 || size > MaxFileBody {
				t.Errorf("a body of %d bytes", size)
			}
			_, _ = io.CopyN(io.Discard, r, int64(size))
		}
	})
}
