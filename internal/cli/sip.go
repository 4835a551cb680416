package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/sip"
)

func newSipCommand(a *app) *cobra.Command {
	var o sip.Options
	c := &cobra.Command{
		Use:   "sip",
		Short: "Find macOS programs that cannot be entered, and make copies that can",
		Long: `macOS takes DYLD_INSERT_LIBRARIES away from protected programs: its own, those with a hardened
runtime, and scripts whose first line leads through one (#!/usr/bin/env node). These commands find
such programs and make copies of them that can be entered. They work on every system.`,
	}
	c.PersistentFlags().StringVar(&o.Cache, "cache", "", "directory of the copies (default: stead/sip in the user's cache directory)")
	// The environment of the command line is that of the program which the user would run.
	patcher := func() (*sip.Patcher, error) {
		o.Env = a.env
		return sip.New(o)
	}
	c.AddCommand(newSipInspect(a, patcher), newSipPatch(a, patcher), newSipVerify(a), newSipClean(a, patcher))
	return c
}

func newSipInspect(a *app, patcher func() (*sip.Patcher, error)) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "inspect FILE...",
		Short: "Tell what files are, whether they are protected, and why",
		Args:  filesArg("stead sip inspect /usr/bin/env"),
		RunE: func(_ *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fault.With(fmt.Errorf("--output %s: no such format", output), "--output text or json")
			}
			p, err := patcher()
			if err != nil {
				return err
			}
			reports := []*sip.Report{}
			var failed []error
			for _, f := range args {
				r, err := p.Inspect(f)
				if err != nil {
					failed = append(failed, err)
					continue
				}
				reports = append(reports, r)
			}
			if output == "json" {
				e := json.NewEncoder(a.stdout)
				e.SetIndent("", "  ")
				e.SetEscapeHTML(false)
				failed = append(failed, e.Encode(reports))
			} else {
				for _, r := range reports {
					printReport(a, r)
				}
			}
			return inOneLine(failed)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func printReport(a *app, r *sip.Report) {
	verdict := "not protected"
	if r.Protected {
		verdict = "protected"
	}
	fmt.Fprintf(a.stdout, "%s: %s, %s\n", r.Path, r.Kind, verdict)
	for _, s := range r.Reasons {
		fmt.Fprintf(a.stdout, "  %s\n", s)
	}
	if len(r.Chain) > 1 {
		fmt.Fprintf(a.stdout, "  chain: %s\n", strings.Join(r.Chain, " -> "))
	}
	for _, s := range r.Slices {
		words := []string{s.CPU}
		if s.Subtype != "all" {
			words = append(words, s.Subtype)
		}
		for _, w := range []struct {
			is   bool
			word string
		}{{s.Signed, "signed"}, {!s.Signed, "not signed"}, {s.Hardened, "hardened"}, {s.Runs, "runs"}} {
			if w.is {
				words = append(words, w.word)
			}
		}
		fmt.Fprintf(a.stdout, "  slice %s\n", strings.Join(words, ", "))
	}
}

func newSipPatch(a *app, patcher func() (*sip.Patcher, error)) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "patch FILE",
		Short: "Make a copy of a program or script that can be entered, and print its path",
		Args:  fileArg("stead sip patch /usr/bin/env"),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := patcher()
			if err != nil {
				return err
			}
			r, err := p.PatchTo(c.Context(), args[0], output)
			if err != nil {
				return err
			}
			for _, n := range r.Notes {
				fmt.Fprintf(a.stderr, "note: %s\n", n)
			}
			_, err = fmt.Fprintln(a.stdout, r.Path)
			return err
		},
	}
	c.Flags().StringVar(&output, "output", "", "write the copy to this file instead of the cache")
	return c
}

func newSipVerify(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE",
		Short: "Check every hash and offset of a program's code signatures",
		Long: `Check every hash and offset of a program's code signatures. What a certificate says of them is
not checked, nor are files outside the program (Info.plist, resources). An arm64 slice without a
signature is an error, as no Mac runs it.`,
		Args: fileArg("stead sip verify ./program"),
		RunE: func(_ *cobra.Command, args []string) error {
			checks, err := sip.Verify(args[0])
			if err != nil {
				return err
			}
			var bad []error
			for _, s := range checks {
				switch {
				case len(s.Problems) > 0:
					fmt.Fprintf(a.stdout, "%s: slice %v: wrong\n", args[0], s.Arch)
				case s.Signed:
					fmt.Fprintf(a.stdout, "%s: slice %v: %d pages and all offsets are right\n", args[0], s.Arch, s.Pages)
				case s.NeedsSignature():
					fmt.Fprintf(a.stdout, "%s: slice %v: not signed\n", args[0], s.Arch)
					bad = append(bad, fault.With(fmt.Errorf("verify %s: slice %v: not signed", args[0], s.Arch), "make a signed copy: stead sip patch "+args[0]))
				default:
					fmt.Fprintf(a.stdout, "%s: slice %v: not signed, and need not be\n", args[0], s.Arch)
				}
				for _, p := range s.Problems {
					bad = append(bad, fault.With(fmt.Errorf("verify %s: slice %v: %w", args[0], s.Arch, p), "the file was changed after it was signed; make a new copy: stead sip patch "+args[0]))
				}
			}
			return inOneLine(bad)
		},
	}
}

func newSipClean(a *app, patcher func() (*sip.Patcher, error)) *cobra.Command {
	var l sip.Limits
	var size int64
	c := &cobra.Command{
		Use:   "clean",
		Short: "Remove copies that were not used for long, or all of them",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if l.MaxAge <= 0 || size <= 0 {
				return fault.With(errors.New("--max-age and --max-size are more than nothing"), "stead sip clean --all removes everything")
			}
			p, err := patcher()
			if err != nil {
				return err
			}
			l.MaxSize = size << 20
			r, err := p.Clean(c.Context(), l)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "removed %d (%.1f MiB), kept %d (%.1f MiB)\n", r.Removed, mib(r.RemovedBytes), r.Kept, mib(r.KeptBytes))
			return err
		},
	}
	c.Flags().BoolVar(&l.All, "all", false, "remove all copies")
	c.Flags().DurationVar(&l.MaxAge, "max-age", sip.DefaultMaxAge, "remove copies not used for so long")
	c.Flags().Int64Var(&size, "max-size", sip.DefaultMaxSize>>20, "MiB to keep; the longest unused go first")
	return c
}

// inOneLine joins errors so that they can be told apart where they are printed in one line.
func inOneLine(errs []error) (all error) {
	for _, err := range errs {
		switch {
		case all == nil:
			all = err
		case err != nil:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// filesArg wants one file or more, fileArg exactly one; example is the hint.
func filesArg(example string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fault.With(errors.New("no file"), example)
		}
		return nil
	}
}

func fileArg(example string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fault.With(fmt.Errorf("%d files, %s takes one", len(args), c.CommandPath()), example)
		}
		return filesArg(example)(c, args)
	}
}
