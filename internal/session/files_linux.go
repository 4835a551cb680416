package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/intercept/mountns"
	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/podfs"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/wire"
)

// files is the room of the pod's files: it decides which door is used and serves it.
type files struct {
	run    *run
	client *podfs.Client
	paths  *policy.Paths
	fs     *podfs.FS

	overlay podfs.Overlay
	binds   []mountns.Bind

	root bool  // CAP_SYS_ADMIN is held: no user namespace is needed
	tree *tree // the trap's

	copies *podfs.Copies
	place  *launch.Place // of the copies
}

// planFiles finds out what stays on the laptop, for a program whose file is path. It asks the pod nothing.
func planFiles(s *run, program string) *files {
	f := &files{run: s, root: launch.Admin()}
	if s.o.Files.Door == DoorNone {
		return f
	}
	home, _ := os.UserHomeDir()
	f.paths = policy.NewPaths(policy.PathInput{
		WorkDir: s.o.Dir, Home: home, ProgramDirs: programDirs(program, s.o.Dir), Env: s.o.Env,
		Laptop: s.o.Files.Laptop, Pod: s.o.Files.Pod,
		Glob: func(pattern string) []string { m, _ := filepath.Glob(pattern); return m },
	})
	f.overlay, f.binds = f.furnish()
	return f
}

// programDirs are the directories in which a program is: by its name, and where links lead from there.
func programDirs(program, dir string) (dirs []string) {
	for range 40 {
		if !filepath.IsAbs(program) {
			program = filepath.Join(dir, program)
		}
		dir = filepath.Dir(program)
		dirs = append(dirs, dir)
		to, err := os.Readlink(program)
		if err != nil {
			break
		}
		program = to
	}
	if real, err := filepath.EvalSymlinks(program); err == nil {
		dirs = append(dirs, filepath.Dir(real))
	}
	return dirs
}

// open opens the pod's files and adds to the plan what is made of them.
func (f *files) open() error {
	if f.paths == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	f.client = podfs.NewClient(f.run.pods.Files)
	if err := f.client.Connect(ctx); err != nil {
		return fmt.Errorf("ask for the pod's files: %w", err)
	}
	f.makeUp(f.overlay)
	return nil
}

// move is called when another pod is stood for.
func (f *files) move() {
	if f.client != nil {
		f.client.Move()
	}
	if f.fs != nil {
		f.fs.Moved()
	}
	if f.copies != nil {
		f.copies.Moved()
	}
}

func (f *files) close() {
	if f.client != nil {
		f.client.Close()
	}
	if f.copies != nil {
		f.copies.Wait()
	}
	if f.place != nil {
		f.place.Close()
	} else if f.tree != nil {
		unix.Close(f.tree.root)
	}
	if f.fs == nil {
		return
	}
	gone := make(chan struct{})
	go func() { f.fs.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(fsEnd): // somebody to whom the program gave a descriptor still has it
	}
}

// askTime bounds what is asked of the pod before the program starts.
const askTime = 10 * time.Second

// fsEnd bounds the wait for the last descriptor of the pod's tree.
const fsEnd = 2 * time.Second

// mount fills in the spec of a launch through the mount namespace.
func (f *files) mount(spec *launch.Spec) error {
	f.fs = podfs.New(f.client, podfs.Options{Overlay: f.overlay, Owner: f.owner(), Furnish: true})
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	f.fs.Ask(ctx)
	spec.Mount = &mountns.Plan{Binds: f.binds, WorkDir: f.run.o.Dir, UID: os.Getuid(), GID: os.Getgid()}
	spec.ServeFUSE = f.fs.Serve
	return nil
}

// owner is whose the files are shown as: in a user namespace other ids would be shown as nobody.
func (f *files) owner() *fuse.Owner {
	if f.root {
		return nil
	}
	return &fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
}

// trap fills in the spec of a launch whose path calls are trapped.
func (f *files) trap(spec *launch.Spec, t *wire.Target) error {
	o := f.trapped(spec, t)
	f.fs = podfs.New(f.client, o)
	dev, root, err := launch.DetachedTree()
	if err != nil {
		f.fs = nil
		return err
	}
	f.tree.root = root
	if err := f.fs.Serve(dev); err != nil {
		f.fs = nil
		return err
	}
	return nil
}

