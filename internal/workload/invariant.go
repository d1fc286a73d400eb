package workload

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// InvariantError says that the database does not hold what the committed transactions must have
// left in it: something was lost, done twice, or done by a transaction that was not committed.
type InvariantError struct {
	// Workload is the name of the workload.
	Workload string
	// What is the quantity that is wrong.
	What string
	// Want and Got are what it should be and what it is.
	Want, Got int64
}

func (e *InvariantError) Error() string {
	return fmt.Sprintf("%s: %s is %d instead of %d", e.Workload, e.What, e.Got, e.Want)
}

// expect compares the single number that query returns with want.
func expect(ctx context.Context, db *sql.DB, w Workload, what string, want int64, query string, args ...any) error {
	var got int64
	if err := db.QueryRowContext(ctx, query, args...).Scan(&got); err != nil {
		return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
	}
	if got != want {
		return &InvariantError{Workload: w.Name(), What: what, Want: want, Got: got}
	}
	return nil
}

// expectIDs compares the ids that query returns, in ascending order, with committed.
func expectIDs(ctx context.Context, db *sql.DB, w Workload, what string, committed []int64, query string) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
	}
	defer rows.Close()
	want := slices.Sorted(slices.Values(committed))
	n := 0
	for rows.Next() {
		var got int64
		if err := rows.Scan(&got); err != nil {
			return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
		}
		if n < len(want) && got != want[n] {
			return &InvariantError{Workload: w.Name(), What: fmt.Sprintf("the %d. id among %s", n+1, what), Want: want[n], Got: got}
		}
		n++
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
	}
	if n != len(want) {
		return &InvariantError{Workload: w.Name(), What: "the number of " + what, Want: int64(len(want)), Got: int64(n)}
	}
	return nil
}

// expectEach compares the (key, number) pairs that query returns with want; a key that is missing
// on either side counts as zero.
func expectEach(ctx context.Context, db *sql.DB, w Workload, what string, want map[int]int64, query string) error {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
	}
	defer rows.Close()
	seen := make(map[int]bool, len(want))
	for rows.Next() {
		var key int
		var got int64
		if err := rows.Scan(&key, &got); err != nil {
			return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
		}
		seen[key] = true
		if got != want[key] {
			return &InvariantError{Workload: w.Name(), What: fmt.Sprintf("%s %d", what, key), Want: want[key], Got: got}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: read %s: %w", w.Name(), what, err)
	}
	for key, number := range want {
		if number != 0 && !seen[key] {
			return &InvariantError{Workload: w.Name(), What: fmt.Sprintf("%s %d", what, key), Want: number}
		}
	}
	return nil
}

// create runs the statements of a Setup.
func create(ctx context.Context, db *sql.DB, w Workload, statements string) error {
	if _, err := db.ExecContext(ctx, statements); err != nil {
		return fmt.Errorf("%s: create tables: %w", w.Name(), err)
	}
	return nil
}
