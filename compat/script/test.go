package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// Main runs the tests of a library's package with a server for them, on which deadlocks
// are found after 10 ms.
func Main(m *testing.M) int {
	code := pgtest.Main(m, pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"}))
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// Test runs the script with a library: over lib/pq undisturbed, which is what all other
// runs are compared with; over pgretry undisturbed, with aborts, and in deadlocks, with
// nothing but the driver's name changed and then as closures; and in the same disturbances
// over lib/pq alone, where it has to fail.
func Test(t *testing.T, open Open) {
	want := reference(t, open)
	t.Run("undisturbed", func(t *testing.T) {
		r := start(t, open, pgretry.DriverName, pgtest.DSN(t))
		want.compare(t, r)
	})
	for _, closures := range []bool{false, true} {
		how := "by the driver's name alone"
		if closures {
			how = "in closures"
		}
		t.Run(how, func(t *testing.T) {
			for _, p := range probabilities {
				t.Run(fmt.Sprintf("aborted with p=%v", p), func(t *testing.T) {
					r := start(t, open, abortingName("postgres-retry", p), pgtest.DSN(t))
					r.closures, r.aborts = closures, newAborts("postgres-retry", p)
					want.compare(t, r)
					if r.aborts.total() == 0 {
						t.Error("nothing was aborted")
					}
				})
			}
			t.Run("in deadlocks", func(t *testing.T) {
				r := start(t, open, pgretry.DriverName, pgtest.DSN(t))
				r.closures = closures
				r.meetRival()
				want.compare(t, r)
				stats, err := pgretry.StatsOf(r.app.DB())
				if met := stats.RetriesBySQLState["40P01"] + stats.HiddenBySQLState["40P01"]; err != nil || met < int64(len(steps)) {
					t.Errorf("%d deadlocks in %d transactions, %v", met, len(steps), err)
				}
			})
		})
	}
	t.Run("with lib/pq in our place", func(t *testing.T) {
		for _, p := range probabilities {
			t.Run(fmt.Sprintf("aborted with p=%v", p), func(t *testing.T) {
				r := start(t, open, abortingName("postgres", p), pgtest.DSN(t))
				r.aborts = newAborts("postgres", p)
				r.wantConflict()
			})
		}
		t.Run("in deadlocks", func(t *testing.T) {
			r := start(t, open, "postgres", pgtest.DSN(t))
			r.meetRival()
			r.wantConflict()
		})
	})
}

// start opens the application under a driver's name.
func start(t *testing.T, open Open, driverName, dsn string) *run {
	t.Helper()
	app, err := open(t.Context(), driverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := app.Close(); err != nil {
			t.Error(err)
		}
	})
	return &run{T: t, app: app, dsn: dsn}
}

func (r *run) meetRival() {
	r.Helper()
	met, err := newRival(r.Context(), r.dsn)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := met.close(); err != nil {
			r.Error(err)
		}
	})
	r.rival = met
}

// wantConflict wants the script to fail with one of the two errors.
func (r *run) wantConflict() {
	r.Helper()
	r.strict = true
	if _, err := r.play(); err == nil || !isConflict(err) {
		r.Errorf("the script gives %v, want a conflict, or the other runs prove nothing", err)
	}
}

// result is what a run was like.
type result struct{ saw, left []string }

func reference(t *testing.T, open Open) result {
	t.Helper()
	r := start(t, open, "postgres", pgtest.DSN(t))
	return r.result()
}

func (r *run) result() (result result) {
	r.Helper()
	var err error
	if result.saw, err = r.play(); err != nil {
		r.Fatalf("%v%s\nafter\n%s", err, hint(err), strings.Join(result.saw, "\n"))
	}
	if err := r.quietly(func() error {
		result.left, err = state(context.WithoutCancel(r.Context()), r.app.DB())
		return err
	}); err != nil {
		r.Fatal(err)
	}
	return result
}

// compare runs the script and wants the same to come out.
func (want result) compare(t *testing.T, r *run) {
	t.Helper()
	got := r.result()
	differ(t, "the application saw", got.saw, want.saw)
	differ(t, "the database holds", got.left, want.left)
}

func differ(t *testing.T, what string, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("%s, in line %d:\n%s\nwant\n%s", what, i+1, g, w)
			return
		}
	}
}

// hint is why the driver could not hide a conflict.
func hint(err error) string {
	var pqErr *pq.Error
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pqErr):
		return "\n" + pqErr.Hint
	case errors.As(err, &pgErr):
		return "\n" + pgErr.Hint
	}
	return ""
}
