package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/local/playground"
)

func newPlaygroundCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "playground",
		Short: "Pods made of namespaces on this machine, to try stead without a cluster",
	}
	c.AddCommand(playgroundUp(a), playgroundDown(a), playgroundStatus(a), playgroundExec(a), playgroundCall(a))
	return c
}

func playgroundUp(a *app) *cobra.Command {
	var detach, rootless bool
	c := &cobra.Command{
		Use:   "up",
		Short: "Start the playground",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := playground.Up(c.Context(), rootless)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stderr, "the playground is up: stead exec --target playground/orders -- PROGRAM")
			if detach {
				return p.Release()
			}
			sig := make(chan os.Signal, 1)
			signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			ended := make(chan error, 1)
			go func() { _, err := p.Wait(); ended <- err }()
			select {
			case <-sig:
				if err := playground.Down(c.Context()); err != nil {
					return err
				}
				return <-ended
			case err := <-ended:
				return err
			}
		},
	}
	c.Flags().BoolVarP(&detach, "detach", "d", false, "return when it is up, and leave it running")
	c.Flags().BoolVar(&rootless, "rootless", false, "use a user namespace even with root")
	return c
}

func playgroundDown(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the playground and everything in it", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return playground.Down(c.Context()) },
	}
}

func playgroundStatus(a *app) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "status", Short: "Show the pods", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := playground.Get(c.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				return json.NewEncoder(a.stdout).Encode(st)
			case "":
			default:
				return fault.With(fmt.Errorf("-o %s: no such format", output), "-o json")
			}
			w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "TARGET\tPID\tRESTARTS\tAGENT\tADDRESSES")
			for _, p := range st.Pods {
				agent := "-"
				if p.Agent != 0 {
					agent = fmt.Sprint(p.Agent)
				}
				fmt.Fprintf(w, "playground/%s\t%d\t%d\t%s\t%s\n", p.Name, p.PID, p.Restarts, agent, strings.Join(p.IPs, " "))
			}
			return w.Flush()
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "json")
	return c
}

func playgroundExec(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "exec POD -- COMMAND [ARGS]", Short: "Run a command natively in a pod, from a terminal with one of its own", Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return fault.With(errors.New("want a pod and a command"), "stead playground exec orders -- hostname")
			}
			pod, argv := strings.TrimPrefix(args[0], "playground/"), args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return fault.With(errors.New("want a command"), "stead playground exec "+pod+" -- hostname")
			}
			return a.inPod(c, pod, argv, true)
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

// inPod runs argv in a pod, passing on signals; with tty as in a terminal of its own where there is one.
func (a *app) inPod(c *cobra.Command, pod string, argv []string, tty bool) error {
	sig := make(chan os.Signal, 8)
	signal.Notify(sig, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(sig)
	var env []string
	if t := environ(a.env, "TERM"); t != "" {
		env = append(env, "TERM="+t)
	}
	code, err := playground.Exec(c.Context(), pod, argv, env, sig, tty)
	if err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

func playgroundCall(a *app) *cobra.Command {
	var count, concurrency int
	var headers []string
	var method, data string
	c := &cobra.Command{
		Use:   "call URL",
		Short: "Send requests from the client pod",
		Long:  "Send requests from the client pod and print the answers. URL is http://..., tcp://HOST:PORT or udp://HOST:PORT.",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !strings.Contains(args[0], "://") {
				return fault.With(fmt.Errorf("call %s: no scheme", args[0]), "stead playground call http://"+args[0])
			}
			if count < 1 || concurrency < 1 {
				return fault.With(errors.New("--count and --concurrency are at least 1"), "stead playground call --count 10 --concurrency 2 "+args[0])
			}
			argv := []string{"/proc/self/exe", "__call", fmt.Sprintf("--count=%d", count), fmt.Sprintf("--concurrency=%d", concurrency), "--method=" + method, "--data=" + data}
			for _, h := range headers {
				argv = append(argv, "--header="+h)
			}
			return a.inPod(c, "client", append(argv, args[0]), false)
		},
	}
	c.Flags().IntVar(&count, "count", 1, "how many requests")
	c.Flags().IntVar(&concurrency, "concurrency", 1, "how many at the same time")
	c.Flags().StringArrayVar(&headers, "header", nil, "NAME: VALUE (repeatable)")
	c.Flags().StringVar(&method, "method", "GET", "HTTP method")
	c.Flags().StringVar(&data, "data", "", "what to send")
	return c
}
