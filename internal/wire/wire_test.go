package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m.Run)) }

var (
	at4 = netip.MustParseAddrPort("10.244.0.11:8080")
	at6 = netip.MustParseAddrPort("[fd00:244::11]:8080")
)

// messages has one of each kind with every field set, and a value to read it into.
var messages = []struct {
	sent any
	into func() any
}{
	{&Open{Kind: KindControl, Hello: &Hello{Version: 7, MinVersion: 3, Build: "v1", Holder: "ann@laptop", Secret: []byte{0, 1, 255}, Container: "app"}}, func() any { return new(Open) }},
	{&Open{Kind: KindDial, Dial: &Dial{Network: "tcp", To: at6, Bind: at4, Options: Options{SynCount: 3, UserTimeout: 1500, Class: 184}}}, func() any { return new(Open) }},
	{&Open{Kind: KindPacket, Packet: &Packet{IPv6: true, Bind: at6}}, func() any { return new(Open) }},
	{&Open{Kind: KindSubscribe, Subscribe: &Subscribe{Network: "tcp", Port: 8080, Mode: Steal, Probes: []string{"/healthz"}}}, func() any { return new(Open) }},
	{&Open{Kind: KindIncoming, Incoming: &Incoming{Subscription: 1 << 60, Remote: at4, Local: at6}}, func() any { return new(Open) }},
	{&Open{Kind: KindFiles}, func() any { return new(Open) }},
	{&Welcome{Error: "no", Hint: "do", Version: 1, Build: "v2", Target: Target{Hostname: "orders-0", Domain: "d", Env: []string{"A=b\nc", "=", "bytes=\xff\x00"},
		Addrs: []netip.Addr{at4.Addr(), at6.Addr()}, WorkDir: "/w", Release: "6.1", Listening: []uint16{1, 65535},
		Nameservers: []netip.Addr{at6.Addr()}, Features: []string{FeatureSteal}}}, func() any { return new(Welcome) }},
	{&Reply{Errno: 111, Error: "refused", Hint: "h", Local: at4, Remote: at6, ID: 9}, func() any { return new(Reply) }},
	{&Reply{}, func() any { return new(Reply) }},
	{&Event{Kind: EventDropped, Text: "t", Count: 1 << 40}, func() any { return new(Event) }},
	{&Status{Build: "v", Sessions: []SessionStatus{{Holder: "h", Build: "b", Seconds: 3, Incoming: []Subscribe{{Network: "tcp", Port: 1, Mode: Mirror}}}}}, func() any { return new(Status) }},
}

var addresses = cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

func TestAMessageComesAsItWasSentAndTheNextByteIsNotTaken(t *testing.T) {
	for _, m := range messages {
		var b bytes.Buffer
		if err := Write(&b, m.sent); err != nil {
			t.Fatal(err)
		}
		b.WriteString("what follows")
		got := m.into()
		if err := Read(iotest.OneByteReader(&b), got); err != nil {
			t.Errorf("%T: %v", m.sent, err)
		}
		if diff := cmp.Diff(m.sent, got, addresses); diff != "" {
			t.Errorf("%T: -sent +read:\n%s", m.sent, diff)
		}
		if b.String() != "what follows" {
			t.Errorf("%T: left is %q", m.sent, b.String())
		}
	}
}

// What makes adding a field compatible.
func TestAnOlderPeerSkipsWhatItDoesNotKnowAndANewerOneSeesZeroValues(t *testing.T) {
	type newHello struct {
		Hello
		Added   map[string][]int `cbor:"zz"`
		Another string           `cbor:"yy"`
	}
	var b bytes.Buffer
	if err := Write(&b, newHello{Hello: Hello{Version: 9, MinVersion: 1, Build: "future"}, Added: map[string][]int{"a": {1, 2}}, Another: "x"}); err != nil {
		t.Fatal(err)
	}
	var old Hello
	if err := Read(&b, &old); err != nil || old.Version != 9 || old.MinVersion != 1 || old.Build != "future" {
		t.Errorf("%+v, %v", old, err)
	}
	if err := Write(&b, map[string]any{"v": 1}); err != nil { // of long ago
		t.Fatal(err)
	}
	var now Hello
	if err := Read(&b, &now); err != nil || !cmp.Equal(now, Hello{Version: 1}) {
		t.Errorf("%+v, %v", now, err)
	}
	if MinVersion > Version || Version == 0 {
		t.Errorf("this build speaks versions %d to %d", MinVersion, Version)
	}
}

func TestTheEndBetweenMessagesIsNotTheEndWithinOne(t *testing.T) {
	whole, err := Append(nil, &Event{Kind: "k", Text: "text"})
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		err := Read(bytes.NewReader(whole[:n]), new(Event))
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if err != want {
			t.Errorf("after %d bytes: %v, want %v", n, err, want)
		}
	}
}

