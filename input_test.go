package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"math/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestAnUnknownCommitStaysUnknownWhateverTheClosureDoesNext(t *testing.T) {
	for name, next := range map[string]func(context.Context, *sql.DB) error{
		"lone": func(ctx context.Context, db *sql.DB) error { _, err := db.ExecContext(ctx, "SELECT 1"); return err },
		"tx": func(ctx context.Context, db *sql.DB) error {
			return inTx(ctx, db, func(context.Context, *sql.Tx) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Fail(drivertest.Commit, driver.ErrBadConn).Drops().Times(1)
			err := Retry(t.Context(), func(ctx context.Context) error {
				err := inTx(ctx, f.db, transfer)
				return errors.Join(err, next(ctx, f.db))
			})
			var unknown *CommitUnknownError
			if !errors.As(err, &unknown) {
				t.Errorf("Retry gives %v", err)
			}
		})
	}
}

func TestOurParametersAreFoundBehindLettersBeyondASCII(t *testing.T) {
	for _, password := range []string{"voilà", "Å", "充", "x à y", "'voilà là'"} {
		name := "host=h password=" + password + " pgretry_mode=off user=u"
		if strings.Contains(password, " ") && password[0] != '\'' {
			continue
		}
		d, err := parseDSN(name)
		if err != nil || strings.Contains(d.inner, "pgretry") || len(d.parameters) != 1 {
			t.Errorf("%s: %+v %v", name, d, err)
		}
	}
}

func TestRaceOfClosures(t *testing.T) {
	o := newObservatory(t)
	for _, opts := range [][]Option{nil, o.options()} {
		d := drivertest.New(drivertest.WithFeatures(drivertest.LibPQ), drivertest.WithTransactionState(pq.ErrInFailedTransaction))
		connector, err := NewConnector(d.Connector(), opts...)
		if err != nil {
			t.Fatal(err)
		}
		connector.config.wait = func(context.Context, time.Duration) error { return nil }
		connector.config.closing = time.Millisecond
		db := sql.OpenDB(connector)
		for _, c := range []drivertest.Call{drivertest.Exec, drivertest.Commit, drivertest.Begin, drivertest.Connect, drivertest.RowsNext} {
			d.On(c).Do(func(*drivertest.Invocation) error {
				switch rand.Intn(12) {
				case 0:
					return serverErr("40001")
				case 1:
					return serverErr("40P01")
				}
				return nil
			})
		}
		var leaked, wg sync.WaitGroup
		for i := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 60 {
					body := func(ctx context.Context) {
						var in sync.WaitGroup
						for k := range 3 {
							in.Add(1)
							leaked.Add(1)
							go func() {
								defer leaked.Done()
								if k > 0 {
									defer in.Done()
								} else {
									in.Done()
								}
								switch k {
								case 0:
									_ = inTx(ctx, db, transfer)
								case 1:
									_, _ = db.ExecContext(ctx, "INSERT")
								case 2:
									_ = RunInTx(ctx, db, nil, func(context.Context, *sql.Tx) error { return nil })
								}
							}()
						}
						in.Wait()
					}
					if i%2 == 0 {
						_ = RunInTx(ContextWithIdempotence(t.Context()), db, nil, func(ctx context.Context, tx *sql.Tx) error { body(ctx); return transfer(ctx, tx) })
					} else {
						_ = Retry(ContextWithIdempotence(t.Context()), func(ctx context.Context) error { body(ctx); return inTx(ctx, db, transfer) })
					}
				}
			}()
		}
		wg.Wait()
		leaked.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if v := d.Violations(); len(v) > 0 {
			t.Error(v[0], len(v))
		}
		if d.OpenTxs() != 0 || d.OpenConns() != 0 {
			t.Error(d.OpenTxs(), d.OpenConns())
		}
	}
}

func TestATxBeginnerThatReturnsNothingIsAnError(t *testing.T) {
	defer func() {
		if v := recover(); v != nil {
			t.Errorf("panics: %v", v)
		}
	}()
	err := RunInTx(t.Context(), nothing{}, nil, transfer)
	if err == nil {
		t.Error("no error")
	}
}

type nothing struct{}

func (nothing) BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error) { return nil, nil }

func TestAWrapperAroundASQLConnIsOneSession(t *testing.T) {
	f := newFixture(t)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.Fail(drivertest.Exec, driver.ErrBadConn).Drops().Times(1)
	runs := 0
	err = RunInTx(t.Context(), struct{ *sql.Conn }{c}, nil, func(ctx context.Context, tx *sql.Tx) error { runs++; return transfer(ctx, tx) })
	t.Log(err, runs, c.Close())
	if errors.Is(err, sql.ErrConnDone) {
		t.Error(err)
	}
}

func TestADeadlockOfALoneStatementIsTold(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, o.options()...)
	f.connector.config.now = time.Now
	f.Fail(drivertest.Exec, deadlockErr).Times(1)
	if err := Retry(t.Context(), func(ctx context.Context) error { _, err := f.db.ExecContext(ctx, "UPDATE"); return err }); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(o.tree(), eventDeadlock) {
		t.Errorf("no event:\n%s", o.tree())
	}
}