// copy fills in the spec of a launch whose path calls are trapped and whose files are copied.
func (f *files) copy(spec *launch.Spec, t *wire.Target) (err error) {
	o := f.trapped(spec, t)
	if os.Geteuid() == 0 {
		o.Owner = nil // owners can be set
	}
	if f.place, err = f.run.proc.Place(); err != nil {
		return err
	}
	f.tree.root = f.place.Root
	f.copies, err = podfs.NewCopies(podfs.New(f.client, o), f.place.Root, func(name string, size uint64) {
		f.run.trouble(fault.With(fmt.Errorf("%s of the pod's (%d MiB) is too large to be copied, so it cannot be opened (%w)", name, size>>20, unix.EFBIG),
			"give this machine /dev/fuse (sudo modprobe fuse; in a container: --device /dev/fuse)"))
	})
	spec.Filter.Copies = true
	return err
}

// trapped prepares the tree of a launch whose path calls are trapped.
func (f *files) trapped(spec *launch.Spec, t *wire.Target) podfs.Options {
	overlay, binds := maps.Clone(f.overlay), f.binds
	f.tree = &tree{laptop: make(map[string]bool, len(binds)), root: -1}
	o := podfs.Options{Overlay: overlay, Owner: f.owner()}
	for p, v := range overlay {
		if v.Link != "" {
			f.tree.laptop[p] = true
		}
	}
	for _, b := range binds {
		f.tree.laptop[b.Path] = !b.Pod
		if b.Pod {
			o.Pods = append(o.Pods, b.Path)
			continue
		}
		v := overlay[b.Path]
		v.Laptop = true
		overlay[b.Path] = v
	}
	if !f.root { // then it has no UTS namespace
		spec.Filter.Uname = true
		for name, text := range map[string]string{"hostname": t.Hostname, "domainname": t.Domain} {
			p := "/proc/sys/kernel/" + name
			overlay[p] = podfs.Virtual{Data: []byte(text + "\n")}
			f.tree.laptop[p] = false
			o.Pods = append(o.Pods, p)
		}
	}
	spec.Filter.Paths = true
	return o
}

// copyTree is the pod's tree of copies, an intercept.Copies.
type copyTree struct {
	*tree
	*podfs.Copies
}

func (t copyTree) Root() int { return t.tree.Root() }

func (t copyTree) Known(dev, ino uint64) (string, intercept.Attr, bool) {
	p, a, ok := t.Copies.Known(dev, ino)
	return p, intercept.Attr(a), ok
}

// tree is the pod's tree for trapped path calls, an intercept.Tree.
type tree struct {
	root   int
	laptop map[string]bool // borders: true where what is below is the laptop's, false where the pod's
}

func (t *tree) Root() int { return t.root }

func (t *tree) Other(p string) bool {
	for len(p) > 1 {
		if l, ok := t.laptop[p]; ok {
			return !l
		}
		p = p[:strings.LastIndexByte(p, '/')]
	}
	return !t.laptop["/"]
}

// furnish turns the policy into what is laid over the pod's tree: names that must be there, and
// binds. A path of the laptop's that is a link, or leads through one, becomes that link, and where
// it leads is bound.
func (f *files) furnish() (podfs.Overlay, []mountns.Bind) {
	overlay := podfs.Overlay{}
	var binds []mountns.Bind
	bound := map[string]bool{}
	var bind func(p string, depth int)
	bind = func(p string, depth int) {
		if bound[p] || depth > 16 {
			return
		}
		at := "/"
		for _, part := range strings.Split(strings.Trim(p, "/"), "/") {
			rest := strings.TrimPrefix(p, filepath.Join(at, part))
			at = filepath.Join(at, part)
			st, err := os.Lstat(at)
			if err != nil {
				return // the laptop has no such thing
			}
			if st.Mode()&os.ModeSymlink == 0 {
				continue
			}
			to, err := os.Readlink(at)
			if err != nil {
				return
			}
			overlay[at] = podfs.Virtual{Link: to}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(at), to)
			}
			bind(filepath.Join(to, rest), depth+1)
			return
		}
		for b := range bound { // below a tree that is bound already
			if strings.HasPrefix(p, b+"/") && depth > 0 {
				return
			}
		}
		st, err := os.Stat(p)
		if err != nil {
			return
		}
		overlay[p] = podfs.Virtual{Dir: st.IsDir()}
		bound[p] = true
		binds = append(binds, mountns.Bind{Path: p})
	}
	for _, b := range f.paths.Binds() {
		if b.Where == policy.Laptop {
			bind(b.Path, 0)
			if _, err := os.Lstat(b.Path); err != nil && b.Always {
				overlay[b.Path] = podfs.Virtual{Absent: true}
			}
			continue
		}
		if _, err := os.Lstat(b.Path); err != nil {
			f.run.trouble(fault.With(fmt.Errorf("%s cannot be shown from the pod: the laptop has no such path to lay it over", b.Path), "mkdir -p "+b.Path))
			continue
		}
		binds = append(binds, mountns.Bind{Path: b.Path, Pod: true})
	}
	return overlay, slices.DeleteFunc(binds, func(b mountns.Bind) bool { return hidden(b, binds) })
}

