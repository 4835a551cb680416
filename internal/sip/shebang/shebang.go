// Package shebang reads the first line of a script as the macOS kernel does, and the arguments of
// env(1) as the macOS env does, to find which program runs the script. It reads no file and knows
// no PATH: that is the caller's.
//
// Two habits of macOS differ from Linux: the rest of the line is split at blanks into any number
// of arguments, and a "#" ends the line.
package shebang

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// MaxLine is how many bytes of a script the kernel looks at for its first line.
const MaxLine = 512

// Errors of Parse. A file with ErrNone is not a script; one with another error is a script that
// cannot be executed.
var (
	ErrNone    = errors.New("no #! at the beginning")
	ErrEmpty   = errors.New("no interpreter after #!")
	ErrTooLong = fmt.Errorf("the first line has more than %d bytes, the kernel does not run it", MaxLine)
	ErrNUL     = errors.New("a NUL byte in the first line")
)

// Line is the first line of a script.
type Line struct {
	Interp string   // as it is written, a carriage return of CRLF included
	Args   []string // what follows it, split at blanks
	Len    int      // bytes of the line in the file, its newline not counted
	CRLF   bool     // the line ends in CRLF: the carriage return is part of its last word
}

// Words returns the interpreter and its arguments.
func (l Line) Words() []string { return append([]string{l.Interp}, l.Args...) }

// Parse reads the first line. head is the beginning of the file, at least MaxLine+1 bytes of it
// or all of it.
func Parse(head []byte) (l Line, err error) {
	if !bytes.HasPrefix(head, []byte("#!")) {
		return l, ErrNone
	}
	line, _, found := bytes.Cut(head, []byte("\n"))
	l.Len = len(line)
	l.CRLF = bytes.HasSuffix(line, []byte("\r"))
	if len(line) >= MaxLine || !found && len(head) > MaxLine {
		return l, ErrTooLong
	}
	text := line[2:]
	if i := bytes.IndexByte(text, '#'); i >= 0 {
		text = text[:i]
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return l, ErrNUL
	}
	words := strings.FieldsFunc(string(text), func(r rune) bool { return r == ' ' || r == '\t' })
	if len(words) == 0 || words[0] == "\r" {
		return l, ErrEmpty
	}
	l.Interp, l.Args = words[0], words[1:]
	return l, nil
}

// Env is what `env ARGS` does.
type Env struct {
	Command string
	Args    []string
	Dir     string   // -C
	AltPath string   // -P: where Command is looked for instead of PATH
	Clear   bool     // -i: begins with no variables
	Unset   []string // -u, in order
	Set     []string // NAME=VALUE, in order

	// Word is the index of the argument that holds Command, and Prefix what stands in that
	// argument before it ("-S", as in -Snode). Word is -1 where Command is not the rest of one
	// argument as it is written, so that it cannot be replaced there.
	Word   int
	Prefix string
}

// ErrNoCommand is an env that runs nothing.
var ErrNoCommand = errors.New("env has no command to run")

