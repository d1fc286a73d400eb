package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// forHours waits longer between attempts than any test lasts.
var forHours = []Option{
	WithBackOff(func() backoff.BackOff { return backoff.NewConstantBackOff(time.Hour) }),
	WithPolicy(Policy{MaxDelay: time.Hour, MaxElapsed: 2 * time.Hour}),
}

var untilRivalsEnd = []Option{WithPolicy(Policy{MaxDelay: time.Hour, BaseDelay: time.Millisecond, MaxElapsed: 2 * time.Hour})}

// phases are where in a replay a context may end.
var phases = []struct {
	name     string
	options  []Option
	deadlock bool           // or a conflict that is scripted
	rolled   func(a *arena) // when the attempt was rolled back
	reached  func(a *arena) // returns when the replay is there
}{
	{name: "waiting for the next attempt", options: forHours},
	{
		name: "waiting for the end of rivals", options: untilRivalsEnd, deadlock: true,
		reached: func(a *arena) {
			a.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%virtualtransaction IN (%')`)
		},
	},
	{
		name:    "executing again",
		rolled:  func(a *arena) { a.rivalDoes("BEGIN", crossing.wants) },
		reached: (*arena).isWaitedFor,
	},
}

// lateLock takes account 2 at COMMIT.
const lateLock = `CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE account SET balance = balance + 1 WHERE id = 2;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON trace DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()`

func TestAReplayEndsWithTheContextWhereverItStands(t *testing.T) {
	for _, phase := range phases {
		for _, whose := range []string{"the statement's", "BEGIN's", "BEGIN's in COMMIT"} {
			t.Run(phase.name+"/"+whose, func(t *testing.T) {
				var a *arena
				retried := make(chan struct{}, 1)
				hook := WithOnRetry(func(_ context.Context, e Event) {
					if e.Decision != DecisionRetried {
						return
					}
					if phase.rolled != nil {
						phase.rolled(a)
					}
					retried <- struct{}{}
				})
				late := lateConflict
				if phase.deadlock {
					late = lateLock
				}
				a = enter(t, append([]Option{hook}, phase.options...), bank, conflicts, late)
				a.db.SetMaxOpenConns(1)

				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				reason := errors.New("enough")
				begin, statement := ctx, t.Context()
				if whose == "the statement's" {
					begin, statement = statement, begin
				}
				tx, err := a.db.BeginTx(begin, nil)
				if err != nil {
					t.Fatal(err)
				}
				s := &script{arena: a, Tx: tx}
				s.does(`SET LOCAL test.state = '40001'`)
				s.seesThat("100", `SELECT balance FROM account WHERE id = 3`)
				s.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
				if whose == "BEGIN's in COMMIT" {
					s.does(`INSERT INTO trace VALUES ('x')`)
				}
				state, call := "40001", `SELECT conflict()`
				wanted := make(chan error, 1)
				if phase.deadlock {
					state, call = "40P01", `UPDATE account SET balance = balance + 1 WHERE id = 2`
					a.rivalDoes("BEGIN", crossing.holds)
					go func() {
						_, err := a.rival.ExecContext(t.Context(), crossing.wants)
						wanted <- err
					}()
					a.until(`SELECT cardinality(pg_blocking_pids($1)) > 0`, a.pid)
				} else {
					wanted <- nil
				}
				returned, done := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					select {
					case <-retried:
					case <-returned:
						t.Error("there is no replay")
						return
					}
					if phase.reached != nil {
						phase.reached(a)
					}
					cancel(reason)
				}()
				if whose == "BEGIN's in COMMIT" {
					err = tx.Commit()
				} else {
					_, err = tx.ExecContext(statement, call)
				}
				close(returned)
				<-done
				if !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || !errors.Is(err, ErrExhausted) || sqlState(err) != state {
					t.Errorf("the call gives %v", err)
				}
				if err := <-wanted; err != nil {
					t.Error(err)
				}
				if whose == "the statement's" {
					err := tx.Commit()
					if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrExhausted) || sqlState(err) != state {
						t.Errorf("COMMIT gives %v", err)
					}
				}
				_ = tx.Rollback()
				a.rivalDoes("COMMIT") // of nothing, where it did nothing
				a.isLeftAsItWas()
			})
		}
	}
}

