package shebang_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/sip/shebang"
)

func TestTheFirstLineIsReadAsTheMacOSKernelReadsIt(t *testing.T) {
	long := "#!/" + strings.Repeat("x", shebang.MaxLine-4)
	for name, c := range map[string]struct {
		in    string
		words []string
		crlf  bool
		err   error
	}{
		"plain":                  {in: "#!/bin/sh\n", words: []string{"/bin/sh"}},
		"a space":                {in: "#! /bin/sh\n", words: []string{"/bin/sh"}},
		"tabs":                   {in: "#!\t/bin/sh\t-e\t\n", words: []string{"/bin/sh", "-e"}},
		"several arguments":      {in: "#!/usr/bin/env -S  node  --x\ncode", words: []string{"/usr/bin/env", "-S", "node", "--x"}},
		"no newline":             {in: "#!/bin/sh", words: []string{"/bin/sh"}},
		"a comment":              {in: "#!/bin/sh -e # why\n", words: []string{"/bin/sh", "-e"}},
		"a relative interpreter": {in: "#!bin/sh\n", words: []string{"bin/sh"}},
		"CRLF":                   {in: "#!/bin/sh\r\n", words: []string{"/bin/sh\r"}, crlf: true},
		"CRLF after an argument": {in: "#!/bin/sh -e\r\n", words: []string{"/bin/sh", "-e\r"}, crlf: true},
		"bytes over 127":         {in: "#!/bin/\xc3\xa4\xff\n", words: []string{"/bin/\xc3\xa4\xff"}},
		"the longest":            {in: long[:shebang.MaxLine-1] + "\n", words: []string{long[2 : shebang.MaxLine-1]}},
		"one byte too long":      {in: long + "x\n", err: shebang.ErrTooLong},
		"far too long":           {in: "#!/" + strings.Repeat("x", 10*shebang.MaxLine), err: shebang.ErrTooLong},
		"nothing":                {in: "#!\n/bin/sh", err: shebang.ErrEmpty},
		"blanks":                 {in: "#!  \t\n", err: shebang.ErrEmpty},
		"nothing and CRLF":       {in: "#!\r\n", err: shebang.ErrEmpty},
		"nothing at all":         {in: "#!", err: shebang.ErrEmpty},
		"a comment only":         {in: "#!# /bin/sh\n", err: shebang.ErrEmpty},
		"a NUL":                  {in: "#!/bin/sh\x00x\n", err: shebang.ErrNUL},
		"no script":              {in: "\x7fELF", err: shebang.ErrNone},
		"half of it":             {in: "#", err: shebang.ErrNone},
		"a blank before it":      {in: " #!/bin/sh\n", err: shebang.ErrNone},
		"a byte order mark":      {in: "\xef\xbb\xbf#!/bin/sh\n", err: shebang.ErrNone},
		"an empty file":          {in: "", err: shebang.ErrNone},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := shebang.Parse([]byte(c.in))
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if d := cmp.Diff(c.words, l.Words()); d != "" || l.CRLF != c.crlf {
				t.Errorf("CRLF %v, words %s", l.CRLF, d)
			}
			if line, _, _ := strings.Cut(c.in, "\n"); l.Len != len(line) {
				t.Errorf("%d bytes, the line has %d", l.Len, len(line))
			}
		})
	}
}

