package pgserver

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Schema is an empty schema on a [Server], so that several users of one server do not meet.
type Schema struct {
	// Name is the schema's name. It needs no quoting.
	Name string
	// DSN is the server's [Server.DSN] with the schema as search_path.
	DSN string

	adminDSN string
}

// NewSchema creates a schema with a name nobody else uses.
func (s *Server) NewSchema(ctx context.Context) (*Schema, error) {
	schema, err := createSchema(ctx, s.adminDSN)
	if err != nil {
		return nil, err
	}
	u, err := parseConnString(s.dsn)
	if err != nil {
		return nil, err
	}
	schema.DSN = withParameters(u, map[string]string{"search_path": schema.Name})
	return schema, nil
}

func createSchema(ctx context.Context, adminDSN string) (_ *Schema, err error) {
	schema := &Schema{Name: "pgretry_" + strings.ToLower(rand.Text()), adminDSN: adminDSN}
	db, err := open(adminDSN)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, err := db.ExecContext(ctx, "create schema "+schema.Name); err != nil {
		return nil, fmt.Errorf("create schema: %w", err)
	}
	return schema, nil
}

// Drop drops the schema and all that is in it. Sessions that hold locks in it and do not let go are terminated: a
// session whose client was cut off can wait for a lock for ever. Dropping a schema that is gone is no error.
func (s *Schema) Drop(ctx context.Context) (err error) {
	db, err := open(s.adminDSN)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1) // lock_timeout is the session's

	// The later, longer timeouts let autovacuum notice that it is in the way.
	for _, timeout := range []string{"250ms", "2s", "5s"} {
		if _, err := db.ExecContext(ctx, "set lock_timeout = '"+timeout+"'"); err != nil {
			return fmt.Errorf("drop schema %s: %w", s.Name, err)
		}
		_, err = db.ExecContext(ctx, "drop schema if exists "+s.Name+" cascade")
		if err == nil {
			return nil
		}
		if pq.As(err, pqerror.LockNotAvailable, pqerror.TRDeadlockDetected) == nil {
			return fmt.Errorf("drop schema %s: %w", s.Name, err)
		}
		if _, err := db.ExecContext(ctx, terminateHolders, s.Name); err != nil {
			return fmt.Errorf("terminate the sessions that use schema %s: %w", s.Name, err)
		}
	}
	return fmt.Errorf("drop schema %s: %w", s.Name, err)
}

// terminateHolders finds locks on the relations of a schema and on the schema itself: a transaction that has just
// created its first table there shows only the latter.
const terminateHolders = `
select pg_terminate_backend(a.pid)
from pg_stat_activity a
where a.pid <> pg_backend_pid() and a.backend_type = 'client backend' and a.datname = current_database() and exists (
	select
	from pg_namespace n
	left join pg_class c on c.relnamespace = n.oid
	join pg_locks l on l.relation = c.oid or l.classid = 'pg_namespace'::regclass and l.objid = n.oid
	where n.nspname = $1 and l.pid = a.pid
)`

// open is sql.Open for lib/pq's driver that reports a wrong connection string without showing it.
func open(dsn string) (*sql.DB, error) {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, errConnString
	}
	return sql.OpenDB(connector), nil
}
