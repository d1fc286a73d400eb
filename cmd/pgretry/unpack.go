package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/fetch"
)

const (
	unpackCommand = "unpack-postgresql"
	// repositoryVariable names a Maven repository to take PostgreSQL's binaries from, for machines
	// that reach only a mirror.
	repositoryVariable = "PGRETRY_BINARY_REPOSITORY"
)

// newUnpackCommand returns the command that the demo calls in a process of its own.
func newUnpackCommand() *cobra.Command {
	return &cobra.Command{
		Use:    unpackCommand + " ARCHIVES DIRECTORY",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return fetch.Unpack(os.Getenv(repositoryVariable), args[0], args[1])
		},
	}
}
