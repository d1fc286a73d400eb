//go:build ignore

// Generate makes the package models: it has sqlboiler read the tables of a throwaway
// server.
package main

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"net/url"
	"os"
	"os/exec"

	_ "github.com/lib/pq"

	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/internal/pgserver"
)

const version = "@v4.19.5"

func main() {
	if err := generate(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func generate(ctx context.Context) (err error) {
	bin, err := os.MkdirTemp("", "sqlboiler")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin)) }()
	for _, program := range []string{
		"github.com/aarondl/sqlboiler/v4" + version,
		"github.com/aarondl/sqlboiler/v4/drivers/sqlboiler-psql" + version,
	} {
		if err := run(ctx, []string{"GOBIN=" + bin}, "go", "install", program); err != nil {
			return err
		}
	}

	if err := os.Unsetenv(pgserver.EnvDSN); err != nil { // sqlboiler reads the schema public
		return err
	}
	server, err := pgserver.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	db, err := sql.Open("postgres", server.DSN())
	if err != nil {
		return err
	}
	for _, table := range script.Tables {
		if _, err := db.ExecContext(ctx, table); err != nil {
			return errors.Join(err, db.Close())
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	dsn, err := url.Parse(server.DSN())
	if err != nil {
		return err
	}
	return run(ctx, []string{
		"PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"), // it looks for sqlboiler-psql there
		"PSQL_HOST=" + dsn.Hostname(), "PSQL_PORT=" + dsn.Port(), "PSQL_USER=" + dsn.User.Username(),
	}, bin+"/sqlboiler", "psql")
}

func run(ctx context.Context, environment []string, program string, arguments ...string) error {
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
