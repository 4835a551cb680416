// Package fault carries a failure that a person must act upon from where it is found to where it
// is printed: what happened, why, and the command that helps. It prints nothing; internal/cli is
// the only place that turns a fault into text.
//
// A fault wraps its cause, so errors.Is and errors.As see through it. The innermost hint is the
// most exact one and wins: a caller that adds context wraps with fmt.Errorf and leaves the hint.
package fault

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// Exit codes of ours. The program's own code is passed on as it is (128+signal when it died of
// one); these follow docker(1) and env(1).
const (
	ExitOurs          = 125 // stead itself failed
	ExitNotExecutable = 126 // the program was found and cannot be executed
	ExitNotFound      = 127 // the program was not found
)

// Error is a failure with advice. The zero Exit means ExitOurs.
type Error struct {
	Err  error  // what happened and why, one line, no final period
	Hint string // what to do, best a command to run; may be empty
	Exit int    // exit code of the process, 0 for ExitOurs
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// With returns err with a hint. It returns nil when err is nil, and keeps the hint and the exit
// code that err already carries.
func With(err error, hint string) error { return WithExit(err, hint, 0) }

// WithExit is With and an exit code.
func WithExit(err error, hint string, exit int) error {
	if err == nil {
		return nil
	}
	var inner *Error
	if errors.As(err, &inner) {
		if inner.Hint != "" {
			hint = inner.Hint
		}
		if inner.Exit != 0 {
			exit = inner.Exit
		}
	}
	return &Error{Err: err, Hint: hint, Exit: exit}
}

// Hint returns the advice that err carries, "" for none.
func Hint(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// Exit returns the exit code for err: 0 for nil, ExitOurs where none was set.
func Exit(err error) int {
	if err == nil {
		return 0
	}
	var e *Error
	if errors.As(err, &e) && e.Exit != 0 {
		return e.Exit
	}
	return ExitOurs
}

// Line returns s as one line of text for a terminal: runs of white space are one space, and other control
// characters, which names and messages of others might bring, are shown as escapes.
func Line(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "\ufffd")), " ")
	if strings.IndexFunc(s, unicode.IsControl) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsControl(r) {
			fmt.Fprintf(&b, "\\x%02x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
