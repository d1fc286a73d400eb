package pgretry

import (
	"context"
	"database/sql"
	"net/url"
	"sync/atomic"
	"testing"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// The questions must not need more than an application's role may do.
func TestTheFateOfACommitIsToldToOrdinaryRoles(t *testing.T) {
	dsn := pgtest.DSN(t)
	admin, err := tested.plainly(dsn)
	if err != nil {
		t.Fatal(err)
	}
	var schema string
	if err := admin.QueryRow(`SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	role := schema + "_app"
	if _, err := admin.Exec(`CREATE TABLE mark (id int); CREATE ROLE ` + role + ` LOGIN;
		GRANT USAGE ON SCHEMA ` + schema + ` TO ` + role + `; GRANT ALL ON mark TO ` + role); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(`DROP OWNED BY ` + role + `; DROP ROLE ` + role); err != nil {
			t.Error(err)
		}
		if err := admin.Close(); err != nil {
			t.Error(err)
		}
	})
	address, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := faultproxy.Start("tcp", address.Host, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	address.User = url.User(role)
	through, err := proxy.DSN(address.String())
	if err != nil {
		t.Fatal(err)
	}
	db, err := tested.open(through, WithCommitOutcome(CommitResolve))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	// After a black hole the process waits for COMMIT, and has to be ended.
	for i, cut := range []faultproxy.Action{{Kind: faultproxy.Cut, After: true}, {Kind: faultproxy.BlackHole}} {
		var armed atomic.Bool
		armed.Store(true)
		proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
			if commits(m) && armed.CompareAndSwap(true, false) {
				return cut
			}
			return faultproxy.Action{}
		})
		err := inTx(t.Context(), db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO mark VALUES ($1)`, i)
			return err
		})
		var there int
		if err := admin.QueryRow(`SELECT count(*) FROM mark WHERE id = $1`, i).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if err != nil || there != 1 || armed.Load() {
			t.Errorf("%+v: COMMIT gives %v, and the row is there %d times", cut, err, there)
		}
	}
}
