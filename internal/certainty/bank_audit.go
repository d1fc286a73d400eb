package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const bankPoll = 10 * time.Millisecond

// answers waits until the server accepts connections.
func (b *bank) answers(ctx context.Context) error {
	return commitAwait(ctx, func() (bool, error) {
		err := b.admin.PingContext(ctx)
		return err == nil, err
	})
}

// audit compares what the workers were told with the database. It closes the side's
// pool: only when its last session is gone can nothing be booked any more.
func (b *bank) audit(ctx context.Context, report *BankReport) error {
	if err := b.settle(ctx, report); err != nil {
		return err
	}
	entries, err := b.entries(ctx)
	if err != nil {
		return err
	}
	for _, results := range b.workers {
		for _, result := range results {
			report.compare(result, entries[result.transfer.id])
			delete(entries, result.transfer.id)
		}
	}
	for id := range entries {
		report.violated(&report.Phantoms, "transfer %#x is in the ledger and nobody ordered it", id)
	}
	return b.balances(ctx, report)
}

// settle waits until nothing of the application is left and reports what stays.
func (b *bank) settle(ctx context.Context, report *BankReport) error {
	// database/sql rolls back after a context's end in goroutines of its own.
	err := b.reach(ctx, func() (bool, error) {
		stats := b.db.Stats()
		report.PoolInUse = stats.InUse
		return stats.InUse == 0, nil
	})
	if err != nil {
		return err
	}
	if report.PoolInUse > 0 {
		report.violated(nil, "%d connections of the pool are still in use", report.PoolInUse)
	}
	if err := b.db.Close(); err != nil {
		return fmt.Errorf("certainty: close the database: %w", err)
	}
	err = b.reach(ctx, func() (bool, error) {
		err := b.admin.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, b.application).
			Scan(&report.Sessions)
		return report.Sessions == 0, err
	})
	if err != nil {
		return err
	}
	if report.Sessions > 0 {
		report.violated(nil, "%d sessions of the application are still at the server", report.Sessions)
	}
	if report.Stuck > 0 {
		report.violated(nil, "%d workers committed nothing within %v after the last fault", report.Stuck, bankRecovery)
	}
	return nil
}

// reach waits for a state, and no longer than what is left may stay.
func (b *bank) reach(ctx context.Context, reached func() (bool, error)) error {
	limit := time.Now().Add(b.settling)
	for {
		there, err := reached()
		switch {
		case err == nil && (there || time.Now().After(limit)):
			return nil
		case time.Now().After(limit):
			return fmt.Errorf("certainty: look at what is left: %w", err)
		}
		if err := commitPause(ctx, bankPoll); err != nil {
			return err
		}
	}
}

// bankEntry is what the ledger says of one transfer.
type bankEntry struct {
	times          int
	source, target int
	amount         int64
}

func (b *bank) entries(ctx context.Context) (map[int64]bankEntry, error) {
	entries := make(map[int64]bankEntry)
	err := b.each(ctx, `SELECT transfer, count(*), min(source), min(target), min(amount) FROM ledger GROUP BY transfer`, func(rows *sql.Rows) error {
		var id int64
		var entry bankEntry
		err := rows.Scan(&id, &entry.times, &entry.source, &entry.target, &entry.amount)
		entries[id] = entry
		return err
	})
	return entries, err
}

// balances checks every account against its opening balance and the ledger.
func (b *bank) balances(ctx context.Context, report *BankReport) error {
	accounts, sum := 0, int64(0)
	err := b.each(ctx, `
		SELECT id, balance, `+fmt.Sprint(bankOpening)+`
			+ coalesce((SELECT sum(amount) FROM ledger WHERE target = id), 0)
			- coalesce((SELECT sum(amount) FROM ledger WHERE source = id), 0)
		FROM accounts ORDER BY id`, func(rows *sql.Rows) error {
		var id int
		var balance, due int64
		if err := rows.Scan(&id, &balance, &due); err != nil {
			return err
		}
		accounts++
		sum += balance
		if balance != due {
			report.violated(&report.WrongBalances, "account %d holds %d and, after the ledger, should hold %d", id, balance, due)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if expected := int64(b.config.Accounts) * bankOpening; accounts != b.config.Accounts || sum != expected {
		report.violated(nil, "%d accounts hold %d in all, should be %d with %d", accounts, sum, b.config.Accounts, expected)
	}
	return nil
}

// each hands over the rows of a query.
func (b *bank) each(ctx context.Context, text string, row func(*sql.Rows) error) (err error) {
	rows, err := b.admin.QueryContext(ctx, text)
	if err != nil {
		return fmt.Errorf("certainty: audit: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := row(rows); err != nil {
			return fmt.Errorf("certainty: audit: %w", err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("certainty: audit: %w", err)
	}
	return nil
}

// compare holds a claim against the ledger.
func (r *BankReport) compare(result bankResult, entry bankEntry) {
	t := result.transfer
	if entry.times > 0 && (entry.source != t.source || entry.target != t.target || entry.amount != t.amount) {
		r.violated(&r.Phantoms, "transfer %#x is in the ledger as another one", t.id)
	}
	if entry.times > 1 {
		r.violated(&r.Doubled, "transfer %#x was reported %s and is in the ledger %d times", t.id, result, entry.times)
	}
	switch {
	case result.claim == commitAffirmed && entry.times == 0:
		r.violated(&r.Missing, "transfer %#x was reported %s and is not in the ledger", t.id, result)
	case result.claim == commitDenied && entry.times > 0:
		r.violated(&r.Denied, "transfer %#x was reported %s and is in the ledger", t.id, result)
	case result.claim == commitOpen && entry.times > 0:
		r.UnknownBooked++
	}
}

func (r bankResult) String() string {
	var s string
	switch r.claim {
	case commitAffirmed:
		s = "committed"
	case commitOpen:
		s = fmt.Sprintf("unknown (%T: %v)", r.err, r.err)
	default:
		s = fmt.Sprintf("failed (%T: %v)", r.err, r.err)
	}
	return fmt.Sprintf("%s, form %d, patience %v", s, r.transfer.form, r.transfer.patience)
}
