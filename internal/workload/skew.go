package workload

import (
	"context"
	"database/sql"
	"fmt"
)

// skew is the textbook's write skew: a doctor goes off call if another one stays. Under REPEATABLE
// READ two may go at once; SERIALIZABLE refuses one of them.
type skew struct{ settings }

const (
	skewShifts  = 2
	skewDoctors = 2
)

func (skew) Name() string  { return "skew" }
func (skew) About() string { return "write skew under SERIALIZABLE: one doctor must stay on call" }

func (w skew) TxOptions() *sql.TxOptions {
	if w.ordered {
		return &sql.TxOptions{Isolation: sql.LevelReadCommitted}
	}
	return &sql.TxOptions{Isolation: sql.LevelSerializable}
}

func (w skew) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, fmt.Sprintf(`
		CREATE TABLE doctors (shift integer, doctor integer, on_call boolean NOT NULL, PRIMARY KEY (shift, doctor));
		CREATE TABLE rota (id bigint NOT NULL, shift integer NOT NULL, on_call_before integer NOT NULL);
		INSERT INTO doctors
			SELECT shift, doctor, true FROM generate_series(1, %d) AS shift, generate_series(1, %d) AS doctor`,
		skewShifts, skewDoctors))
}

func (w skew) Transaction(id int64) Body {
	r := draw(w.seed, id)
	shift, doctor := 1+r.IntN(skewShifts), 1+r.IntN(skewDoctors)
	count := `SELECT count(*) FROM doctors WHERE shift = $1 AND on_call`
	if w.ordered {
		// FOR UPDATE returns each row as it is once the lock is had.
		count = `
			SELECT count(*) FILTER (WHERE on_call)
			FROM (SELECT on_call FROM doctors WHERE shift = $1 ORDER BY doctor FOR UPDATE) AS locked`
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		var onCall int
		if err := tx.QueryRowContext(ctx, count, shift).Scan(&onCall); err != nil {
			return fmt.Errorf("count doctors on call: %w", err)
		}
		if err := w.think(ctx); err != nil {
			return err
		}
		// Noted before it is mended, so that a shift left without a doctor does not go unseen.
		if _, err := tx.ExecContext(ctx, `INSERT INTO rota (id, shift, on_call_before) VALUES ($1, $2, $3)`, id, shift, onCall); err != nil {
			return fmt.Errorf("note who was on call: %w", err)
		}
		if err := w.think(ctx); err != nil {
			return err
		}
		if onCall > 1 {
			_, err := tx.ExecContext(ctx, `UPDATE doctors SET on_call = false WHERE shift = $1 AND doctor = $2`, shift, doctor)
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE doctors SET on_call = true WHERE shift = $1 AND NOT on_call`, shift)
		return err
	}
}

func (w skew) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	if err := expectIDs(ctx, db, w, "entries in the rota", committed, `SELECT id FROM rota ORDER BY id`); err != nil {
		return err
	}
	err := expect(ctx, db, w, "the number of times a shift was found without a doctor", 0,
		`SELECT count(*) FROM rota WHERE on_call_before = 0`)
	if err != nil {
		return err
	}
	return expect(ctx, db, w, "the number of shifts without a doctor", 0,
		`SELECT count(*) FROM (SELECT shift FROM doctors GROUP BY shift HAVING NOT bool_or(on_call)) AS uncovered`)
}
