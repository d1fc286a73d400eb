package main

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// TestMain starts a server for this repository's own tests. There is no need to copy it.
func TestMain(m *testing.M) {
	code, err := withServer(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withServer(m *testing.M) (code int, err error) {
	server, err := pgserver.Start(context.Background())
	if err != nil {
		return 0, err
	}
	defer func() {
		if stopping := server.Stop(); err == nil {
			err = stopping
		}
	}()
	schema, err := server.NewSchema(context.Background())
	if err != nil {
		return 0, err
	}
	defer func() {
		if dropping := schema.Drop(context.Background()); err == nil {
			err = dropping
		}
	}()
	if err := os.Setenv("DATABASE_URL", schema.DSN); err != nil {
		return 0, err
	}
	return m.Run(), nil
}
