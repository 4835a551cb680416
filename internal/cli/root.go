// Package cli is the command line of stead: commands, flags, progress, and the only place that
// turns errors into text for people. It decides nothing about interception, targets or policy.
//
// To add a command: write newXCommand(a *app) *cobra.Command in a file of its own and add it to
// the table in root. RunE returns errors (see package fault) and prints none; output of the
// command goes to a.stdout, all that stead says on its own account to a.stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/tell"
)

// app is what the commands share of the process they run in, so that a test can run them in its own.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            []string     // KEY=value, as os.Environ gives it
	says           *tell.Teller // on stderr
}

// Run executes the command line args (without the program's name) and returns the exit code.
// It installs no signal handler: ctx ends what runs.
func Run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if code, handled := helper(args, stdout, stderr); handled {
		return code
	}
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, env: env, says: tell.New(stderr)}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	a.says.Close()
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	if err != nil {
		report(stderr, err)
	}
	return fault.Exit(err)
}

// exitCode ends the process with a code and no message: the program under stead ended with it.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// report prints err the way every failure of stead is told: one line with the cause, one with
// what to do about it.
func report(w io.Writer, err error) {
	fmt.Fprintf(w, "error: %s\n", fault.Line(err.Error()))
	if hint := fault.Hint(err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", fault.Line(hint))
	}
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "stead",
		Short:         "Run a process on your laptop in a pod's stead",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       Version,
	}
	root.SetVersionTemplate(versionLine())
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if args := c.Flags().Args(); c.HasSubCommands() && len(args) > 0 { // the flags of a command that there is not
			return aCommand(c, args)
		}
		return fault.With(err, c.CommandPath()+" --help")
	})
	for _, newCommand := range []func(*app) *cobra.Command{
		newExecCommand,
		newPortForwardCommand,
		newDumpCommand,
		newDiagnoseCommand,
		newPlaygroundCommand,
		newAgentCommand,
		newLsCommand,
		newAgentsCommand,
		newRBACCommand,
		newDoctorCommand,
		newSipCommand,
		newVersionCommand,
	} {
		root.AddCommand(newCommand(a))
	}
	root.InitDefaultHelpCmd()
	advise(root)
	for _, c := range root.Commands() {
		if c.Name() == "help" { // cobra's: it takes the name of any command, and of what is none
			c.Args = func(_ *cobra.Command, args []string) error {
				of, rest, _ := root.Find(args)
				return aCommand(of, rest)
			}
		}
	}
	return root
}

// advise completes the commands below c, and c. A command that only has commands shows them, and takes no
// other word for a wish to see them, as cobra alone would; errors about arguments get their hint.
func advise(c *cobra.Command) {
	if c.HasSubCommands() {
		c.Args = aCommand
		if !c.Runnable() {
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err != nil && !c.HasSubCommands() && cobra.NoArgs(c, args) != nil && check(c, nil) == nil {
				err = fmt.Errorf("%s takes flags alone, not %q", c.CommandPath(), args[0])
			}
			return fault.With(err, c.CommandPath()+" --help")
		}
	}
	for _, sub := range c.Commands() {
		advise(sub)
	}
}

// aCommand is the Args of a command that only has commands below it: what it is given is one that there
// is not.
func aCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := c.CommandPath() + " --help"
	c.SuggestionsMinimumDistance = 2 // letters that may be wrong
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = c.CommandPath() + " " + near[0]
	}
	return fault.With(fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath()), hint)
}

// environ returns the value of key in env, "" when it is not set.
func environ(env []string, key string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}
