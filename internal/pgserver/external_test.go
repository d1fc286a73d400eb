//go:build unix

package pgserver

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func TestNamedServerIsUsedInASchemaThatGoesAgain(t *testing.T) {
	host := host(t)
	admin := connect(t, host.DSN())
	before := query(t, admin, "select string_agg(nspname, ' ' order by nspname) from pg_namespace")

	for form, dsn := range map[string]string{"URL": host.DSN(), "key=value": host.SocketDSN()} {
		t.Run(form, func(t *testing.T) {
			t.Setenv(EnvDSN, dsn)
			server := start(t, WithSettings(map[string]string{"deadlock_timeout": "77ms", "max_prepared_transactions": "3"}))
			if !server.External() || server.PID() != 0 || server.Dir() != "" || server.BinDir() != "" {
				t.Error("the server passes for a cluster of our own")
			}
			if server.Version() != host.Version() {
				t.Errorf("the version is %s", server.Version())
			}
			if server.SocketDSN() != server.DSN() {
				t.Errorf("SocketDSN is %s", server.SocketDSN())
			}
			db := connect(t, server.DSN())
			execute(t, db, "create table things (id int)")
			schema := query(t, db, "select current_schema()")
			if got := query(t, admin, "select relnamespace::regnamespace from pg_class where relname = 'things'"); got != schema || got == "public" {
				t.Errorf("the table is in %s, the current schema is %s", got, schema)
			}
			if got := query(t, db, "show deadlock_timeout"); got != "77ms" {
				t.Errorf("deadlock_timeout is %s", got)
			}
			check(t, server.Stop())
			check(t, server.Stop())
			if after := query(t, admin, "select string_agg(nspname, ' ' order by nspname) from pg_namespace"); after != before {
				t.Errorf("schemas before: %s, after: %s", before, after)
			}
		})
	}
}

func TestNamedServerIsSparedFaults(t *testing.T) {
	host := host(t)
	t.Setenv(EnvDSN, host.DSN())
	server := start(t)
	backend, err := strconv.Atoi(query(t, connect(t, server.DSN()), "select pg_backend_pid()"))
	check(t, err)
	_, standbyErr := server.NewStandby(t.Context())
	for name, err := range map[string]error{
		"Restart":     server.Restart(t.Context(), Fast),
		"Kill":        server.Kill(),
		"KillBackend": server.KillBackend(backend),
		"NewStandby":  standbyErr,
		"Promote":     server.Promote(t.Context()),
	} {
		if !errors.Is(err, ErrExternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !running(backend) {
		t.Error("the backend was killed")
	}
}

func TestNamedServerHasToHaveTheSettingsAskedFor(t *testing.T) {
	t.Setenv(EnvDSN, host(t).DSN())
	server, err := Start(t.Context(), WithSettings(map[string]string{"max_prepared_transactions": "4"}))
	if err == nil {
		check(t, server.Stop())
		t.Fatal("a setting that only a restart changes was ignored")
	}
	if want := `the setting max_prepared_transactions is "3" and has to be "4"`; !strings.Contains(err.Error(), want) {
		t.Errorf("the error does not say %s: %v", want, err)
	}
}

func TestPasswordOfTheNamedServerIsNotShown(t *testing.T) {
	for _, dsn := range []string{
		"postgres://me:s3cret@127.0.0.1:1/db?sslmode=disable",
		"postgres://me:s3cret@127.0.0.1:port/db",
		"postgres://me:s3cret@127.0.0.1:1/db?sslmode=s3cret",
		"postgres://me:%s3cret@127.0.0.1/db",
		"postgres://127.0.0.1:1/db?password=s3cret&sslmode=disable",
		"postgres://127.0.0.1:1/db?password=%s3cret",
		"host=127.0.0.1 port=1 password=s3cret sslmode=disable",
		"host=127.0.0.1 port=s3cret",
		"host=127.0.0.1 password='s3cret",
		"host=127.0.0.1 password=my s3cret",
		`host=127.0.0.1 password=s3cret\`,
		"s3cret",
	} {
		t.Setenv(EnvDSN, dsn)
		server, err := Start(t.Context())
		if err == nil {
			check(t, server.Stop())
			t.Fatalf("something answers at %s", dsn)
		}
		if strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), EnvDSN) {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

func TestPasswordIsTakenOutOfWhatOthersSay(t *testing.T) {
	u := must(parseConnString("host=h user=u password='p@ss word'"))(t)
	err := withoutPassword(fmt.Errorf("cannot use p@ss word (%s)", u), u)
	if got := err.Error(); strings.Contains(got, "p@ss") || strings.Contains(got, "p%40ss") {
		t.Error(got)
	}
}

func TestConnectionStringsKeepTheirMeaning(t *testing.T) {
	for dsn, want := range map[string]string{
		"postgres://u:p%40@h:1/d?a=b%20c": "postgres://u:p%40@h:1/d?a=b%20c&x=y%20z",
		"postgresql://h":                  "postgresql://h?x=y%20z",
		"":                                "postgres:///?x=y%20z",
		"host=h port=1":                   "postgres:///?host=h&port=1&x=y%20z",
		` host = '/a b'  user=it\'s password='' `: "postgres:///?host=%2Fa%20b&password=&user=it%27s&x=y%20z",
		`a='\\\'' b=\\c`: "postgres:///?a=%5C%27&b=%5Cc&x=y%20z",
		"a= b=c":         "postgres:///?a=b%3Dc&x=y%20z", // as libpq reads it
		"x=1 a=":         "postgres:///?a=&x=y%20z",
	} {
		u := must(parseConnString(dsn))(t)
		if got := withParameters(u, map[string]string{"x": "y z"}); got != want {
			t.Errorf("%q became %s, not %s", dsn, got, want)
		}
	}
}