// ParseEnv reads the arguments of env (without its own name) as in a shebang. lookup gives the
// variables that -S expands.
func ParseEnv(args []string, lookup func(string) string) (e Env, err error) {
	type word struct {
		text  string
		index int // of the argument that it is the whole rest of, -1 for part of a -S string
		at    int // where in that argument it begins
	}
	var words []word
	for i, a := range args {
		words = append(words, word{a, i, 0})
	}
	take := func() (w word, ok bool) {
		if len(words) == 0 {
			return w, false
		}
		w, words = words[0], words[1:]
		return w, true
	}
	splits := 0
options:
	for len(words) > 0 {
		w := words[0]
		if w.text == "-" {
			e.Clear = true
			words = words[1:]
			continue
		}
		if w.text == "--" {
			words = words[1:]
			break
		}
		if len(w.text) < 2 || w.text[0] != '-' {
			break
		}
		words = words[1:]
		for i := 1; i < len(w.text); i++ {
			switch c := w.text[i]; c {
			case 'i':
				e.Clear = true
			case 'v', '0':
			case 'u', 'P', 'S', 'C', 'L', 'U':
				v := word{w.text[i+1:], w.index, w.at + i + 1}
				if v.text == "" {
					var ok bool
					if v, ok = take(); !ok {
						return e, fmt.Errorf("env: option -%c has no argument", c)
					}
				}
				switch c {
				case 'u':
					e.Unset = append(e.Unset, v.text)
				case 'P':
					e.AltPath = v.text
				case 'C':
					e.Dir = v.text
				case 'S':
					if splits++; splits > 16 {
						return e, errors.New("env: too many -S")
					}
					parts, err := splitString(v.text, lookup)
					if err != nil {
						return e, err
					}
					var more []word
					for _, p := range parts {
						x := word{p, -1, 0}
						if len(parts) == 1 && p == v.text {
							x.index, x.at = v.index, v.at
						}
						more = append(more, x)
					}
					words = append(more, words...)
				}
				continue options
			default:
				return e, fmt.Errorf("env: option -%c is not known", c)
			}
		}
	}
	for len(words) > 0 && strings.IndexByte(words[0].text, '=') > 0 {
		w, _ := take()
		e.Set = append(e.Set, w.text)
	}
	w, ok := take()
	if !ok {
		return e, ErrNoCommand
	}
	e.Command, e.Word = w.text, w.index
	if w.index >= 0 {
		e.Prefix = args[w.index][:w.at]
	}
	for _, w := range words {
		e.Args = append(e.Args, w.text)
	}
	return e, nil
}

// Apply returns the value of a variable as Command sees it, beginning with base.
func (e Env) Apply(name string, base func(string) (string, bool)) (value string, ok bool) {
	if !e.Clear {
		value, ok = base(name)
	}
	for _, u := range e.Unset {
		if u == name {
			value, ok = "", false
		}
	}
	for _, s := range e.Set {
		if k, v, _ := strings.Cut(s, "="); k == name {
			value, ok = v, true
		}
	}
	return value, ok
}

// escapes of -S outside quotes; in double quotes they mean the same, in single quotes only
// \\ and \' do anything.
var escapes = map[byte]byte{
	'f': '\f', 'n': '\n', 'r': '\r', 't': '\t', 'v': '\v', '#': '#', '$': '$', '"': '"', '\'': '\'', '\\': '\\',
}

// splitString splits the argument of -S into words, as the macOS env does.
func splitString(s string, lookup func(string) string) (words []string, err error) {
	var (
		cur    strings.Builder
		inWord bool
		quote  byte
	)
	flush := func() {
		if inWord {
			words = append(words, cur.String())
			cur.Reset()
			inWord = false
		}
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == 0 && strings.IndexByte(" \t\n\v\f\r", c) >= 0:
			flush()
		case quote == 0 && !inWord && c == '#':
			return words, nil
		case quote == 0 && (c == '\'' || c == '"'):
			quote, inWord = c, true
		case c == quote && quote != 0:
			quote = 0
		case c == '\\':
			i++
			if i == len(s) {
				return nil, errors.New("env: -S ends in a backslash")
			}
			n := s[i]
			switch {
			case quote == '\'':
				if n != '\\' && n != '\'' {
					cur.WriteByte('\\')
				}
				cur.WriteByte(n)
			case n == 'c' && quote == 0:
				flush()
				return words, nil
			case n == '_' && quote == 0:
				flush()
			case n == '_':
				cur.WriteByte(' ')
			default:
				x, ok := escapes[n]
				if !ok {
					return nil, fmt.Errorf("env: -S has the unknown escape \\%c", n)
				}
				cur.WriteByte(x)
				inWord = true
			}
		case c == '$' && quote != '\'':
			end := strings.IndexByte(s[i:], '}')
			if i+1 >= len(s) || s[i+1] != '{' || end < 3 {
				return nil, errors.New("env: -S takes variables as ${NAME} only")
			}
			cur.WriteString(lookup(s[i+2 : i+end]))
			inWord = true
			i += end
		default:
			cur.WriteByte(c)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("env: -S has no closing %c", quote)
	}
	flush()
	return words, nil
}
