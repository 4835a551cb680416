package notify

import (
	"strings"
	"testing"
)

// As fs/binfmt_script.c has it.
func TestTheFirstLineOfAScriptIsReadAsTheKernelDoes(t *testing.T) {
	long := strings.Repeat("x", firstLine)
	for _, c := range []struct {
		text             string
		interpreter, arg string
		script           bool
	}{
		{"#!/bin/sh\necho", "/bin/sh", "", true},
		{"#! \t/bin/sh \t\n", "/bin/sh", "", true},
		{"#!/bin/sh -e -u \n", "/bin/sh", "-e -u", true},
		{"#!/bin/sh\t-e\t -u\n", "/bin/sh", "-e\t -u", true},
		{"#!/bin/sh", "/bin/sh", "", true},
		{"#!sh", "sh", "", true},
		{"#!/bin/sh\r\n", "/bin/sh\r", "", true},
		{"#!\n/bin/sh\n", "", "", true},
		{"#!   ", "", "", true},
		{"#!/bin/sh\x00/x y\n", "/bin/sh", "", true},
		{"#!/" + long, "", "", true},
		{"#!/bin/sh " + long, "/bin/sh", long[:firstLine-len("#!/bin/sh ")], true},
		{"#", "", "", false},
		{"", "", "", false},
		{"\x7fELF", "", "", false},
		{" #!/bin/sh\n", "", "", false},
	} {
		b := []byte(c.text)
		interpreter, arg, script := interpreterOf(b[:min(len(b), firstLine)])
		if interpreter != c.interpreter || arg != c.arg || script != c.script {
			t.Errorf("%.30q: %q, %q, %v; want %q, %q, %v", c.text, interpreter, arg, script, c.interpreter, c.arg, c.script)
		}
	}
}

func FuzzTheFirstLineOfAScript(f *testing.F) {
	f.Add("#!/bin/sh -e\n")
	f.Fuzz(func(t *testing.T, text string) {
		interpreter, arg, script := interpreterOf([]byte(text[:min(len(text), firstLine)]))
		if script != strings.HasPrefix(text, "#!") || strings.ContainsAny(interpreter, " \t\n\x00") || strings.ContainsAny(arg, "\n\x00") || arg != "" && interpreter == "" {
			t.Errorf("%q: %q, %q, %v", text, interpreter, arg, script)
		}
	})
}
