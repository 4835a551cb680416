// Package sip finds macOS programs that drop DYLD_INSERT_LIBRARIES, and makes copies of them that
// do not: programs with the restricted file flag, programs whose signature has the hardened
// runtime without leave for DYLD_ variables, and scripts whose first line leads through such a
// program.
//
// Everything works on bytes and runs on every system; the one macOS call is the reading of a file
// flag, behind FileFlags. Inspect tells, Patch makes a copy, Runnable does both, StripPrefix leads
// back from a copy to its original.
//
// Rooms: macho reads the format, codesign reads and writes signatures, entitlement and shebang
// read what their names say, mapped maps files. In this package decisions are pure (judge.go,
// edit.go), and only store.go and patch.go write.
package sip

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sip/macho"
)

// Version is part of every cached copy's key. It changes whenever the same input would give other
// bytes.
const Version = 1

// Options of New. The zero value is that of this process on this machine.
type Options struct {
	Cache string    // directory of the copies; default: stead/sip in the user's cache directory
	Host  macho.CPU // CPU of the machine that runs the program; default: this one's on macOS, else arm64
	Env   []string  // environment that the program will have (KEY=value); nil: this process's
	Dir   string    // working directory that the program will have; default: this process's
	Flags FileFlags // default: the system's
	Skip  []string  // paths or base names of files that are never copied
	Only  []string  // when not empty: paths or base names of the only files that are copied
}

// FileFlags reads the file flag SF_RESTRICTED, not following symlinks. Where it cannot be known
// the error is errors.ErrUnsupported.
type FileFlags interface {
	Restricted(path string) (bool, error)
}

// Patcher inspects and patches. It is not changed after New; many goroutines may use it, and many
// processes may have one on the same cache.
type Patcher struct {
	o     Options
	store store
	strip *regexp.Regexp // what StripPrefix takes off, at the beginning of a path
}

// New checks the options and fills in the defaults. It makes no file.
func New(o Options) (*Patcher, error) {
	var err error
	if o.Cache == "" {
		if o.Cache, err = os.UserCacheDir(); err != nil {
			return nil, fault.With(fmt.Errorf("directory for patched copies: %w", err), "stead sip --cache DIR")
		}
		o.Cache = filepath.Join(o.Cache, "stead", "sip")
	}
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return nil, fmt.Errorf("directory for patched copies: %w", err)
	}
	if o.Dir == "" {
		if o.Dir, err = os.Getwd(); err != nil {
			return nil, fmt.Errorf("working directory: %w", err)
		}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("working directory: %w", err)
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	if o.Host == 0 {
		o.Host = macho.ARM64
		if runtime.GOOS == "darwin" && runtime.GOARCH == "amd64" {
			o.Host = macho.X86_64
		}
	}
	if o.Flags == nil {
		o.Flags = systemFlags{}
	}
	p := &Patcher{o: o, store: store{dir: o.Cache}}
	// The kernel tells paths with symlinks resolved (/var is /private/var).
	dirs := regexp.QuoteMeta(o.Cache)
	if real, err := filepath.EvalSymlinks(o.Cache); err == nil && real != o.Cache {
		dirs += "|" + regexp.QuoteMeta(real)
	}
	p.strip, err = regexp.Compile(`(?:` + dirs + `)/v[0-9]+/[0-9a-f]{32}(/|$)`)
	return p, err
}

// StripPrefix returns the original's path for a path of a copy, or below a copy's directories, and
// any other path as it is.
func (p *Patcher) StripPrefix(path string) string {
	if i := p.strip.FindStringIndex(path); i != nil && i[0] == 0 {
		return "/" + path[i[1]:]
	}
	return path
}

// StripArgv is StripPrefix for the arguments of a program, where a path may also stand after
// something else (--config=PATH, PATH:PATH). It returns argv itself where there is none.
func (p *Patcher) StripArgv(argv []string) []string {
	var out []string
	for i, a := range argv {
		if !strings.Contains(a, "/v") || !p.strip.MatchString(a) {
			continue
		}
		if out == nil {
			out = append(out, argv...)
		}
		out[i] = p.strip.ReplaceAllString(a, "/")
	}
	if out == nil {
		return argv
	}
	return out
}

// wanted tells whether the lists let a program be copied that is known by these paths. Skip
// counts for each file of a chain; Only for a chain as a whole.
func wanted(list []string, paths ...string) bool {
	for _, l := range list {
		for _, p := range paths {
			if l == p || !strings.Contains(l, "/") && l == filepath.Base(p) || filepath.IsAbs(l) && filepath.Clean(l) == p {
				return true
			}
		}
	}
	return false
}

// hinted are directories whose programs macOS protects. Only the file flag decides; this is told
// where it cannot be read.
func hinted(path string) string {
	if strings.HasPrefix(path, "/usr/local/") {
		return ""
	}
	for _, d := range []string{"/bin", "/sbin", "/usr", "/System", "/Applications/Safari.app", "/Applications/Utilities"} {
		if strings.HasPrefix(path, d+"/") {
			return d
		}
	}
	return ""
}
