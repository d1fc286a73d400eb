package script

import (
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
// are found after 10 ms. No goroutine may be left at last, but for those that the library
// itself leaves, which the functions tell.
func Main(m *testing.M, leaves ...string) int {
	code := pgtest.Main(m, pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"}))
	if code == 0 {
		var known []goleak.Option
		for _, function := range leaves {
			known = append(known, goleak.IgnoreAnyFunction(function))
		}
		if err := goleak.Find(known...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	return code
}

// Test runs the script with a library: over lib/pq undisturbed, which is what all other
// runs are compared with; over pgretry undisturbed, with aborts, and in deadlocks, with
// nothing but the driver's name changed and then as closures; and in the same disturbances
// over lib/pq alone, where it has to fail. Then all that with pgx in the place of lib/pq.
func Test(t *testing.T, open Open) {
	t.Run("lib/pq", func(t *testing.T) { test(t, setting{open, libPQ, direct}) })
	t.Run("pgx", func(t *testing.T) { TestOverPgx(t, open) })
}

// TestOverPgx is Test with pgx only, whose driver is known as postgres-pgx, alone, and as
// postgres-retry-pgx with pgretry around it.
func TestOverPgx(t *testing.T, open Open) { test(t, setting{open, pgx, direct}) }

// setting is where the script runs.
type setting struct {
	open  Open
	inner inner
	// address gives the DSN of an empty database for the application, and the one that leads
	// to the server itself.
	address func(t *testing.T) (dsn, server string)
}

func direct(t *testing.T) (dsn, server string) {
	t.Helper()
	dsn = pgtest.DSN(t)
	return dsn, dsn
}

func test(t *testing.T, at setting) {
	inner := at.inner
	reference := newRun(t, at, inner.alone)
	want := reference.result()
	reference.wantKnown(want)
	t.Run("undisturbed", func(t *testing.T) { newRun(t, at, inner.wrapped).compare(want) })
	for _, closures := range []bool{false, true} {
		how := "by the driver's name alone"
		if closures {
			how = "in closures"
		}
		t.Run(how, func(t *testing.T) {
			for _, p := range probabilities {
				t.Run(fmt.Sprintf("aborted with p=%v", p), func(t *testing.T) {
					before := aborted(abortingName(inner.wrapped, p, false))
					for runs := 0; aborted(abortingName(inner.wrapped, p, false)) == before; runs++ {
						if runs == 10 { // one in thirty aborts none with p=0.2
							t.Fatal("no transaction was aborted")
						}
						r := newAbortingRun(t, at, inner.wrapped, p)
						r.closures = closures
						r.compare(want)
					}
				})
			}
			t.Run("in deadlocks", func(t *testing.T) {
				r := newRun(t, at, inner.wrapped)
				r.closures = closures
				r.meetRival()
				r.compare(want)
				stats, err := pgretry.StatsOf(r.app.DB())
				met := stats.RetriesBySQLState["40P01"] + stats.HiddenBySQLState["40P01"]
				// Behind a pooler a wait that the driver bounds may be over before the server looks.
				met += stats.RetriesBySQLState["55P03"] + stats.HiddenBySQLState["55P03"]
				if err != nil || met < int64(len(steps)) {
					t.Errorf("%d deadlocks in %d transactions, %v: %+v", met, len(steps), err, stats)
				}
			})
		})
	}
	t.Run("without us", func(t *testing.T) {
		for _, p := range probabilities {
			t.Run(fmt.Sprintf("aborted with p=%v", p), func(t *testing.T) { newAbortingRun(t, at, inner.alone, p).wantConflict() })
		}
		t.Run("in deadlocks", func(t *testing.T) {
			r := newRun(t, at, inner.alone)
			r.meetRival()
			r.wantConflict()
		})
	})
}

// newRun opens the application under a driver's name.
func newRun(t *testing.T, at setting, driverName string) *run {
	t.Helper()
	r := &run{T: t, open: at.open, driverName: driverName, outsideName: driverName}
	r.dsn, r.server = at.address(t)
	var err error
	if r.app, err = r.start(driverName); err != nil {
		r.Fatal(err)
	}
	return r
}

// newAbortingRun opens it over a driver that aborts, alone or below pgretry.
func newAbortingRun(t *testing.T, at setting, base string, p float64) *run {
	t.Helper()
	r := newRun(t, at, abortingName(base, p, false))
	r.outsideName = abortingName(base, p, true)
	return r
}

// start opens the application, until the test ends. Some libraries ask the server
// something when they are opened, which a conflict may meet.
func (r *run) start(driverName string) (App, error) {
	r.Helper()
	app, err := r.open(r.Context(), driverName, r.dsn)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	r.Cleanup(func() {
		if err := app.Close(); err != nil {
			r.Error(err)
		}
	})
	return app, nil
}

func (r *run) meetRival() {
	r.Helper()
	r.rival = NewRival(r.T, r.server)
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

func (r *run) result() (result result) {
	r.Helper()
	var err error
	if result.saw, err = r.play(); err != nil {
		r.Fatalf("%v%s\nafter\n%s", err, hint(err), strings.Join(result.saw, "\n"))
	}
	if err := r.quietly(func() error {
		result.left, err = state(r.Context(), r.app.DB())
		return err
	}); err != nil {
		r.Fatal(err)
	}
	return result
}

// compare runs the script and wants the same to come out.
func (r *run) compare(want result) {
	r.Helper()
	got := r.result()
	r.differ("the application saw", got.saw, want.saw)
	r.differ("the database holds", got.left, want.left)
}

func (r *run) differ(what string, got, want []string) {
	r.Helper()
	if slices.Equal(got, want) {
		return
	}
	got, want = append(got, "nothing more"), append(want, "nothing more")
	i := 0
	for got[i] == want[i] {
		i++
	}
	r.Errorf("%s, in line %d:\n%s\nwant\n%s", what, i+1, got[i], want[i])
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
