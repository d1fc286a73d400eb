package histories

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lib/pq"
)

// rowsAtFirst is how many keys have an empty list when a round begins, every other
// one of the first. Those between, and later ones, come into being by INSERT.
const rowsAtFirst = 1000

var schema = []string{
	`CREATE TABLE lists (key int PRIMARY KEY, vals int[] NOT NULL DEFAULT '{}')`,
	`CREATE TABLE parents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, val int NOT NULL)`,
	`CREATE TABLE children (parent bigint NOT NULL REFERENCES parents, val int NOT NULL)`,
	`CREATE INDEX ON children (parent)`,
	`CREATE TABLE fixed (n int PRIMARY KEY)`,
	`INSERT INTO fixed VALUES (1)`,
}

// CreateSchema creates the tables that [Run] uses, in the schema of the session.
func CreateSchema(ctx context.Context, db *sql.DB) error {
	for _, text := range schema {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("histories: create schema: %w", err)
		}
	}
	return nil
}

// reset empties the tables. Generated ids go on.
func reset(ctx context.Context, db *sql.DB) error {
	for _, text := range []string{
		`TRUNCATE lists, parents, children`,
		fmt.Sprintf(`INSERT INTO lists (key) SELECT 2 * n FROM generate_series(0, %d) n`, rowsAtFirst),
	} {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("histories: reset: %w", err)
		}
	}
	return nil
}

// finalState reads the tables when all transactions are over.
func finalState(ctx context.Context, db *sql.DB) (State, error) {
	state := State{Lists: make(map[int32][]int32)}
	err := each(ctx, db, `SELECT key, vals FROM lists WHERE vals <> '{}'`, func(rows *sql.Rows) error {
		var key int32
		var values pq.Int32Array
		if err := rows.Scan(&key, &values); err != nil {
			return err
		}
		state.Lists[key] = values
		return nil
	})
	if err != nil {
		return State{}, err
	}
	for text, into := range map[string]*[]Row{
		`SELECT id, val FROM parents`:      &state.Parents,
		`SELECT parent, val FROM children`: &state.Children,
	} {
		err := each(ctx, db, text, func(rows *sql.Rows) error {
			var row Row
			err := rows.Scan(&row.ID, &row.Val)
			*into = append(*into, row)
			return err
		})
		if err != nil {
			return State{}, err
		}
	}
	return state, nil
}

func each(ctx context.Context, db *sql.DB, text string, row func(*sql.Rows) error) error {
	rows, err := db.QueryContext(ctx, text)
	if err != nil {
		return fmt.Errorf("histories: final state: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return fmt.Errorf("histories: final state: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("histories: final state: %w", err)
	}
	return nil
}
