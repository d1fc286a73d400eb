package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestALostWriteInAClosureKeepsItsError(t *testing.T) {
	f := newFixture(t)
	f.losesLone(drivertest.AnyExec, "INSERT", driver.ErrBadConn)
	err := Retry(t.Context(), func(ctx context.Context) error {
		_, err := f.db.ExecContext(ctx, "INSERT INTO t VALUES (1)")
		return err
	})
	isLost(t, err, false)
}

func TestAHopelessReconnectEndsTheTransaction(t *testing.T) {
	for name, err := range map[string]error{
		"wrong password":   &drivertest.Error{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"},
		"no such database": &drivertest.Error{Severity: "FATAL", Code: "3D000", Message: "no such database"},
	} {
		t.Run(name, func(t *testing.T) {
			f := loses(t, 1)
			f.Fail(drivertest.Connect, err).After(1).Times(1)
			second, commit := two(f)
			isLost(t, second, true)
			isLost(t, commit, true)
			var lost *ConnectionLostError
			if !errors.As(second, &lost) || lost.Refusal != RefusedConnectionLost {
				t.Errorf("the call gives %v", second)
			}
			var retry *RetryError
			if !errors.As(commit, &retry) || !errors.Is(commit, ErrRefused) || retry.Refusal != RefusedConnectionLost {
				t.Errorf("COMMIT gives %v", commit)
			}
			if s := f.stats(); s.Refusals[RefusedConnectionLost] != 1 || len(f.waits) != 1 {
				t.Errorf("waited %v, statistics %+v", f.waits, s)
			}
		})
	}
}

func TestAHopelessReconnectEndsTheQuestionForTheFate(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve), WithResolveTimeout(100*time.Millisecond))
	f.keeps(nil)
	f.Fail(drivertest.Connect, &drivertest.Error{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"}).After(1)
	f.losesACommit()
	err := inTx(t.Context(), f.db, writes)
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || len(f.waits) != 0 {
		t.Errorf("COMMIT gives %v, waited %d times", err, len(f.waits))
	}
}

func TestALossWhileAnOrphanIsEndedIsALossLikeAnyOther(t *testing.T) {
	f, r := orphanage(t, nil, true)
	f.Fail(drivertest.Begin, driver.ErrBadConn).At(2).Drops()
	r.errs[asksEnd] = driver.ErrBadConn
	err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		if err := writes(ctx, tx); err != nil {
			return err
		}
		delete(r.errs, asksEnd)
		return nil
	})
	var lost *ConnectionLostError
	if err != nil && !errors.As(err, &lost) {
		t.Errorf("it gives %v", err)
	}
}
