package workload

import (
	"context"
	"database/sql"
	"fmt"
)

// transfer moves money between hot accounts and enters it in a ledger.
type transfer struct {
	settings
	variant transferVariant
}

type transferVariant struct {
	suffix, about string
	level         sql.IsolationLevel
	move          func(transfer, context.Context, *sql.Tx, payment) error
}

// The first variant leaves the arithmetic to the database and reads nothing. The others read both
// balances, compute, and write both. READ COMMITTED needs FOR UPDATE for that, or it would silently
// lose updates; the higher levels notice by themselves.
var (
	addInPlace     = transferVariant{"write", "two UPDATEs that add, READ COMMITTED", sql.LevelReadCommitted, transfer.add}
	readCommitted  = transferVariant{"rc", "read, then write, READ COMMITTED with FOR UPDATE", sql.LevelReadCommitted, transfer.readAndWrite}
	repeatableRead = transferVariant{"rr", "read, then write, REPEATABLE READ", sql.LevelRepeatableRead, transfer.readAndWrite}
	serializable   = transferVariant{"ser", "read, then write, SERIALIZABLE", sql.LevelSerializable, transfer.readAndWrite}
)

const (
	transferAccounts = 5
	transferOpening  = 1000
)

func (w transfer) Name() string  { return "transfer/" + w.variant.suffix }
func (w transfer) About() string { return "money between hot accounts: " + w.variant.about }

func (w transfer) TxOptions() *sql.TxOptions { return &sql.TxOptions{Isolation: w.level()} }

func (w transfer) level() sql.IsolationLevel {
	if w.ordered {
		return sql.LevelReadCommitted
	}
	return w.variant.level
}

func (w transfer) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, fmt.Sprintf(`
		CREATE TABLE accounts (id integer PRIMARY KEY, balance bigint NOT NULL);
		CREATE TABLE ledger (id bigint NOT NULL, payer integer NOT NULL, payee integer NOT NULL, amount bigint NOT NULL);
		INSERT INTO accounts SELECT id, %d FROM generate_series(1, %d) AS id`, transferOpening, transferAccounts))
}

func (w transfer) Transaction(id int64) Body {
	p := w.payment(id)
	return func(ctx context.Context, tx *sql.Tx) error {
		if err := w.variant.move(w, ctx, tx, p); err != nil {
			return err
		}
		if err := w.think(ctx); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO ledger (id, payer, payee, amount) VALUES ($1, $2, $3, $4)`, id, p.payer, p.payee, p.amount)
		return err
	}
}

// add locks the accounts in whatever order they were drawn, unless the workload is ordered.
func (w transfer) add(ctx context.Context, tx *sql.Tx, p payment) error {
	debit := func() error {
		if _, err := tx.ExecContext(ctx, `UPDATE accounts SET balance = balance - $1 WHERE id = $2`, p.amount, p.payer); err != nil {
			return fmt.Errorf("debit the payer: %w", err)
		}
		return nil
	}
	credit := func() error {
		if _, err := tx.ExecContext(ctx, `UPDATE accounts SET balance = balance + $1 WHERE id = $2`, p.amount, p.payee); err != nil {
			return fmt.Errorf("credit the payee: %w", err)
		}
		return nil
	}
	return w.both(ctx, p, debit, credit)
}

func (w transfer) readAndWrite(ctx context.Context, tx *sql.Tx, p payment) error {
	read := `SELECT balance FROM accounts WHERE id = $1`
	if w.level() == sql.LevelReadCommitted {
		read += ` FOR UPDATE`
	}
	var payerHas, payeeHas int64
	readPayer := func() error {
		if err := tx.QueryRowContext(ctx, read, p.payer).Scan(&payerHas); err != nil {
			return fmt.Errorf("read the payer's balance: %w", err)
		}
		return nil
	}
	readPayee := func() error {
		if err := tx.QueryRowContext(ctx, read, p.payee).Scan(&payeeHas); err != nil {
			return fmt.Errorf("read the payee's balance: %w", err)
		}
		return nil
	}
	if err := w.both(ctx, p, readPayer, readPayee); err != nil {
		return err
	}
	if err := w.think(ctx); err != nil {
		return err
	}
	const write = `UPDATE accounts SET balance = $1 WHERE id = $2`
	if _, err := tx.ExecContext(ctx, write, payerHas-p.amount, p.payer); err != nil {
		return fmt.Errorf("debit the payer: %w", err)
	}
	if err := w.think(ctx); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, write, payeeHas+p.amount, p.payee); err != nil {
		return fmt.Errorf("credit the payee: %w", err)
	}
	return nil
}

// both does something to the payer's account and then to the payee's, or, where the workload is
// ordered, to the lower account first.
func (w transfer) both(ctx context.Context, p payment, payer, payee func() error) error {
	first, second := payer, payee
	if w.ordered && p.payee < p.payer {
		first, second = payee, payer
	}
	if err := first(); err != nil {
		return err
	}
	if err := w.think(ctx); err != nil {
		return err
	}
	return second()
}

type payment struct {
	payer, payee int
	amount       int64
}

func (w transfer) payment(id int64) payment {
	r := draw(w.seed, id)
	parties := choose(r, 2, transferAccounts)
	return payment{payer: parties[0], payee: parties[1], amount: 1 + r.Int64N(10)}
}

func (w transfer) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	err := expect(ctx, db, w, "the sum of all balances", transferAccounts*transferOpening, `SELECT sum(balance) FROM accounts`)
	if err != nil {
		return err
	}
	balances := map[int]int64{}
	for account := range transferAccounts {
		balances[account+1] = transferOpening
	}
	for _, id := range committed {
		p := w.payment(id)
		balances[p.payer] -= p.amount
		balances[p.payee] += p.amount
	}
	if err := expectEach(ctx, db, w, "the balance of account", balances, `SELECT id, balance FROM accounts`); err != nil {
		return err
	}
	return expectIDs(ctx, db, w, "transfers in the ledger", committed, `SELECT id FROM ledger ORDER BY id`)
}
