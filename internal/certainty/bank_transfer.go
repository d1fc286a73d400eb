package certainty

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// bankForm is how a transfer is written in SQL.
type bankForm uint8

const (
	// bankUpdates: two UPDATEs and an INSERT.
	bankUpdates bankForm = iota
	// bankReturning: the same, and the UPDATEs show the balances.
	bankReturning
	// bankOverwriting: the balances are read FOR UPDATE and overwritten. A replay that
	// took a balance for the one it had shown before would lose money.
	bankOverwriting
	// bankLone: everything in one statement, outside a transaction.
	bankLone
	// bankLoneReturning: the same, and it shows a row, so that a part of what goes wrong
	// is only seen while rows are read.
	bankLoneReturning

	bankForms
)

// bankTransfer is one transfer of money.
type bankTransfer struct {
	id             int64 // no other transfer's
	source, target int
	amount         int64
	form           bankForm
	targetFirst    bool          // the order in which the accounts are locked
	patience       time.Duration // when it is given up; zero means never
}

func (t bankTransfer) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if t.patience == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, t.patience)
}

// bankPosting is one account's part of a transfer.
type bankPosting struct {
	account int
	amount  int64
}

func (t bankTransfer) postings() []bankPosting {
	postings := []bankPosting{{t.source, -t.amount}, {t.target, t.amount}}
	if t.targetFirst {
		slices.Reverse(postings)
	}
	return postings
}

const (
	bankUpdateText    = `UPDATE accounts SET balance = balance + $2 WHERE id = $1`
	bankReadText      = `SELECT balance FROM accounts WHERE id = $1 FOR UPDATE`
	bankOverwriteText = `UPDATE accounts SET balance = $2 WHERE id = $1`
	bankLedgerText    = `INSERT INTO ledger VALUES ($1, $2, $3, $4)`
	bankLoneText      = `
		WITH posted AS (
			UPDATE accounts SET balance = balance + CASE id WHEN $2 THEN -$4::bigint ELSE $4 END WHERE id IN ($2::int, $3::int)
		)
		INSERT INTO ledger VALUES ($1::bigint, $2, $3, $4)`
)

// book does the transfer's work, once.
func (t bankTransfer) book(ctx context.Context, on bankExecutor) error {
	switch t.form {
	case bankLone:
		_, err := on.ExecContext(ctx, bankLoneText, t.id, t.source, t.target, t.amount)
		return err
	case bankLoneReturning:
		var id int64
		return on.QueryRowContext(ctx, bankLoneText+` RETURNING transfer`, t.id, t.source, t.target, t.amount).Scan(&id)
	}
	for _, p := range t.postings() {
		if err := t.post(ctx, on, p); err != nil {
			return fmt.Errorf("post to account %d: %w", p.account, err)
		}
	}
	if _, err := on.ExecContext(ctx, bankLedgerText, t.id, t.source, t.target, t.amount); err != nil {
		return fmt.Errorf("note in the ledger: %w", err)
	}
	return nil
}

func (t bankTransfer) post(ctx context.Context, on bankExecutor, p bankPosting) error {
	var balance int64
	switch t.form {
	case bankUpdates:
		_, err := on.ExecContext(ctx, bankUpdateText, p.account, p.amount)
		return err
	case bankReturning:
		return on.QueryRowContext(ctx, bankUpdateText+` RETURNING balance`, p.account, p.amount).Scan(&balance)
	case bankOverwriting:
		if err := on.QueryRowContext(ctx, bankReadText, p.account).Scan(&balance); err != nil {
			return err
		}
		_, err := on.ExecContext(ctx, bankOverwriteText, p.account, balance+p.amount)
		return err
	}
	panic(fmt.Sprintf("certainty: a transfer of form %d has no postings", t.form))
}

// bankPlans makes the transfers of one worker.
type bankPlans struct {
	random   *rand.Rand
	config   BankConfig
	worker   int
	number   int64
	forms    bankForm // how many to choose from
	disorder bool     // accounts are locked in random order, so that deadlocks happen
}

func newBankPlans(config BankConfig, side BankSide, worker int) *bankPlans {
	p := &bankPlans{
		random:   rand.New(rand.NewPCG(config.Seed, uint64(worker))),
		config:   config,
		worker:   worker,
		forms:    bankForms,
		disorder: worker%2 == 1,
	}
	if side.closure {
		p.forms = bankLone
	}
	return p
}

// next returns the next transfer. In calm times none is impatient.
func (p *bankPlans) next(calm bool) bankTransfer {
	p.number++
	t := bankTransfer{
		id:     int64(p.worker)<<32 | p.number,
		source: 1 + p.random.IntN(p.config.Accounts),
		amount: 1 + p.random.Int64N(100),
		form:   bankForm(p.random.IntN(int(p.forms))),
	}
	t.target = 1 + (t.source+p.random.IntN(p.config.Accounts-1))%p.config.Accounts
	t.targetFirst = t.target < t.source
	if p.disorder {
		t.targetFirst = p.random.IntN(2) == 0
	}
	// While rows are being read database/sql itself says that the deadline has passed,
	// which claims nothing about the statement.
	if p.random.IntN(16) == 0 && !calm && t.form != bankLoneReturning {
		t.patience = p.between(0, 25*time.Millisecond)
	}
	return t
}

func (p *bankPlans) between(least, most time.Duration) time.Duration {
	return least + time.Duration(p.random.Int64N(int64(most-least))) + 1
}