// isLeftAsItWas checks that the only connection can be used and holds nothing.
func (a *arena) isLeftAsItWas() {
	a.Helper()
	if err := a.db.PingContext(a.Context()); err != nil {
		a.Error(err)
	}
	const locks = `FROM pg_locks JOIN pg_class c ON c.oid = relation AND relname IN ('account', 'trace')
		WHERE relnamespace = current_schema()::regnamespace`
	if tested.cancelsLost {
		a.until(`SELECT count(*) = 0 ` + locks) // pgx ends a session behind our back
	}
	a.is("0", `SELECT count(*) `+locks)
	a.is("0", `SELECT count(*) FROM trace`)
	before := a.read(`SELECT balance FROM account WHERE id = 4`)
	again := a.begin(sql.LevelReadCommitted)
	again.seesThat("", `SELECT nullif(current_setting('test.state', true), '')`)
	again.does(`UPDATE account SET balance = balance + 1 WHERE id = 4`)
	again.commits()
	a.is(before, `SELECT balance - 1 FROM account WHERE id = 4`)
	if s := a.stats(); s.PlainConflicts != 1 || s.Hidden != 0 || s.Committed > 1 {
		a.Errorf("the statistics are %+v", s)
	}
}

func TestAStatementOutsideATransactionEndsItsWaitWithItsContext(t *testing.T) {
	retried := make(chan struct{}, 1)
	hook := WithOnRetry(func(_ context.Context, e Event) {
		if e.Decision == DecisionRetried {
			retried <- struct{}{}
		}
	})
	a := enter(t, append([]Option{hook}, forHours...), bank, conflicts)
	a.db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	reason := errors.New("enough")
	go func() {
		select {
		case <-retried:
			cancel(reason)
		case <-ctx.Done():
		}
	}()
	_, err := a.db.ExecContext(ctx, `SELECT conflict()`)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || !errors.Is(err, ErrExhausted) || sqlState(err) != "40001" {
		t.Errorf("the statement gives %v", err)
	}
	a.isLeftAsItWas()
}

func TestADeadlineBeforeTheNextAttemptIsNotWaitedFor(t *testing.T) {
	for _, whose := range []string{"the statement's", "BEGIN's", "BEGIN's in COMMIT", "a statement's outside a transaction"} {
		t.Run(whose, func(t *testing.T) {
			a := enter(t, forHours, bank, conflicts, lateConflict)
			a.db.SetMaxOpenConns(1)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			met := func(err error) {
				t.Helper()
				server, ok := tested.said(err)
				if !ok || server.code != "40001" || !strings.Contains(server.hint, "deadline comes before the next one") {
					t.Errorf("the call gives %#v", err)
				}
			}
			if whose == "a statement's outside a transaction" {
				_, err := a.db.ExecContext(ctx, `SELECT conflict()`)
				met(err)
				a.isLeftAsItWas()
				return
			}
			begin, statement := ctx, t.Context()
			if whose == "the statement's" {
				begin, statement = statement, begin
			}
			tx, err := a.db.BeginTx(begin, nil)
			if err != nil {
				t.Fatal(err)
			}
			s := &script{arena: a, Tx: tx}
			s.does(`SET LOCAL test.state = '40001'`)
			s.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
			if whose == "BEGIN's in COMMIT" {
				s.does(`INSERT INTO trace VALUES ('x')`)
				met(tx.Commit())
				a.isLeftAsItWas()
				return
			}
			_, err = tx.ExecContext(statement, `SELECT conflict()`)
			met(err)
			err = tx.Commit()
			if !errors.Is(err, ErrExhausted) || !errors.Is(err, context.DeadlineExceeded) || sqlState(err) != "40001" {
				t.Errorf("COMMIT gives %v", err)
			}
			a.isLeftAsItWas()
		})
	}
}
