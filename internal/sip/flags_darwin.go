package sip

import (
	"errors"
	"os"
	"syscall"
)

const sfRestricted = 0x80000 // sys/stat.h

type systemFlags struct{}

func (systemFlags) Restricted(path string) (bool, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false, errors.ErrUnsupported
	}
	return st.Flags&sfRestricted != 0, nil
}
