//go:build dsn

package engines

import (
	"os"
	"strings"
	"testing"
)

// named returns the DSN that a variable holds. The tests here are run only for it.
func named(t *testing.T, variable string) string {
	t.Helper()
	dsn := os.Getenv(variable)
	if dsn == "" {
		t.Fatalf("%s has to name a database for tests", variable)
	}
	return dsn
}

// tells wants the engine to say what it is.
func (e *engine) tells(want string) {
	e.Helper()
	var version string
	if err := e.db.QueryRowContext(e.Context(), `SELECT version()`).Scan(&version); err != nil || !strings.Contains(version, want) {
		e.Fatalf("the engine is %q, %v, want one that says %s", version, err, want)
	}
	e.Log(version)
}

func TestCitus(t *testing.T) {
	conflicts(t, named(t, "PGRETRY_CITUS_DSN"), func(e *engine) {
		var version string
		if err := e.db.QueryRowContext(e.Context(), `SELECT citus_version()`).Scan(&version); err != nil {
			e.Fatalf("the database has no Citus: %v", err)
		}
		e.Log(version)
		e.exec(`SELECT create_distributed_table('` + e.table + `', 'id')`)
	})
}

func TestCockroachDB(t *testing.T) {
	conflicts(t, named(t, "PGRETRY_COCKROACH_DSN"), func(e *engine) { e.tells("CockroachDB") })
}

func TestYugabyteDB(t *testing.T) {
	conflicts(t, named(t, "PGRETRY_YUGABYTE_DSN"), func(e *engine) { e.tells("-YB-") })
}
