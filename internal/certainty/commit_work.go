package certainty

import (
	"context"
	"database/sql"
	"fmt"
)

// markerWork writes a marker, and a companion so that there is more than one statement
// to replay.
var markerWork = commitWork{do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
	return inTransaction(ctx, db, t, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO marker VALUES ($1)`, t.id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO companion VALUES ($1)`, t.id)
		return err
	})
}}

// slowWork writes a marker, and something that keeps COMMIT busy for so many seconds.
func slowWork(seconds float64) commitWork {
	return commitWork{do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
		return inTransaction(ctx, db, t, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, `INSERT INTO marker VALUES ($1)`, t.id); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO slow VALUES ($1, $2)`, t.id, seconds)
			return err
		})
	}}
}

// onConnection runs statements on one connection, past database/sql's transactions.
func onConnection(ctx context.Context, db *sql.DB, do func(*sql.Conn) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return do(conn)
}

// rawWork sends BEGIN and COMMIT as statements.
var rawWork = commitWork{do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
	return onConnection(ctx, db, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, `BEGIN`); err != nil {
			return err
		}
		if _, err := conn.ExecContext(ctx, `INSERT INTO marker VALUES ($1)`, t.id); err != nil {
			return err
		}
		_, err := conn.ExecContext(ctx, `COMMIT`)
		return err
	})
}}

// prepareWork ends with PREPARE TRANSACTION. The truth is whether the transaction is
// prepared.
var prepareWork = commitWork{
	verb: "PREPARE TRANSACTION",
	do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
		return onConnection(ctx, db, func(conn *sql.Conn) error {
			if _, err := conn.ExecContext(ctx, `BEGIN`); err != nil {
				return err
			}
			if _, err := conn.ExecContext(ctx, `INSERT INTO marker VALUES ($1)`, t.id); err != nil {
				return err
			}
			_, err := conn.ExecContext(ctx, fmt.Sprintf(`PREPARE TRANSACTION '%s'`, t.id))
			return err
		})
	},
	truth: func(ctx context.Context, t *commitTrial) (commitTruth, error) {
		var n int
		err := t.lane.run.ask(ctx, `SELECT count(*) FROM pg_prepared_xacts WHERE gid = $1`, []any{t.id}, &n)
		if err == nil && n > 0 {
			err = t.lane.run.do(ctx, fmt.Sprintf(`ROLLBACK PREPARED '%s'`, t.id))
		}
		return commitTruth{n, n}, err
	},
}

// commitPreparedWork commits what somebody has prepared.
var commitPreparedWork = commitWork{
	verb: "COMMIT PREPARED",
	before: func(ctx context.Context, t *commitTrial) error {
		conn, err := t.lane.run.admin.Load().Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, text := range []string{`BEGIN`, `INSERT INTO marker VALUES ('%s')`, `PREPARE TRANSACTION '%s'`} {
			if text != `BEGIN` {
				text = fmt.Sprintf(text, t.id)
			}
			if _, err := conn.ExecContext(ctx, text); err != nil {
				return fmt.Errorf("%s: %w", text, err)
			}
		}
		return nil
	},
	do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
		_, err := db.ExecContext(ctx, fmt.Sprintf(`COMMIT PREPARED '%s'`, t.id))
		return err
	},
	truth: func(ctx context.Context, t *commitTrial) (commitTruth, error) {
		truth, err := commitMarkers(ctx, t)
		if err != nil {
			return truth, err
		}
		var left int
		err = t.lane.run.ask(ctx, `SELECT count(*) FROM pg_prepared_xacts WHERE gid = $1`, []any{t.id}, &left)
		if err == nil && left > 0 {
			err = t.lane.run.do(ctx, fmt.Sprintf(`ROLLBACK PREPARED '%s'`, t.id))
		}
		return truth, err
	},
}
