package wire

import (
	"bytes"
	"io"
	"runtime"
	"testing"
)

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
