package sip

import "fmt"

// Report is what a file is, whether a program run by it is protected, why, and by which files.
type Report struct {
	Path      string        `json:"path"`
	Kind      Kind          `json:"kind"`
	Protected bool          `json:"protected"`
	Reasons   []string      `json:"reasons"`
	Chain     []string      `json:"chain"` // the file first; symlinks, then what they lead to
	Slices    []SliceReport `json:"slices"`
}

// SliceReport is one architecture of a Mach-O file.
type SliceReport struct {
	CPU          string         `json:"cpu"`
	Subtype      string         `json:"subtype"`
	Signed       bool           `json:"signed"`
	Hardened     bool           `json:"hardened"`
	Entitlements map[string]any `json:"entitlements"`
	Runs         bool           `json:"runs"` // the one that the host would run
}

// Inspect tells what the file at path is. A chain that is broken (an interpreter that is not
// there) is told in the reasons; a Mach-O file that breaks its format is an error.
func (p *Patcher) Inspect(path string) (*Report, error) {
	f, err := p.look(path, p.where(), nil)
	if err != nil {
		return nil, fmt.Errorf("inspect %w", err)
	}
	r := &Report{Path: path, Kind: f.kind, Reasons: []string{}, Chain: []string{}, Slices: []SliceReport{}}
	r.Slices = append(r.Slices, f.slices...)
	f.walk(func(g *finding) {
		r.Protected = r.Protected || g.protected
		r.Chain = append(r.Chain, g.path)
		if g.real != g.path {
			r.Chain = append(r.Chain, g.real)
		}
		for _, s := range g.reasons {
			if g != f {
				s = g.path + ": " + s
			}
			r.Reasons = append(r.Reasons, s)
		}
	})
	if f.info.Mode().Perm()&0o111 == 0 {
		r.Protected = false
	}
	return r, nil
}

// walk calls fn for a file and all that it leads to, in the order in which they are executed.
func (f *finding) walk(fn func(*finding)) {
	fn(f)
	if f.interp != nil {
		f.interp.walk(fn)
	}
	if f.command != nil {
		f.command.walk(fn)
	}
}

// needsCopy tells whether f or a file that it leads to is protected.
func (f *finding) needsCopy() (yes bool) {
	f.walk(func(g *finding) { yes = yes || g.protected })
	return yes
}
