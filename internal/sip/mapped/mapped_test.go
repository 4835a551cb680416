package mapped

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func open(t *testing.T, size int) (f *File, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, size), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, path
}

func TestTheBytesOfAFileAreThere(t *testing.T) {
	for _, size := range []int{0, 1, 4096, 100_000} {
		f, _ := open(t, size)
		if !bytes.Equal(f.Data, bytes.Repeat([]byte{7}, size)) || f.Info.Size() != int64(size) {
			t.Errorf("%d bytes of %d", len(f.Data), size)
		}
		if err := f.Close(); err != nil || f.Data != nil {
			t.Errorf("close: %v", err)
		}
	}
}

func TestAFileThatIsCutWhileItIsReadIsAnError(t *testing.T) {
	f, path := open(t, 64<<10)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	sum := 0
	err := f.Guard(func() {
		for _, b := range f.Data {
			sum += int(b)
		}
	})
	if !errors.Is(err, ErrChanged) {
		t.Errorf("error: %v", err)
	}
	if sum < 700 {
		t.Errorf("what is left of the file was not read: %d", sum)
	}
	if err := f.Guard(func() { sum = int(f.Data[0]) }); err != nil || sum != 7 {
		t.Errorf("%d, %v", sum, err)
	}
}

func TestAPanicOfAnotherCauseGoesOn(t *testing.T) {
	f, _ := open(t, 10)
	for name, fn := range map[string]func(){
		"an index":  func() { _ = f.Data[len(f.Data)] },
		"a nil":     func() { var p *int; *p = 1 },
		"one's own": func() { panic("own") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f.Guard(fn)
		}()
	}
}

func TestAPipeDoesNotHoldAnybodyUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		f, err := Open(path)
		if err == nil && f.Data != nil {
			err = errors.New("a pipe has bytes")
		}
		if err == nil {
			err = f.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still waiting for somebody to write")
	}
}
