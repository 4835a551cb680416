package policy

import (
	"path"
	"slices"
	"strings"
)

// neverImport are the variables of the pod that would break a program on the laptop: they name
// places of the pod's file system that stay on the laptop, or the laptop's user and terminal. A
// trailing * stands for any ending.
var neverImport = []string{
	// where programs, libraries and modules of the laptop are found
	"PATH", "LD_*", "DYLD_*", "MANPATH", "PKG_CONFIG_PATH", "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH",
	"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_*", "PYENV_*",
	"GOPATH", "GOROOT", "GOBIN", "GOCACHE", "GOMODCACHE", "GOENV", "GOFLAGS", "GOTOOLDIR", "GOTOOLCHAIN",
	"JAVA_HOME", "JRE_HOME", "JAVA_VERSION", "CLASSPATH", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS",
	"MAVEN_*", "M2_HOME", "GRADLE_*",
	"NODE_PATH", "NODE_OPTIONS", "NVM_*", "NPM_CONFIG_*", "npm_config_*", "YARN_*",
	"GEM_HOME", "GEM_PATH", "BUNDLE_*", "RUBYLIB", "RUBYOPT", "PERL5LIB", "PERLLIB", "PHPRC", "PHP_INI_*",
	"CARGO_HOME", "RUSTUP_*", "DOTNET_ROOT", "NUGET_*",
	// whose session it is
	"HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "_", "MAIL", "TMPDIR", "TEMP", "TMP",
	"TERM", "TERMINFO", "COLORTERM", "DISPLAY", "WAYLAND_DISPLAY", "SSH_*", "XDG_*", "DBUS_*", "LS_COLORS",
	"HOSTTYPE", "MACHTYPE", "OSTYPE", "BASH_ENV", "ENV", "IFS", "PROMPT_COMMAND",
	// what a container's tools use for themselves
	"GODEBUG", "GOTRACEBACK", "GOMAXPROCS", "GOMEMLIMIT", "GOGC", "STEAD_*",
}

// Imported says whether the pod's variable key is shown to the program.
func Imported(key string) bool {
	return !slices.ContainsFunc(neverImport, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(key, prefix)
		}
		return key == p
	})
}

// trusted are variables of the laptop that name the certificates which its programs trust.
var trusted = []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
	"GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "PIP_CERT", "HTTPLIB2_CA_CERTS", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"}

// Environment lays the pod's variables over the laptop's. Both are KEY=value lists; of a key that
// stands twice the first counts, as getenv(3) has it. The result is in the laptop's order with the
// pod's further keys after it. A variable of the laptop's that names certificates is left out where
// paths (nil: none) has the pod's file at that path, or none at all: the pod's programs trust without it.
func Environment(laptop, pod []string, paths *Paths) []string {
	from := make(map[string]string, len(pod))
	var order []string
	for _, kv := range pod {
		key, _, ok := strings.Cut(kv, "=")
		if !ok || key == "" || !Imported(key) {
			continue
		}
		if _, again := from[key]; !again {
			from[key] = kv
			order = append(order, key)
		}
	}
	out := make([]string, 0, len(laptop)+len(order))
	for _, kv := range laptop {
		key, _, _ := strings.Cut(kv, "=")
		if v, ok := from[key]; ok {
			out = append(out, v)
			delete(from, key)
			continue
		}
		if slices.Contains(trusted, key) && paths != nil {
			if w, _ := paths.Decide(path.Clean(strings.TrimPrefix(kv, key+"="))); w == Pod {
				continue
			}
		}
		out = append(out, kv)
	}
	for _, key := range order {
		if v, ok := from[key]; ok {
			out = append(out, v)
		}
	}
	return out
}
