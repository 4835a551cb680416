// Package mapped maps files into memory to be read. A file that is cut while it is mapped makes
// the CPU fault; Guard turns that into an error instead of the end of the process.
package mapped

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrChanged is a file that was cut or could not be read while it was mapped.
var ErrChanged = errors.New("the file changed or could not be read while it was being read")

// File is an open file and its bytes. One goroutine closes it, when no other uses Data any more.
type File struct {
	*os.File
	Info os.FileInfo
	Data []byte // not to be written to; read it inside Guard
}

// Open maps a regular file. An empty file has no Data.
func Open(path string) (*File, error) {
	// Not blocking: a FIFO must not hold us up before we see that it is one.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	m := &File{File: f, Info: info}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return m, nil
	}
	if info.Size() != int64(int(info.Size())) {
		f.Close()
		return nil, fmt.Errorf("map %s: %d bytes", path, info.Size())
	}
	m.Data, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return m, nil
}

// Close unmaps and closes the file.
func (f *File) Close() error {
	var err error
	if f.Data != nil {
		err = unix.Munmap(f.Data)
		f.Data = nil
	}
	return errors.Join(err, f.File.Close())
}

// Guard runs fn, which reads f.Data in its own goroutine, and returns ErrChanged where those bytes
// are gone. Any other panic goes on.
func (f *File) Guard(fn func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		fault, ok := r.(interface{ Addr() uintptr })
		if !ok || !f.holds(fault.Addr()) {
			panic(r)
		}
		err = fmt.Errorf("%s: %w", f.Name(), ErrChanged)
	}()
	fn()
	return nil
}

func (f *File) holds(addr uintptr) bool {
	if len(f.Data) == 0 {
		return false
	}
	first := uintptr(unsafe.Pointer(unsafe.SliceData(f.Data)))
	return addr >= first && addr-first < uintptr(len(f.Data))
}
