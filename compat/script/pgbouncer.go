package script

import (
	"database/sql"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/pgretry/pgretry/internal/pgbouncer"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// poolers are ways of being behind PgBouncer. With lib/pq a statement with arguments
// outside a transaction is sent in two parts, which in transaction mode may come to two
// servers, unless binary_parameters is set; pgx keeps statements prepared, which such a pool
// does not, unless it is told to just execute.
var poolers = []struct {
	name, mode string
	inner      inner
	parameters url.Values
}{
	{"transaction mode, lib/pq with binary_parameters", "transaction", libPQ, url.Values{"binary_parameters": {"yes"}}},
	{"transaction mode, pgx without prepared statements", "transaction", pgx, url.Values{"default_query_exec_mode": {"exec"}}},
	{"session mode, lib/pq", "session", libPQ, nil},
	{"session mode, lib/pq with binary_parameters", "session", libPQ, url.Values{"binary_parameters": {"yes"}}},
	{"session mode, pgx with prepared statements", "session", pgx, nil},
	{"session mode, pgx without prepared statements", "session", pgx, url.Values{"default_query_exec_mode": {"exec"}}},
}

// TestBehindPgBouncer is Test with PgBouncer before the server.
func TestBehindPgBouncer(t *testing.T, open Open) {
	for _, pooler := range poolers {
		t.Run(pooler.name, func(t *testing.T) {
			bouncer, err := pgbouncer.Start(t.Context(), pgtest.Server(t).DSN(), pooler.mode, 30)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := bouncer.Stop(); err != nil {
					t.Error(err)
				}
			})
			test(t, setting{open, pooler.inner, func(t *testing.T) (dsn, server string) {
				t.Helper()
				database := newDatabase(t)
				return address(t, bouncer.DSN(), database, pooler.parameters), address(t, pgtest.Server(t).DSN(), database, nil)
			}})
		})
	}
}

var databases atomic.Int64

// newDatabase makes a database, because behind PgBouncer nothing tells a schema.
func newDatabase(t *testing.T) string {
	t.Helper()
	admin, err := sql.Open("postgres", pgtest.Server(t).DSN())
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("behind_pgbouncer_%d", databases.Add(1))
	if _, err := admin.Exec(`CREATE DATABASE ` + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(`DROP DATABASE ` + name + ` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
		if err := admin.Close(); err != nil {
			t.Error(err)
		}
	})
	return name
}

func address(t *testing.T, dsn, database string, parameters url.Values) string {
	t.Helper()
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Path = "/" + database
	query := parsed.Query()
	for name, values := range parameters {
		query.Set(name, values[0])
	}
	parsed.RawQuery = query.Encode()
	return parsed.String()
}
