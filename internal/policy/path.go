package policy

import (
	"path"
	"sort"
	"strings"
)

// Paths decides which paths are the laptop's: everything below the longest listed prefix follows
// its entry, and what no entry names is the pod's. It is made once, from the tables here and from
// what the laptop looks like, and not changed.
type Paths struct {
	rules []pathRule // longest first
}

type pathRule struct {
	path  string
	where Where
	why   string
}

// laptopPaths stay on the laptop in every session, each for its reason. A trailing * stands for
// any ending of the last element.
var laptopPaths = []struct{ path, why string }{
	{"/usr", "programs, libraries and interpreters"},
	{"/bin", "programs"},
	{"/sbin", "programs"},
	{"/lib", "libraries"},
	{"/lib32", "libraries"},
	{"/lib64", "libraries and the dynamic loader"},
	{"/libx32", "libraries"},
	{"/nix", "programs and libraries"},
	{"/gnu", "programs and libraries"},
	{"/snap", "programs and libraries"},
	{"/proc", "this machine's processes"},
	{"/sys", "this machine's devices"},
	{"/dev", "this machine's devices"},
	{"/tmp", "files of this session"},
	{"/var/tmp", "files of this session"},
	{"/run/user", "this user's sockets"},
	{"/etc/ld.so.cache", "the dynamic loader"},
	{"/etc/ld.so.conf", "the dynamic loader"},
	{"/etc/ld.so.conf.d", "the dynamic loader"},
	{"/etc/ld.so.preload", "the dynamic loader"},
	{"/etc/ld-musl-*", "the dynamic loader"},
	{"/etc/locale.alias", "the C library's own settings"},
	{"/etc/alternatives", "links to programs"},
	{"/etc/bash.bashrc", "the shell's own settings"},
	{"/etc/profile", "the shell's own settings"},
	{"/etc/profile.d", "the shell's own settings"},
	{"/etc/zsh", "the shell's own settings"},
	{"/etc/pam.conf", "logins' own settings"},
	{"/etc/pam.d", "logins' own settings"},
	{"/etc/security", "logins' own settings"},
	{"/etc/sudoers", "logins' own settings"},
	{"/etc/sudoers.d", "logins' own settings"},
	{"/etc/gitconfig", "Git's own settings"},
	{"/etc/java*", "Java's own settings"},
	{"/etc/ssl/certs/java", "Java's own settings"},
	{"/etc/pki/java", "Java's own settings"},
	{"/etc/pki/ca-trust/extracted/java", "Java's own settings"},
	{"/etc/maven", "Maven's own settings"},
	{"/etc/ssl/openssl.cnf", "OpenSSL's own settings"},
	{"/etc/python*", "Python's own settings"},
	{"/etc/pip.conf", "Python's own settings"},
	{"/etc/R", "R's own settings"},
	{"/etc/gdb", "the debugger's own settings"},
	{"/etc/vim", "the editor's own settings"},
	{"/etc/perl", "Perl's own settings"},
	{"/etc/php", "PHP's own settings"},
	{"/etc/nodejs", "Node's own settings"},
	{"/etc/npmrc", "Node's own settings"},
	{"/etc/dotnet", ".NET's own settings"},
	{"/etc/gemrc", "Ruby's own settings"},
	{"/etc/mono", "Mono's own settings"},
	{"/etc/terminfo", "the terminal"},
	{"/etc/inputrc", "the terminal"},
	{"/etc/fonts", "fonts of this machine"},
	{"/etc/mime.types", "interpreters' own tables"},
	{"/etc/localtime", "the time zone of this machine"},
	{"/etc/timezone", "the time zone of this machine"},
}

// laptopAlways are those of them that are not there when the laptop has none, whatever the pod has:
// the laptop's loader cannot load what the pod's is told to.
var laptopAlways = map[string]bool{"/etc/ld.so.preload": true}

// NSSwitch is what the program reads as /etc/nsswitch.conf: names come from the pod's hosts file
// and nameservers, and from no daemon of the laptop's.
const NSSwitch = `passwd:         files
group:          files
shadow:         files
hosts:          files dns
networks:       files
protocols:      files
services:       files
ethers:         files
rpc:            files
netgroup:       files
`