// hidden says whether a tree of the laptop's is shown already by one above it.
func hidden(b mountns.Bind, all []mountns.Bind) bool {
	above, found := mountns.Bind{}, false
	for _, o := range all {
		if strings.HasPrefix(b.Path, o.Path+"/") && len(o.Path) > len(above.Path) {
			above, found = o, true
		}
	}
	return found && !b.Pod && !above.Pod
}

// makeUp adds the small files that are neither's.
func (f *files) makeUp(overlay podfs.Overlay) {
	put := func(name string, data []byte) {
		if w, _ := f.paths.Decide(name); w == policy.Pod && data != nil {
			overlay[name] = podfs.Virtual{Data: data}
		}
	}
	put("/etc/nsswitch.conf", []byte(policy.NSSwitch))
	u, err := user.Current()
	if err != nil {
		return
	}
	group := make(chan []byte)
	go func() {
		group <- f.withLine("/etc/group", u.Gid, func() string {
			name := u.Username
			if g, err := user.LookupGroupId(u.Gid); err == nil {
				name = g.Name
			}
			return fmt.Sprintf("%s:x:%s:", name, u.Gid)
		})
	}()
	put("/etc/passwd", f.withLine("/etc/passwd", u.Uid, func() string {
		return fmt.Sprintf("%s:x:%s:%s::%s:/bin/sh", u.Username, u.Uid, u.Gid, u.HomeDir)
	}))
	put("/etc/group", <-group)
}

// withLine is the pod's file with a line for an id of the laptop's that it lacks; nil when it lacks
// none. A program that asks who it is must find an answer.
func (f *files) withLine(name, id string, line func() string) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	b, errno := f.client.ReadFile(ctx, name, 1<<20)
	if errno != 0 && errno != unix.ENOENT {
		return nil
	}
	for _, l := range strings.Split(string(b), "\n") {
		if fields := strings.Split(l, ":"); len(fields) > 2 && fields[2] == id {
			return nil
		}
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return append(b, line()+"\n"...)
}

// mountHint names what would open the mount namespace.
func mountHint(err error) string {
	read := func(name string) int {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return -1
		}
		n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return n
	}
	switch {
	case errors.Is(err, unix.EMFILE):
		return ""
	case read("kernel/apparmor_restrict_unprivileged_userns") == 1:
		return "printf 'abi <abi/4.0>,\\nprofile stead /**/stead flags=(unconfined) {\\n userns,\\n}\\n' | sudo tee /etc/apparmor.d/stead && sudo systemctl reload apparmor (AppArmor forbids user namespaces to programs without a profile)"
	case read("user/max_user_namespaces") == 0:
		return "sudo sysctl user.max_user_namespaces=15000"
	case read("kernel/unprivileged_userns_clone") == 0:
		return "sudo sysctl kernel.unprivileged_userns_clone=1"
	}
	if _, serr := os.Stat("/dev/fuse"); serr != nil {
		return "sudo modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return "docker run --cap-add SYS_ADMIN --device /dev/fuse --security-opt seccomp=unconfined --security-opt apparmor=unconfined ... (in a container)"
	}
	return ""
}