func TestTheArgumentsOfEnvAreReadAsTheMacOSEnvReadsThem(t *testing.T) {
	lookup := func(name string) string { return map[string]string{"HOME": "/Users/j", "V": "a b"}[name] }
	for in, want := range map[string]shebang.Env{
		"node":                      {Command: "node", Word: 0},
		"node -i -S x":              {Command: "node", Args: []string{"-i", "-S", "x"}, Word: 0},
		"-S node --x":               {Command: "node", Args: []string{"--x"}, Word: 1},
		"-Snode --x":                {Command: "node", Args: []string{"--x"}, Word: 0, Prefix: "-S"},
		"-iSnode":                   {Command: "node", Clear: true, Word: 0, Prefix: "-iS"},
		"-vS node":                  {Command: "node", Word: 1},
		"-S -i node":                {Command: "node", Clear: true, Word: 2},
		"-i - node":                 {Command: "node", Clear: true, Word: 2},
		"-- node":                   {Command: "node", Word: 1},
		"-u A -uB node":             {Command: "node", Unset: []string{"A", "B"}, Word: 3},
		"-P /opt:/x node":           {Command: "node", AltPath: "/opt:/x", Word: 2},
		"-C /tmp node":              {Command: "node", Dir: "/tmp", Word: 2},
		"A=1 B= node C=2":           {Command: "node", Set: []string{"A=1", "B="}, Args: []string{"C=2"}, Word: 2},
		"-i -- PATH=/x node":        {Command: "node", Clear: true, Set: []string{"PATH=/x"}, Word: 3},
		"=x y":                      {Command: "=x", Args: []string{"y"}, Word: 0},
		`-Snode\_--x y`:             {Command: "node", Args: []string{"--x", "y"}, Word: -1},
		`-S"node"`:                  {Command: "node", Word: -1},
		`-S'node'\_a`:               {Command: "node", Args: []string{"a"}, Word: -1},
		`-S${HOME}/bin/node`:        {Command: "/Users/j/bin/node", Word: -1},
		`-S"${V}"`:                  {Command: "a b", Word: -1},
		`-S'${V}'`:                  {Command: "${V}", Word: -1},
		`-S"a\_b"`:                  {Command: "a b", Word: -1},
		`-Snode\c-and-no-more x`:    {Command: "node", Args: []string{"x"}, Word: -1},
		`-Sa\tb\n\f\v\r\#\$\"\'\\c`: {Command: "a\tb\n\f\v\r#$\"'\\c", Word: -1},
		`-S'\'\\\x'`:                {Command: `'\\x`, Word: -1},
		"-S#comment node":           {Command: "node", Word: 1},
	} {
		t.Run(in, func(t *testing.T) {
			got, err := shebang.ParseEnv(strings.Fields(in), lookup)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
	for _, in := range []string{
		"", "-i", "-S", "-u", "A=1", "--", "-x node", "--help", `-S"node`, `-S'x y'`, `-S\q`, `-Sa\`, "-S$HOME/x", "-S${}", "-S${X",
		strings.Repeat("-S ", 20) + "x",
	} {
		if e, err := shebang.ParseEnv(strings.Fields(in), lookup); err == nil {
			t.Errorf("%q: no error, %+v", in, e)
		}
	}
}

func TestEnvChangesTheVariablesThatItsCommandSees(t *testing.T) {
	base := func(n string) (string, bool) { v, ok := map[string]string{"A": "1", "B": "2"}[n]; return v, ok }
	for in, want := range map[string]string{
		"x": "1 2", "-i x": "- -", "-u A x": "- 2", "-u A A=3 x": "3 2", "A= x": " 2", "-i B=5 x": "- 5", "A=1 A=9 x": "9 2",
	} {
		e, err := shebang.ParseEnv(strings.Fields(in), func(string) string { return "" })
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range []string{"A", "B"} {
			v, ok := e.Apply(n, base)
			if !ok {
				v = "-"
			}
			got = append(got, v)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("env %s: A and B are %q, want %q", in, s, want)
		}
	}
}

func FuzzScript(f *testing.F) {
	f.Add([]byte("#!/usr/bin/env -iS A=1 -u B node\\_--x \"y ${Z}\" # c\n"))
	f.Add([]byte("#! bin/sh -e\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := shebang.Parse(b)
		if err != nil {
			return
		}
		if l.Interp == "" || l.Len > len(b) || slices.Contains(l.Args, "") {
			t.Fatalf("%+v", l)
		}
		e, err := shebang.ParseEnv(l.Args, func(s string) string { return s })
		if err == nil && e.Word >= 0 && l.Args[e.Word] != e.Prefix+e.Command {
			t.Fatalf("command %q is not word %d of %q after %q", e.Command, e.Word, l.Args, e.Prefix)
		}
	})
}