// PathInput is what Paths is made of: the session's own places.
type PathInput struct {
	WorkDir, Home string
	ProgramDirs   []string              // in which the program is, by each of its names
	Env           []string              // the laptop's
	Laptop, Pod   []string              // the user's rules
	Glob          func(string) []string // the laptop's paths that match a pattern ending in *
}

// ownDirs are variables of the laptop that name a directory of its tools.
var ownDirs = []string{"TMPDIR", "XDG_RUNTIME_DIR", "GOROOT", "GOPATH", "GOCACHE", "GOMODCACHE", "JAVA_HOME", "PYENV_ROOT", "VIRTUAL_ENV",
	"CONDA_PREFIX", "NVM_DIR", "CARGO_HOME", "RUSTUP_HOME", "M2_HOME", "MAVEN_HOME", "GRADLE_HOME", "GRADLE_USER_HOME", "DOTNET_ROOT", "GEM_HOME", "SDKMAN_DIR"}

// NewPaths makes the decision table.
func NewPaths(in PathInput) *Paths {
	p := &Paths{}
	for _, r := range laptopPaths {
		if strings.HasSuffix(r.path, "*") {
			for _, m := range in.Glob(r.path) {
				p.add(m, Laptop, r.why)
			}
			continue
		}
		p.add(r.path, Laptop, r.why)
	}
	p.add(in.Home, Laptop, "the home directory")
	for _, kv := range in.Env {
		key, value, _ := strings.Cut(kv, "=")
		if key == "PATH" {
			for _, d := range strings.Split(value, ":") {
				if dir, ok := strings.CutSuffix(strings.TrimRight(d, "/"), "/bin"); ok && dir != "" && strings.Count(dir, "/") > 1 {
					d = dir
				}
				p.add(d, Laptop, "a directory of PATH")
			}
		}
		for _, own := range ownDirs {
			if key == own {
				p.add(value, Laptop, own)
			}
		}
	}
	for _, d := range in.ProgramDirs {
		p.add(d, Laptop, "the program's directory")
	}
	p.add(in.WorkDir, Laptop, "the working directory")
	for _, d := range in.Pod {
		p.add(d, Pod, "--files-pod")
	}
	for _, d := range in.Laptop {
		p.add(d, Laptop, "--files-laptop")
	}
	sort.SliceStable(p.rules, func(i, j int) bool { return len(p.rules[i].path) > len(p.rules[j].path) })
	return p
}

// add enters a rule; of two for one path the later counts. The root itself is nobody's rule but
// the user's.
func (p *Paths) add(name string, w Where, why string) {
	if !strings.HasPrefix(name, "/") {
		return
	}
	name = path.Clean(name)
	if name == "/" && !strings.HasPrefix(why, "--") {
		return
	}
	for i := range p.rules {
		if p.rules[i].path == name {
			p.rules[i].where, p.rules[i].why = w, why
			return
		}
	}
	p.rules = append(p.rules, pathRule{name, w, why})
}

// Decide says whose the absolute, clean path is, and why.
func (p *Paths) Decide(name string) (Where, string) {
	for _, r := range p.rules {
		if below(name, r.path) {
			return r.where, r.why
		}
	}
	return Pod, "all else is the pod's"
}

func below(name, dir string) bool {
	if dir == "/" {
		return true
	}
	return strings.HasPrefix(name, dir) && (len(name) == len(dir) || name[len(dir)] == '/')
}

// Binds returns the paths at which the other side's tree begins, parents before children: Laptop
// ones within the pod's tree, and Pod ones within those. A rule that changes nothing is left out.
func (p *Paths) Binds() (out []Bind) {
	for i := len(p.rules) - 1; i >= 0; i-- {
		r := p.rules[i]
		above := Pod
		for _, o := range p.rules[i+1:] {
			if o.path != r.path && below(r.path, o.path) {
				above = o.where
				break
			}
		}
		if above != r.where {
			out = append(out, Bind{Path: r.path, Where: r.where, Always: r.where == Laptop && laptopAlways[r.path]})
		}
	}
	return out
}

// Bind is a border between the two trees.
type Bind struct {
	Path   string
	Where  Where
	Always bool // a path of the laptop's that hides the pod's even where the laptop has none
}
