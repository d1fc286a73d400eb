package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgbouncer"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// bounced returns a database behind PgBouncer in transaction mode, with a proxy on
// this side of it, and the schema's name, because PgBouncer forgets the search path.
func bounced(t *testing.T) (db, plain *sql.DB, proxy *faultproxy.Proxy, schema string) {
	t.Helper()
	direct := pgtest.DSN(t)
	plain, err := tested.plainly(direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plain.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := plain.QueryRow(`SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	bouncer, err := pgbouncer.Start(t.Context(), direct, "transaction", 5)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bouncer.Stop(); err != nil {
			t.Error(err)
		}
	})
	address, err := url.Parse(bouncer.DSN())
	if err != nil {
		t.Fatal(err)
	}
	if proxy, err = faultproxy.Start("tcp", address.Host, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	dsn, err := proxy.DSN(bouncer.DSN())
	if err != nil {
		t.Fatal(err)
	}
	if db, err = tested.open(withParameters(t, dsn, tested.pooled), WithCommitOutcome(CommitResolve)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db, plain, proxy, schema
}

func TestBehindPgBouncerTheFateOfACommitIsKnown(t *testing.T) {
	db, plain, proxy, schema := bounced(t)
	if _, err := plain.Exec(`CREATE TABLE mark (id int)`); err != nil {
		t.Fatal(err)
	}
	for i, cut := range []faultproxy.Action{
		{Kind: faultproxy.Cut},
		{Kind: faultproxy.Cut, After: true},
		{Kind: faultproxy.Cut, Reset: true},
		{Kind: faultproxy.Cut, After: true, Reset: true},
		{Kind: faultproxy.BlackHole},
		{Kind: faultproxy.BlackHole, After: true},
	} {
		t.Run(fmt.Sprintf("%+v", cut), func(t *testing.T) {
			var armed atomic.Bool
			armed.Store(true)
			proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
				if commits(m) && armed.CompareAndSwap(true, false) {
					return cut
				}
				return faultproxy.Action{}
			})
			err := inTx(t.Context(), db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s.mark VALUES ($1)`, schema), i)
				return err
			})
			var there int
			if err := plain.QueryRow(`SELECT count(*) FROM mark WHERE id = $1`, i).Scan(&there); err != nil {
				t.Fatal(err)
			}
			if err != nil || there != 1 || armed.Load() {
				t.Errorf("COMMIT gives %v, and the row is there %d times", err, there)
			}
		})
	}
	s, err := StatsOf(db)
	if err != nil || s.UnknownCommits != 0 || s.ResolvedCommits["committed"]+s.ResolvedCommits["aborted"] != 6 {
		t.Errorf("the statistics are %+v, %v", s, err)
	}
}

func TestBehindPgBouncerALostTransactionIsReplayed(t *testing.T) {
	db, plain, proxy, schema := bounced(t)
	if _, err := plain.Exec(`CREATE TABLE mark (id int)`); err != nil {
		t.Fatal(err)
	}
	err := inTx(t.Context(), db, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s.mark VALUES (1)`, schema)); err != nil {
			return err
		}
		if proxy.CutAll(false) == 0 {
			return errors.New("nothing to cut")
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s.mark VALUES (2)`, schema))
		return err
	})
	var there string
	if scanErr := plain.QueryRow(`SELECT string_agg(id::text, ' ' ORDER BY id) FROM mark`).Scan(&there); scanErr != nil || err != nil || there != "1 2" {
		t.Errorf("the transaction gives %v, and there is %s, %v", err, there, scanErr)
	}
}
