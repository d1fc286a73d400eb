// Package sandbox keeps what the demo does on a server in a schema of its own, which nobody else
// sees and which is dropped afterwards.
package sandbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/lib/pq"
)

// ErrDSN says that a connection string cannot be understood. The message never contains the
// string, which may hold a password.
var ErrDSN = errors.New("not a connection string that lib/pq understands: want a URL such as postgres://user@host/database, or host=… user=… dbname=…")

// Settings are what every session in the sandbox begins with.
type Settings struct {
	// DeadlockTimeout is how long the server lets a lock wait before it looks for a deadlock, in
	// whole milliseconds. Zero leaves it as the server has it.
	DeadlockTimeout time.Duration
	// Insist makes it an error if the role may not set DeadlockTimeout, which takes a superuser.
	// Without it the server's own then applies.
	Insist bool
}

// Sandbox is one schema on one server.
type Sandbox struct {
	dsn           string
	schema        string
	db            *sql.DB
	serverVersion string
	deadlock      time.Duration
}

// Open connects to the server at dsn and creates a schema there. The caller has to Close the
// sandbox. An error that matches ErrDSN means that dsn itself is wrong.
func Open(ctx context.Context, dsn string, settings Settings) (*Sandbox, error) {
	parameters := map[string]string{}
	if settings.DeadlockTimeout > 0 {
		set := map[string]string{"deadlock_timeout": fmt.Sprintf("%dms", settings.DeadlockTimeout.Milliseconds())}
		switch err := probe(ctx, dsn, set); {
		case err == nil:
			maps.Copy(parameters, set)
		case errors.Is(err, ErrDSN):
			return nil, err
		case settings.Insist || !lacksPrivilege(err):
			return nil, fmt.Errorf("connect with deadlock_timeout %v: %w", settings.DeadlockTimeout, err)
		}
	}
	s := &Sandbox{schema: "pgretry_demo_" + strings.ToLower(rand.Text()[:10])}
	parameters["search_path"] = s.schema
	var err error
	if s.dsn, err = withParameters(dsn, parameters); err != nil {
		return nil, err
	}
	if s.db, err = s.Plain(); err != nil {
		return nil, err
	}
	if err := s.describe(ctx); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	if _, err := s.db.ExecContext(ctx, "CREATE SCHEMA "+s.schema); err != nil {
		return nil, errors.Join(fmt.Errorf("create a schema to work in: %w", err), s.db.Close())
	}
	return s, nil
}

func probe(ctx context.Context, dsn string, parameters map[string]string) (err error) {
	dsn, err = withParameters(dsn, parameters)
	if err != nil {
		return err
	}
	db, err := openPlain(dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.PingContext(ctx)
}

func lacksPrivilege(err error) bool {
	server, ok := errors.AsType[*pq.Error](err)
	return ok && server.Code == "42501"
}

func (s *Sandbox) describe(ctx context.Context) error {
	var milliseconds int64
	err := s.db.QueryRowContext(ctx, `
		SELECT current_setting('server_version'), (extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000)::bigint`,
	).Scan(&s.serverVersion, &milliseconds)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// Distributions add their package's version in brackets.
	s.serverVersion, _, _ = strings.Cut(s.serverVersion, " ")
	s.deadlock = time.Duration(milliseconds) * time.Millisecond
	return nil
}

// DSN is the connection string of sessions in the sandbox. It may contain a password.
func (s *Sandbox) DSN() string { return s.dsn }

// DB is a pool of plain lib/pq sessions in the sandbox, for creating tables and checking them.
func (s *Sandbox) DB() *sql.DB { return s.db }

// Plain opens another pool of lib/pq's own sessions in the sandbox. The caller closes it.
func (s *Sandbox) Plain() (*sql.DB, error) { return openPlain(s.dsn) }

// ServerVersion is the server's version as it states it, such as "18.1".
func (s *Sandbox) ServerVersion() string { return s.serverVersion }

// DeadlockTimeout is the deadlock_timeout that applies to sessions in the sandbox.
func (s *Sandbox) DeadlockTimeout() time.Duration { return s.deadlock }

// Empty drops everything in the schema.
func (s *Sandbox) Empty(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, "DROP SCHEMA "+s.schema+" CASCADE; CREATE SCHEMA "+s.schema); err != nil {
		return fmt.Errorf("empty the schema %s: %w", s.schema, err)
	}
	return nil
}

// Abandon disconnects and leaves the schema to a server that is about to vanish.
func (s *Sandbox) Abandon() error { return s.db.Close() }

// Close drops the schema and disconnects. It works within ctx, which should outlive the work done
// in the sandbox; the error names the schema if that is still there.
func (s *Sandbox) Close(ctx context.Context) error {
	_, err := s.db.ExecContext(ctx, "DROP SCHEMA "+s.schema+" CASCADE")
	if err != nil {
		err = fmt.Errorf("drop the schema %s: %w", s.schema, err)
	}
	return errors.Join(err, s.db.Close())
}
