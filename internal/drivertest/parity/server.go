package parity

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// Opener opens a real server with and without the wrapper. Both handles and each
// call of them must lead to the same database and the same search path, in a schema
// where tables and types may be made.
type Opener struct {
	// Raw opens it through the bare driver, Wrapped through the wrapper. The suite
	// closes what it gets.
	Raw, Wrapped func(t *testing.T) *sql.DB
	// CopyIn says that the driver does COPY FROM STDIN through Prepare, as lib/pq.
	CopyIn bool
}

// Run compares the two sides of open on a real server, in every scenario, and
// reports the differences as subtests.
func Run(t *testing.T, open Opener, except ...Exception) {
	t.Helper()
	x := newExceptions(except)
	skipped := false
	t.Cleanup(setUp(t, open))
	for _, sc := range serverScenarios {
		if sc.copyIn && !open.CopyIn {
			continue
		}
		ran := false
		t.Run(sc.name, func(t *testing.T) {
			ran = true
			if text := compareServer(t, x, sc, open); text != "" {
				t.Error("\n" + text)
			}
		})
		skipped = skipped || !ran
	}
	if skipped {
		return // an exception may be for what was not run
	}
	for _, problem := range x.problems() {
		t.Error(problem)
	}
}

// Compare returns what [Run] reports, of the scenarios selected. It uses t for what
// it cannot go on without, never to report a difference.
func Compare(t *testing.T, open Opener, except []Exception, only Selection) []Difference {
	t.Helper()
	x := newExceptions(except)
	defer setUp(t, open)()
	var differences []Difference
	for _, sc := range serverScenarios {
		if sc.copyIn && !open.CopyIn || !matchPattern(only.Scenario, sc.name) {
			continue
		}
		if text := compareServer(t, x, sc, open); text != "" {
			differences = append(differences, Difference{Scenario: sc.name, Text: text})
		}
	}
	return append(differences, x.problems()...)
}

func compareServer(t *testing.T, x *exceptions, sc scenario, open Opener) string {
	t.Helper()
	watch := open.Raw(t)
	defer func() {
		if err := watch.Close(); err != nil {
			t.Errorf("close the observing handle: %v", err)
		}
	}()
	observe := func(db *sql.DB) observation {
		if _, err := watch.Exec(emptyTables); err != nil {
			t.Fatalf("empty the tables: %v", err)
		}
		s := &session{db: db, watch: watch}
		return observation{lines: play(s, sc)}
	}
	return x.compare(sc.name, drivertest.NamedFeatures{}, observe(open.Raw(t)), observe(open.Wrapped(t)))
}

// setUp makes the tables and types of the scenarios, once, so that both sides see
// the same object identifiers. It returns the function that drops them.
func setUp(t *testing.T, open Opener) func() {
	t.Helper()
	run := func(script string) {
		t.Helper()
		db := open.Raw(t)
		defer func() {
			if err := db.Close(); err != nil {
				t.Errorf("close the handle for the schema: %v", err)
			}
		}()
		// One by one: not every driver takes several statements at once.
		for _, statement := range splitScript(script) {
			if _, err := db.Exec(statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
	}
	run(dropSchema)
	run(createSchema)
	return func() { run(dropSchema) }
}

// await waits until cond, a query for one boolean, is true on the server.
func (s *session) await(what, cond string, args ...any) {
	for {
		var ok bool
		if err := s.watch.QueryRowContext(s.ctx, cond, args...).Scan(&ok); err != nil {
			panic(fmt.Errorf("wait until %s: %w", what, err))
		}
		if ok {
			return
		}
		select {
		case <-s.ctx.Done():
			panic(fmt.Errorf("wait until %s: %w", what, s.ctx.Err()))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

const sleeping = `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND state = 'active' AND query ILIKE $1`

// awaitSleep waits until a statement whose text contains marker is inside pg_sleep.
func (s *session) awaitSleep(marker string) {
	s.await("the server sleeps", "SELECT ("+sleeping+") > 0", "%"+marker+"%")
}

// awaitWake waits until no statement whose text contains marker is inside pg_sleep.
// Drivers that give a cancelled connection up may leave its backend asleep for a
// while, which must not be taken for the next one.
func (s *session) awaitWake(marker string) {
	s.await("the server has woken up", "SELECT ("+sleeping+") = 0", "%"+marker+"%")
}

// whileSleeping runs do with a context that is cancelled once the server is inside
// pg_sleep of a statement that contains marker, and waits for do to return.
func (s *session) whileSleeping(marker string, do func(context.Context)) {
	s.awaitWake(marker)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				s.note("panic: %v", v)
			}
		}()
		do(ctx)
	}()
	s.awaitSleep(marker)
	cancel()
	<-done
}

// pid returns the process number of the backend behind q.
func (s *session) pid(q querier) int {
	var pid int
	if err := q.QueryRowContext(s.ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		s.err("backend pid", err)
	}
	return pid
}
