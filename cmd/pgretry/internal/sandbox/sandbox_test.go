package sandbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func show[T any](t *testing.T, db *sql.DB, query string) T {
	t.Helper()
	var value T
	if err := db.QueryRowContext(t.Context(), query).Scan(&value); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return value
}

const sandboxes = `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgretry\_demo\_%'`

func TestSessionsWorkInASchemaThatIsDroppedAfterwards(t *testing.T) {
	dsn := pgtest.DSN(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	outside := open(t, dsn)
	before := show[int](t, outside, sandboxes)

	box, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := box.Plain()
	if err != nil {
		t.Fatal(err)
	}
	for name, db := range map[string]*sql.DB{"DB": box.DB(), "Plain": plain, "DSN": open(t, box.DSN())} {
		if schema := show[string](t, db, `SELECT current_schema()`); !strings.HasPrefix(schema, "pgretry_demo_") {
			t.Errorf("%s works in the schema %s", name, schema)
		}
		if got := show[string](t, db, `SHOW deadlock_timeout`); got != "20ms" {
			t.Errorf("%s has a deadlock_timeout of %s", name, got)
		}
	}
	if box.DeadlockTimeout() != 20*time.Millisecond {
		t.Errorf("it says deadlock_timeout is %v", box.DeadlockTimeout())
	}
	if version := show[string](t, outside, `SHOW server_version`); !strings.HasPrefix(version, box.ServerVersion()) || box.ServerVersion() == "" {
		t.Errorf("it says the version is %s, the server %s", box.ServerVersion(), version)
	}
	if _, err := plain.ExecContext(t.Context(), `CREATE TABLE t ()`); err != nil {
		t.Fatal(err)
	}
	if err := box.Empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := show[int](t, plain, `SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace`); got != 0 {
		t.Errorf("%d tables are left in an emptied schema", got)
	}
	if err := plain.Close(); err != nil {
		t.Fatal(err)
	}
	if err := box.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := show[int](t, outside, sandboxes); after != before {
		t.Errorf("%d schemas are left behind", after-before)
	}
}

func TestWithoutADeadlockTimeoutTheServersOwnApplies(t *testing.T) {
	box, err := sandbox.Open(t.Context(), pgtest.DSN(t), sandbox.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if box.DeadlockTimeout() != time.Second {
		t.Errorf("got %v, want the server's 1s", box.DeadlockTimeout())
	}
	if err := box.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// asOrdinaryRole returns dsn for a role that may not set deadlock_timeout.
func asOrdinaryRole(t *testing.T, dsn string) string {
	t.Helper()
	admin := open(t, dsn)
	role := fmt.Sprintf("ordinary_%d", time.Now().UnixNano())
	database := pq.QuoteIdentifier(show[string](t, admin, `SELECT current_database()`))
	run := func(statement string) {
		if _, err := admin.ExecContext(context.Background(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	run(`CREATE ROLE ` + role + ` LOGIN PASSWORD 'secret'`)
	t.Cleanup(func() { run(`DROP OWNED BY ` + role + `; DROP ROLE ` + role) })
	run(`GRANT CREATE ON DATABASE ` + database + ` TO ` + role)
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	parsed.User = url.UserPassword(role, "secret")
	return parsed.String()
}

func TestARoleThatMayNotSetTheDeadlockTimeoutUsesTheServersOwn(t *testing.T) {
	dsn := asOrdinaryRole(t, pgtest.DSN(t))
	box, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if box.DeadlockTimeout() != time.Second {
		t.Errorf("got %v, want the server's 1s", box.DeadlockTimeout())
	}
	if err := box.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestARoleThatMayNotSetTheDeadlockTimeoutIsToldSoWhereTheUserInsists(t *testing.T) {
	dsn := asOrdinaryRole(t, pgtest.DSN(t))
	_, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: 20 * time.Millisecond, Insist: true})
	server, ok := errors.AsType[*pq.Error](err)
	if !ok || server.Code != "42501" || !strings.Contains(err.Error(), "deadlock_timeout 20ms") {
		t.Errorf("got %v, want insufficient_privilege and the setting", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error shows the password: %v", err)
	}
}

func TestAWrongConnectionStringIsRefusedWithoutShowingIt(t *testing.T) {
	for _, dsn := range []string{
		"postgres://me:hunter2@host:port/db",
		"postgres://me:hunter2@host/db?sslmode=sometimes",
		"postgres://me:hun%zzter2@host/db",
		"host=h password=a hunter2",
		"user=me password='hunter2",
		"hunter2",
	} {
		_, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: time.Second})
		if !errors.Is(err, sandbox.ErrDSN) {
			t.Errorf("%s: got %v, want ErrDSN", dsn, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the password: %v", dsn, err)
		}
	}
}

func TestParametersOfTheLibraryDoNotReachTheServer(t *testing.T) {
	dsn := pgtest.DSN(t)
	parsed, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	query := parsed.Query()
	query.Set("pgretry_max_attempts", "8")
	parsed.RawQuery = query.Encode()
	box, err := sandbox.Open(t.Context(), parsed.String(), sandbox.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(box.DSN(), "pgretry_max_attempts=8") {
		t.Error("the library would not get its parameter either")
	}
	if err := box.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestKeyValuePairsServeAsWell(t *testing.T) {
	parsed, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := parsed.User.Password()
	dsn := fmt.Sprintf("host=%s port=%s user=%s password='%s' dbname=%s sslmode=disable search_path=elsewhere",
		parsed.Hostname(), parsed.Port(), parsed.User.Username(), password, strings.TrimPrefix(parsed.Path, "/"))
	box, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if schema := show[string](t, box.DB(), `SELECT current_schema()`); !strings.HasPrefix(schema, "pgretry_demo_") {
		t.Errorf("it works in the schema %s", schema)
	}
	if box.DeadlockTimeout() != 30*time.Millisecond {
		t.Errorf("deadlock_timeout is %v", box.DeadlockTimeout())
	}
	if err := box.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
