package reasons

import (
	"context"
	"database/sql"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// BenchmarkForcedCustomPlans shows why the driver does not set plan_cache_mode to
// force_custom_plan: that holds for functions and foreign keys, too. It reports how many
// times as long they take in a session that does.
func BenchmarkForcedCustomPlans(b *testing.B) {
	dsn := pgtest.DSN(b)
	left, right := session(b, dsn), session(b, dsn)
	execute(
		b, left,
		`CREATE TABLE item (id int PRIMARY KEY, price int)`,
		`INSERT INTO item SELECT n, n FROM generate_series(1, 1000) AS n`,
		`ANALYZE item`,
		`CREATE FUNCTION total(n int) RETURNS bigint LANGUAGE plpgsql AS $$
			DECLARE sum bigint := 0; one int;
			BEGIN
				FOR i IN 1..n LOOP
					SELECT price INTO one FROM item WHERE id = i;
					sum := sum + one;
				END LOOP;
				RETURN sum;
			END $$`,
		`CREATE TABLE line (a int REFERENCES item, b int REFERENCES item, c int REFERENCES item)`,
	)
	execute(b, right, `SET plan_cache_mode = force_custom_plan`)
	for _, c := range []struct {
		name string
		each int
		do   func(*sql.DB) func(context.Context) error
	}{
		{"Function", 10, func(db *sql.DB) func(context.Context) error {
			return func(ctx context.Context) error {
				var total int64
				return db.QueryRowContext(ctx, `SELECT total(500)`).Scan(&total)
			}
		}},
		{"ForeignKeys", 2, func(db *sql.DB) func(context.Context) error {
			return func(ctx context.Context) error {
				_, err := db.ExecContext(ctx, `INSERT INTO line SELECT n, n + 1, n + 2 FROM generate_series(1, 500) AS n`)
				return err
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			duel{c.do(left), c.do(right), c.each}.fight(b, "forced-x-auto")
		})
	}
}
