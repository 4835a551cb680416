package fault

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestTheInnermostAdviceWinsAndTheCauseIsSeenThrough(t *testing.T) {
	inner := WithExit(io.ErrUnexpectedEOF, "do this", ExitNotFound)
	for _, x := range []struct {
		name string
		err  error
		hint string
		exit int
	}{
		{"nothing", nil, "", 0},
		{"a plain error", io.ErrUnexpectedEOF, "", ExitOurs},
		{"with a hint", With(io.ErrUnexpectedEOF, "do this"), "do this", ExitOurs},
		{"with a code", inner, "do this", ExitNotFound},
		{"wrapped", fmt.Errorf("open x: %w", inner), "do this", ExitNotFound},
		{"with later advice", With(fmt.Errorf("open x: %w", inner), "do that"), "do this", ExitNotFound},
		{"with a later code", WithExit(inner, "do that", ExitNotExecutable), "do this", ExitNotFound},
		{"with a first hint after the code", With(WithExit(io.ErrUnexpectedEOF, "", ExitNotFound), "do that"), "do that", ExitNotFound},
		{"joined", errors.Join(io.EOF, inner), "do this", ExitNotFound},
	} {
		if Hint(x.err) != x.hint || Exit(x.err) != x.exit {
			t.Errorf("%s: %q, %d; want %q, %d", x.name, Hint(x.err), Exit(x.err), x.hint, x.exit)
		}
		if x.err != nil && !errors.Is(x.err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: the cause of %v is not seen", x.name, x.err)
		}
	}
	if With(nil, "x") != nil || WithExit(nil, "x", 3) != nil {
		t.Error("advice makes an error of none")
	}
	if got := With(fmt.Errorf("open x: %w", io.ErrUnexpectedEOF), "do this").Error(); got != "open x: unexpected EOF" {
		t.Errorf("%q", got)
	}
}

func TestALineIsOneLineAndHarmless(t *testing.T) {
	for in, want := range map[string]string{
		"a name":                         "a name",
		" two\nlines\tof text\r\n":       "two lines of text",
		"\x1b[2Jred\x07, \u009b31m, Zoë": `\x1b[2Jred\x07, \x9b31m, Zoë`,
		"a raw \x9b31m":                  "a raw \ufffd31m",
		"":                               "",
	} {
		if got := Line(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