func framed(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

func TestHostileMessagesAreErrors(t *testing.T) {
	deep := bytes.Repeat([]byte{0x81}, 10000) // an array in an array in an array
	for name, b := range map[string][]byte{
		"larger than any":            {0xff, 0xff, 0xff, 0xff, 0},
		"one byte too large":         binary.BigEndian.AppendUint32(nil, MaxMessage+1),
		"empty":                      framed(nil),
		"no CBOR":                    framed([]byte("GET / HTTP/1.1\r\n")),
		"an array of 2^32":           framed([]byte{0x9a, 0xff, 0xff, 0xff, 0xff}),
		"a map of 2^32":              framed([]byte{0xba, 0xff, 0xff, 0xff, 0xff}),
		"a text of 2^63":             framed([]byte{0x7b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"nested deeply":              framed(deep),
		"two values":                 framed([]byte{0xa0, 0xa0}),
		"a number where a map is":    framed([]byte{0x01}),
		"a port that is none":        framed(encoded(t, map[string]any{"k": "subscribe", "s": map[string]any{"p": 65536}})),
		"an address that is none":    framed(encoded(t, map[string]any{"k": "dial", "d": map[string]any{"t": "nonsense"}})),
		"an errno of 64 bits":        framed([]byte{0xa1, 0x61, 'n', 0x1b, 1, 0, 0, 0, 0, 0, 0, 0}),
		"fewer bytes than announced": {0, 0, 0, 10, 0xa0},
	} {
		into := any(new(Open))
		if strings.Contains(name, "errno") {
			into = new(Reply)
		}
		if err := Read(bytes.NewReader(b), into); err == nil {
			t.Errorf("%s: read as %+v", name, into)
		}
	}
}

func encoded(t *testing.T, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAMessageThatIsTooLargeIsNotSent(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, &Event{Text: strings.Repeat("x", MaxMessage)}); err == nil || b.Len() != 0 {
		t.Errorf("%v, %d bytes were sent", err, b.Len())
	}
	if err := Write(&b, make(chan int)); err == nil || b.Len() != 0 {
		t.Errorf("a channel: %v, %d bytes", err, b.Len())
	}
	if err := Write(&b, &Event{Text: strings.Repeat("x", MaxMessage-100)}); err != nil {
		t.Error(err)
	}
}

func TestDatagramsComeAsTheyWereSent(t *testing.T) {
	payloads := [][]byte{nil, {0}, []byte("hello"), bytes.Repeat([]byte{0xff}, 5000), bytes.Repeat([]byte{7}, MaxDatagram)}
	var plain, addressed []byte
	for i, p := range payloads {
		to := at4
		if i%2 == 1 {
			to = at6
		}
		plain = AppendErrno(AppendDatagram(plain, p), uint16(100+i))
		addressed = AppendPacketErrno(AppendPacket(addressed, to, p), to, uint16(100+i))
	}
	buf := make([]byte, MaxDatagram)
	r, ra := bytes.NewReader(plain), bytes.NewReader(addressed)
	d, da := Datagrams{R: bytes.NewReader(plain)}, Datagrams{R: bytes.NewReader(addressed)}
	for i, p := range payloads {
		to := at4
		if i%2 == 1 {
			to = at6
		}
		for _, errno := range []uint16{0, uint16(100 + i)} {
			if errno != 0 {
				p = nil
			}
			n, e, err := ReadDatagram(r, buf)
			if err != nil || e != errno || !bytes.Equal(buf[:n], p) {
				t.Errorf("datagram %d: %d bytes, errno %d, %v", i, n, e, err)
			}
			a, n, e, err := ReadPacket(ra, buf)
			if err != nil || e != errno || a != to || !bytes.Equal(buf[:n], p) {
				t.Errorf("packet %d: from %v, %d bytes, errno %d, %v", i, a, n, e, err)
			}
			b, e, err := d.Next()
			if err != nil || e != errno || !bytes.Equal(b, p) {
				t.Errorf("next datagram %d: %d bytes, errno %d, %v", i, len(b), e, err)
			}
			a, b, e, err = da.NextPacket()
			if err != nil || e != errno || a != to || !bytes.Equal(b, p) {
				t.Errorf("next packet %d: from %v, %d bytes, errno %d, %v", i, a, len(b), e, err)
			}
		}
	}
	for name, err := range map[string]error{
		"ReadDatagram": func() error { _, _, err := ReadDatagram(r, buf); return err }(),
		"ReadPacket":   func() error { _, _, _, err := ReadPacket(ra, buf); return err }(),
		"Next":         func() error { _, _, err := d.Next(); return err }(),
		"NextPacket":   func() error { _, _, _, err := da.NextPacket(); return err }(),
	} {
		if err != io.EOF {
			t.Errorf("%s at the end: %v", name, err)
		}
	}
	if len(d.buf) > keepDatagram {
		t.Errorf("%d bytes are kept between datagrams", len(d.buf))
	}
}

func TestADatagramThatEndsEarlyOrIsTooLongIsAnError(t *testing.T) {
	whole := AppendPacket(nil, at4, []byte("hello"))
	for n := 1; n < len(whole); n++ {
		if _, _, _, err := ReadPacket(bytes.NewReader(whole[:n]), make([]byte, MaxDatagram)); err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes of a packet: %v", n, err)
		}
		d := Datagrams{R: bytes.NewReader(whole[:n])}
		if _, _, _, err := d.NextPacket(); err != io.ErrUnexpectedEOF {
			t.Errorf("%d bytes of a packet by NextPacket: %v", n, err)
		}
	}
	for size := MaxDatagram + 1; size < errnoMark; size += 13 {
		b := binary.BigEndian.AppendUint16(nil, uint16(size))
		if _, _, err := ReadDatagram(bytes.NewReader(append(b, make([]byte, size)...)), make([]byte, MaxDatagram)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a datagram of %d bytes: %v", size, err)
		}
		d := Datagrams{R: bytes.NewReader(append(b, make([]byte, size)...))}
		if _, _, err := d.Next(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a datagram of %d bytes by Next: %v", size, err)
		}
	}
}

func TestFileRequestsAndAnswersComeAsTheyWereSent(t *testing.T) {
	q := FileRequest{ID: 1 << 31, Op: FileRead, Handle: 1 << 63, Offset: 1 << 62, Count: MaxFileRead, Path: "/a b/\xff"}
	got, err := ReadFileRequest(iotest.OneByteReader(bytes.NewReader(AppendFileRequest(nil, &q))))
	if err != nil || got != q {
		t.Errorf("%+v, %v", got, err)
	}
	entries := []Entry{
		{Name: "a", Attr: Attr{1, 2, 3, 4, 5, 6, 7, 8, -9, 10, 1 << 62}},
		{Name: strings.Repeat("n", maxEntryName)},
		{Name: "\xff..", Attr: Attr{Ino: 1 << 63}},
	}
	b := BeginFileAnswer([]byte{}, 5, 0)
	for i := range entries {
		b = AppendEntry(b, &entries[i])
	}
	r := bytes.NewReader(EndFileAnswer(b))
	id, errno, size, err := ReadFileAnswerHead(r)
	if id != 5 || errno != 0 || size != r.Len() || err != nil {
		t.Fatal(id, errno, size, err)
	}
	body, _ := io.ReadAll(r)
	list, err := ParseEntries(body)
	if diff := cmp.Diff(entries, list); err != nil || diff != "" {
		t.Errorf("%v -sent +read:\n%s", err, diff)
	}
	for n := range body {
		switch list, err := ParseEntries(body[:n]); {
		case err == nil && (len(list) == 0) != (n == 0):
			t.Errorf("%d bytes are %d entries", n, len(list))
		case err != nil && list != nil:
			t.Errorf("%d bytes: an error and %d entries", n, len(list))
		}
	}
}

func TestANameThatIsNoneIsNoEntry(t *testing.T) {
	for _, name := range []string{"", ".", "..", "/", "a/b", "../x", "a\x00b", strings.Repeat("n", maxEntryName+1)} {
		if list, err := ParseEntries(AppendEntry(nil, &Entry{Name: name})); err == nil {
			t.Errorf("%q is an entry: %+v", name, list)
		}
	}
}

func TestHostileFileMessagesAreErrors(t *testing.T) {
	long := FileRequest{Path: strings.Repeat("x", MaxFilePath+1)}
	for name, b := range map[string][]byte{
		"a request of no size":      {0, 0, 0, 0},
		"a request that is short":   binary.BigEndian.AppendUint32(nil, requestHead-1),
		"a request of 4 GiB":        {0xff, 0xff, 0xff, 0xff},
		"a path that is too long":   AppendFileRequest(nil, &long),
		"a request that ends early": AppendFileRequest(nil, &FileRequest{Path: "/x"})[:20],
	} {
		if q, err := ReadFileRequest(bytes.NewReader(b)); err == nil || err == io.EOF {
			t.Errorf("%s: %+v, %v", name, q, err)
		}
	}
	for name, n := range map[string]uint32{"short": answerHead - 1, "larger than any": answerHead + MaxFileBody + 1, "of 4 GiB": 1<<32 - 1} {
		if _, _, _, err := ReadFileAnswerHead(bytes.NewReader(append(binary.BigEndian.AppendUint32(nil, n), make([]byte, answerHead)...))); err == nil {
			t.Errorf("an answer that is %s", name)
		}
	}
}

func TestALengthAloneTakesNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		var o Open
		if err := Read(bytes.NewReader([]byte{0, MaxMessage >> 16 & 0xff, 0, 0, 0xa0}), &o); err != io.ErrUnexpectedEOF {
			t.Error(err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("ten cost %d bytes", n)
	}
}

// fuzzed reads messages until the input's end or an error, into no more memory than the input justifies.
func fuzzed(t *testing.T, b []byte, read func(r io.Reader) error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := bytes.NewReader(b)
	for left := r.Len(); ; left = r.Len() {
		err := read(r)
		if err == nil && r.Len() >= left {
			t.Fatal("a message was made of nothing")
		}
		if err != nil {
			break
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > uint64(1000*len(b))+256<<10+1<<20 {
		t.Errorf("%d bytes of input took %d bytes of memory", len(b), used)
	}
}

func seeds(f *testing.F, more ...[]byte) {
	for _, b := range more {
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
}

func FuzzMessages(f *testing.F) {
	for _, m := range messages {
		b, err := Append(nil, m.sent)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	seeds(f, framed(bytes.Repeat([]byte{0x9f}, 100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []func() any{func() any { return new(Open) }, func() any { return new(Welcome) }, func() any { return new(Reply) }, func() any { return new(Event) }, func() any { return new(Status) }} {
			fuzzed(t, b, func(r io.Reader) error {
				v := into()
				if err := Read(r, v); err != nil {
					return err
				}
				// What was read can be sent, and is the same then.
				again, err := Append(nil, v)
				if err != nil {
					t.Fatalf("%+v was read and cannot be sent: %v", v, err)
				}
				w := into()
				if err := Read(bytes.NewReader(again), w); err != nil {
					t.Fatalf("%+v: %v", v, err)
				}
				if a, b := fmt.Sprintf("%+v", v), fmt.Sprintf("%+v", w); len(a) != len(b) {
					t.Fatalf("%s became %s", a, b)
				}
				return nil
			})
		}
	})
}

func FuzzDatagrams(f *testing.F) {
	seeds(f, AppendPacket(nil, at4, []byte("hello")), AppendPacketErrno(nil, at6, 111), AppendErrno(AppendDatagram(nil, []byte("x")), 5))
	f.Fuzz(func(t *testing.T, b []byte) {
		buf := make([]byte, MaxDatagram)
		// Both readers read the same.
		d := Datagrams{R: bytes.NewReader(b)}
		fuzzed(t, b, func(r io.Reader) error {
			n, errno, err := ReadDatagram(r, buf)
			p, e, derr := d.Next()
			if !bytes.Equal(p, buf[:n]) || errno != e || (err == nil) != (derr == nil) {
				t.Fatalf("ReadDatagram: %d bytes, %d, %v; Next: %d bytes, %d, %v", n, errno, err, len(p), e, derr)
			}
			return err
		})
		d = Datagrams{R: bytes.NewReader(b)}
		fuzzed(t, b, func(r io.Reader) error {
			a, n, errno, err := ReadPacket(r, buf)
			da, p, e, derr := d.NextPacket()
			if err == nil && (!bytes.Equal(p, buf[:n]) || a != da || errno != e) || (err == nil) != (derr == nil) {
				t.Fatalf("ReadPacket: %v, %d bytes, %d, %v; NextPacket: %v, %d bytes, %d, %v", a, n, errno, err, da, len(p), e, derr)
			}
			return err
		})
	})
}

func FuzzFileRequests(f *testing.F) {
	seeds(f, AppendFileRequest(nil, &FileRequest{ID: 1, Op: FileOpen, Path: "/etc/hosts"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzed(t, b, func(r io.Reader) error {
			q, err := ReadFileRequest(r)
			if err == nil {
				if again, err := ReadFileRequest(bytes.NewReader(AppendFileRequest(nil, &q))); err != nil || again != q {
					t.Fatalf("%+v became %+v, %v", q, again, err)
				}
			}
			return err
		})
	})
}

func FuzzFileAnswers(f *testing.F) {
	seeds(f, EndFileAnswer(AppendEntry(BeginFileAnswer(nil, 1, 0), &Entry{Name: "x"})))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzed(t, b, func(r io.Reader) error {
			_, _, size, err := ReadFileAnswerHead(r)
			if err == nil && (size < 0 || size > MaxFileBody) {
				t.Fatalf("a body of %d bytes", size)
			}
			return err
		})
		if a, rest, err := ParseAttr(b); err == nil && !bytes.Equal(append(AppendAttr(nil, &a), rest...), b) {
			t.Fatalf("%+v", a)
		}
		list, err := ParseEntries(b)
		if err != nil {
			return
		}
		var again []byte
		for i := range list {
			again = AppendEntry(again, &list[i])
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%+v", list)
		}
	})
}
