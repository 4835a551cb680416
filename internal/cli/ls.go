package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube"
)

func newLsCommand(a *app) *cobra.Command {
	var cf clusterFlags
	var all bool
	var output, agents string
	types := kube.Kinds()
	c := &cobra.Command{
		Use:     "ls [-n NAMESPACE | -A]",
		Short:   "List what can be a target in the cluster, and who uses it",
		Example: "  stead ls -n shop --types deployment,statefulset\n  stead ls -A -o name",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.client(&cf)
			if err != nil {
				return err
			}
			ns := client.Namespace
			if all {
				ns = ""
			}
			rows, denied, err := client.List(c.Context(), ns, agents, types)
			if err != nil {
				return err
			}
			for _, d := range denied {
				fmt.Fprintln(a.stderr, "warning:", fault.Line(d.Error()))
			}
			return a.printTargets(rows, output, all)
		},
	}
	cf.add(c.Flags())
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	c.Flags().StringVar(&agents, "agent-namespace", "", "namespace where agents are, too, to be asked who uses what")
	c.Flags().StringSliceVar(&types, "types", types, "kinds to list")
	c.Flags().StringVarP(&output, "output", "o", "", "name, wide or json")
	return c
}

func (a *app) printTargets(rows []kube.Listed, output string, all bool) error {
	switch output {
	case "json":
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		if rows == nil {
			rows = []kube.Listed{}
		}
		return e.Encode(rows)
	case "name":
		for _, r := range rows {
			if _, err := fmt.Fprintln(a.stdout, r.Target); err != nil {
				return err
			}
		}
		return nil
	case "", "wide":
	default:
		return fault.With(fmt.Errorf("--output %s: no such form", output), "-o name, wide or json")
	}
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	head := []string{"TARGET", "READY", "CONTAINER", "USED BY"}
	if all {
		head = append([]string{"NAMESPACE"}, head...)
	}
	if output == "wide" {
		head = append(head, "CONTAINERS", "PODS")
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, r := range rows {
		cells := []string{r.Target, fmt.Sprintf("%d/%d", r.Ready, len(r.Pods)), orDash(r.Default), orDash(strings.Join(r.Users, ","))}
		if all {
			cells = append([]string{r.Namespace}, cells...)
		}
		if output == "wide" {
			cells = append(cells, orDash(strings.Join(r.Containers, ",")), orDash(strings.Join(r.Pods, ",")))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
