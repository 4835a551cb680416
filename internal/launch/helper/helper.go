// Package helper carries the small executable that starts programs (cmd/stead-launch) inside the
// CLI, where `make launcher` has put it here.
package helper

import "io/fs"

// Open opens the helper for this machine; fs.ErrNotExist where the build put none in.
func Open() (fs.File, error) { return carried.Open(dir + "/stead-launch") }
