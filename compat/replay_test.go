package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func wantHidden(t *testing.T, db *sql.DB, sqlState string) {
	t.Helper()
	stats, err := pgretry.StatsOf(db)
	if err != nil || stats.HiddenBySQLState[sqlState] == 0 || stats.PlainConflicts != 0 || stats.Closures != 0 {
		t.Errorf("stats are %+v, %v, want hidden conflicts of %s and no others", stats, err, sqlState)
	}
}

// TestALibrarysTransactionFailsWithLibPQ runs the same with the other name.
func TestALibrarysTransactionSurvivesADeadlockByTheDriversNameAlone(t *testing.T) {
	for name, l := range libraries {
		t.Run(name, func(t *testing.T) {
			o := l.use(t, pgretry.DriverName)
			if errs := collide(t, o.transfer); errs != [2]error{} || o.balances(t) != [2]int{} {
				t.Errorf("the errors are %v, the balances %v", errs, o.balances(t))
			}
			wantHidden(t, o.db, "40P01")
		})
	}
}

func TestALibrarysNestedTransactionCanFailAloneOutsideClosures(t *testing.T) {
	for name, l := range libraries {
		o := l.use(t, pgretry.DriverName)
		if o.insertTwice == nil {
			continue // sqlx has no nested transactions
		}
		t.Run(name, func(t *testing.T) {
			var inner error
			if err := o.insertTwice(t.Context(), 3, &inner); err != nil || !o.duplicate(inner) {
				t.Errorf("the transaction gives %v, the nested one %v", err, inner)
			}
		})
	}
}

func beginMoveCommit(ctx context.Context, db *sql.DB, from, to int, locked func()) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := moveTogether(ctx, tx, from, to, locked); err != nil {
		return err
	}
	return tx.Commit()
}

func TestATransactionSurvivesADeadlockByReplayWithPgx(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		errs := collide(t, func(ctx context.Context, from, to int, locked func()) error {
			return beginMoveCommit(ctx, db, from, to, locked)
		})
		if errs != [2]error{} {
			t.Errorf("the errors are %v", errs)
		}
		wantBalance(t, db, 1, 100)
		wantBalance(t, db, 2, 100)
		wantHidden(t, db, "40P01")
	})
}

func TestAHalfReadResultGoesOnWhereItStoodWithPgx(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		execAll(t, db, `CREATE SEQUENCE fails`,
			`CREATE FUNCTION fail_at(n int, at int) RETURNS int LANGUAGE plpgsql AS $$
			BEGIN
				IF n = at AND nextval('fails') = 1 THEN
					RAISE EXCEPTION 'once' USING ERRCODE = '40001';
				END IF;
				RETURN n;
			END $$`)
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		prepared, err := tx.PrepareContext(t.Context(), `SELECT n, fail_at(n, $1), n::numeric, n::text FROM generate_series(1, 1000) n`)
		if err != nil {
			t.Fatal(err)
		}
		rows, err := prepared.QueryContext(t.Context(), 500)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for rows.Next() {
			var a, b int
			var c, d string
			if err := rows.Scan(&a, &b, &c, &d); err != nil {
				t.Fatal(err)
			}
			if seen++; a != seen || b != seen || c != d {
				t.Fatalf("row %d is %d, %d, %s, %s", seen, a, b, c, d)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close(), tx.Commit()); err != nil || seen != 1000 {
			t.Errorf("%d rows were seen, %v", seen, err)
		}
		wantHidden(t, db, "40001")
	})
}

func TestADivergedReplayGivesPgxsErrorWithAHint(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		var balance int
		if err := tx.QueryRow(`SELECT balance FROM account WHERE id = 1`).Scan(&balance); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(takeOne, 1); err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(`UPDATE account SET balance = $1 WHERE id = 1`, balance*2)
		pgErr, ok := err.(*pgconn.PgError) //nolint:errorlint // what libraries do
		if !ok || pgErr.Code != "40001" || pgErr.Message == "" || pgErr.Hint == "" {
			t.Errorf("UPDATE gives %#v", err)
		}
		if err := tx.Commit(); !errors.Is(err, pgretry.ErrDiverged) || !errors.As(err, &pgErr) {
			t.Errorf("Commit gives %v", err)
		}
		wantBalance(t, db, 1, 99)
	})
}

// pgx takes values of many types as they are, and they are executed again as they were.
func TestArgumentsThatOnlyPgxUnderstands(t *testing.T) {
	db := closedAtLast(t, openPgx(t, pgtest.DSN(t)))
	execAll(t, db, `CREATE TABLE taken (document jsonb, note text, span int4range)`, `CREATE SEQUENCE fails`,
		`CREATE FUNCTION fail_once() RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			IF nextval('fails') = 1 THEN
				RAISE EXCEPTION 'once' USING ERRCODE = '40001';
			END IF;
		END $$`)
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	var sum int
	if err := tx.QueryRow(`SELECT sum(n) FROM unnest($1::int[]) n`, []int32{1, 2, 3}).Scan(&sum); err != nil || sum != 6 {
		t.Errorf("the sum is %d, %v", sum, err)
	}
	if err := tx.QueryRow(`SELECT ($1::jsonb->>'a')::int`, map[string]int{"a": 7}).Scan(&sum); err != nil || sum != 7 {
		t.Errorf("the number is %d, %v", sum, err)
	}
	document := map[string]any{"list": []any{1.0, "a"}}
	note := "note"
	if _, err := tx.Exec(`INSERT INTO taken VALUES ($1, $2, $3)`, document, &note, pgtype.Range[pgtype.Int4]{
		Lower: pgtype.Int4{Int32: 1, Valid: true}, Upper: pgtype.Int4{Int32: 3, Valid: true},
		LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
	}); err != nil {
		t.Fatal(err)
	}
	document["list"].([]any)[0], note = 9.0, "changed"
	if _, err := tx.Exec(`SELECT fail_once()`); err != nil {
		t.Error(err)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	var got string
	if err := db.QueryRow(`SELECT concat_ws(' ', document, note, span) FROM taken`).Scan(&got); err != nil || got != `{"list": [1, "a"]} note [1,3)` {
		t.Errorf("there is %s, %v", got, err)
	}
	wantHidden(t, db, "40001")
}
