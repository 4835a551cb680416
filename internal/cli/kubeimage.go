package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/kube/image"
)

func newAgentImageCommand(a *app) *cobra.Command {
	var push, output, name string
	c := &cobra.Command{
		Use:   "image (--push REF | --output FILE)",
		Short: "Make the agent's container image",
		Long: `Make the container image of the agent, for amd64 and arm64, from the agents that this stead
carries. No other tool is needed. --push sends it to a registry (logged in as docker is),
--output writes it to a tar (OCI layout), to be loaded into the cluster's nodes.

There is no image of ours in a public registry: what runs with the rights of an agent should come
from a place of yours. Name it in STEAD_AGENT_IMAGE or with --agent-image.`,
		Example: `  stead agent image --push registry.example.com/tools/stead-agent:1
  stead agent image --output agent.tar --name registry.local/stead-agent:1 && ctr -n k8s.io images import agent.tar`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case (push == "") == (output == ""):
				return fault.With(errors.New("where should the image go?"), "stead agent image --push REGISTRY/NAME:TAG, or --output FILE")
			case push != "":
				return a.pushImage(c.Context(), push)
			}
			return a.writeImage(output, name)
		},
	}
	c.Flags().StringVar(&push, "push", "", "send it to a registry, as REGISTRY/NAME:TAG")
	c.Flags().StringVar(&output, "output", "", "write it to this file")
	c.Flags().StringVar(&name, "name", "stead.local/stead-agent:"+Version, "its name in the file, REGISTRY/NAME:TAG")
	return c
}

func (a *app) pushImage(ctx context.Context, ref string) error {
	i, err := image.Index(Version)
	if err != nil {
		return err
	}
	pushed, err := image.Push(ctx, i, ref)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, pushed)
	return err
}

// writeImage leaves no half of a file under its name.
func (a *app) writeImage(file, name string) error {
	i, err := image.Index(Version)
	if err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(file), ".stead-image-")
	if err != nil {
		return fault.With(fmt.Errorf("write image: %w", err), "--output FILE in a directory that exists")
	}
	defer os.Remove(part.Name()) // in vain once it is renamed
	err = image.Write(part, i, name)
	if err == nil {
		err = part.Chmod(0o644)
	}
	if cerr := part.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(part.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("write image %s: %w", file, err)
	}
	_, err = fmt.Fprintln(a.stdout, name)
	return err
}
