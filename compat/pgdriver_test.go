package compat

import (
	"context"
	"database/sql"
	"testing"

	"github.com/uptrace/bun/driver/pgdriver"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// The driver that comes with bun tells no SQLSTATE by the method that the others have.
func TestDeadlocksAreSurvivedWithPgdriver(t *testing.T) {
	connector, err := pgretry.NewConnector(pgdriver.NewConnector(pgdriver.WithDSN(pgtest.DSN(t))))
	if err != nil {
		t.Fatal(err)
	}
	db := closedAtLast(t, sql.OpenDB(connector))
	var schema string
	if err := closedAtLast(t, openPgx(t, pgtest.DSN(t))).QueryRow(`SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	execAll(t, db, accounts, `INSERT INTO account VALUES (1, 100), (2, 100)`)
	for name, transfer := range map[string]func(ctx context.Context, from, to int, locked func()) error{
		"by the driver's name alone": func(ctx context.Context, from, to int, locked func()) error {
			return beginMoveCommit(ctx, db, from, to, locked)
		},
		"RunInTx": func(ctx context.Context, from, to int, locked func()) error {
			return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				return moveTogether(ctx, tx, from, to, locked)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			if errs := collide(t, transfer); errs != [2]error{} {
				t.Errorf("the errors are %v", errs)
			}
			wantBalance(t, db, 1, 100)
			wantBalance(t, db, 2, 100)
		})
	}
	stats, err := pgretry.StatsOf(db)
	if err != nil || stats.HiddenBySQLState["40P01"] == 0 || stats.RetriesBySQLState["40P01"] == 0 || stats.PlainConflicts != 0 {
		t.Errorf("stats are %+v, %v", stats, err)
	}
}
