package workload

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
)

// upserts writes batches of INSERT … ON CONFLICT DO UPDATE on daily spend rows in whatever order
// they were collected: https://github.com/BerriAI/litellm/issues/15281.
type upserts struct{ settings }

const (
	spendTeams = 24
	spendBatch = 6
)

func (upserts) Name() string { return "upserts" }
func (upserts) About() string {
	return "batches of INSERT … ON CONFLICT DO UPDATE in random key order"
}

func (upserts) TxOptions() *sql.TxOptions { return nil }

func (w upserts) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, `
		CREATE TABLE daily_spend (
			team integer NOT NULL, day date NOT NULL, amount bigint NOT NULL, requests bigint NOT NULL,
			PRIMARY KEY (team, day)
		)`)
}

func (w upserts) Transaction(id int64) Body {
	spends := w.spends(id)
	if w.ordered {
		slices.SortFunc(spends, func(a, b spend) int { return cmp.Compare(a.team, b.team) })
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		for i, s := range spends {
			if i > 0 {
				if err := w.think(ctx); err != nil {
					return err
				}
			}
			_, err := tx.ExecContext(ctx, `
				INSERT INTO daily_spend (team, day, amount, requests) VALUES ($1, '2025-10-09', $2, 1)
				ON CONFLICT (team, day) DO UPDATE
				SET amount = daily_spend.amount + excluded.amount, requests = daily_spend.requests + 1`,
				s.team, s.amount)
			if err != nil {
				return err
			}
		}
		return nil
	}
}

type spend struct {
	team   int
	amount int64
}

func (w upserts) spends(id int64) []spend {
	r := draw(w.seed, id)
	batch := make([]spend, 0, spendBatch)
	for _, team := range choose(r, spendBatch, spendTeams) {
		batch = append(batch, spend{team: team, amount: 1 + r.Int64N(100)})
	}
	return batch
}

func (w upserts) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	amounts, requests := map[int]int64{}, map[int]int64{}
	for _, id := range committed {
		for _, s := range w.spends(id) {
			amounts[s.team] += s.amount
			requests[s.team]++
		}
	}
	if err := expectEach(ctx, db, w, "the amount spent by team", amounts, `SELECT team, amount FROM daily_spend`); err != nil {
		return err
	}
	return expectEach(ctx, db, w, "the number of requests by team", requests, `SELECT team, requests FROM daily_spend`)
}
