package workload_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"slices"
	"testing"

	_ "github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/internal/workload"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const seed = 7

// transactions is enough for every workload to have touched every row. The last ones are none that
// empty the cache.
const transactions = 42

// settled returns a database in which the workload's transactions 1…42 were committed, one after
// the other.
func settled(t *testing.T, w workload.Workload) (db *sql.DB, committed []int64) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	db, err := sql.Open("postgres", pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.Setup(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	for id := int64(1); id <= transactions; id++ {
		// Run and rolled back first: a body must be repeatable.
		for _, end := range []func(*sql.Tx) error{(*sql.Tx).Rollback, (*sql.Tx).Commit} {
			tx, err := db.BeginTx(t.Context(), w.TxOptions())
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Transaction(id)(t.Context(), tx); err != nil {
				t.Fatalf("transaction %d: %v", id, errors.Join(err, tx.Rollback()))
			}
			if err := end(tx); err != nil {
				t.Fatal(err)
			}
		}
		committed = append(committed, id)
	}
	return db, committed
}

func TestInvariantsHoldAfterUndisturbedTransactions(t *testing.T) {
	for _, w := range workload.All(seed) {
		t.Run(w.Name(), func(t *testing.T) {
			db, committed := settled(t, w)
			slices.Reverse(committed) // workers end in any order
			if err := w.Check(t.Context(), db, committed); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestChecksNoticeATransactionThatIsMissingOrTooMuch(t *testing.T) {
	for _, w := range workload.All(seed) {
		t.Run(w.Name(), func(t *testing.T) {
			db, committed := settled(t, w)
			mustBeViolated(t, w, db, append(slices.Clone(committed), transactions+1))
			for i := range committed {
				mustBeViolated(t, w, db, slices.Delete(slices.Clone(committed), i, i+1))
			}
		})
	}
}

func TestChecksNoticeCorruptedData(t *testing.T) {
	transferCorruptions := []string{
		`UPDATE accounts SET balance = balance + 1 WHERE id = 1`,
		`UPDATE accounts SET balance = balance + CASE id WHEN 1 THEN 1 ELSE -1 END WHERE id IN (1, 2)`,
		`DELETE FROM accounts WHERE id = 1`,
		`DELETE FROM ledger WHERE id = 1`,
		`INSERT INTO ledger SELECT * FROM ledger WHERE id = 1`,
		`UPDATE ledger SET id = 1000 WHERE id = 1`,
	}
	corruptions := map[string][]string{
		"crossing": {
			`UPDATE words SET n = n - 1 WHERE word = 'hello'`,
			`UPDATE words SET n = n + 1 WHERE word = 'world'`,
		},
		"upserts": {
			`UPDATE daily_spend SET amount = amount - 1 WHERE team = 1`,
			`UPDATE daily_spend SET requests = requests + 1 WHERE team = 1`,
			`DELETE FROM daily_spend WHERE team = 1`,
			`INSERT INTO daily_spend VALUES (100, '2025-10-09', 1, 1)`,
		},
		"cache": {
			`UPDATE cache SET writes = writes + 1 WHERE key = (SELECT min(key) FROM cache)`,
			`UPDATE sweeps SET writes = writes - 1 WHERE id = 4`,
			`DELETE FROM sweeps WHERE id = 4`,
			`INSERT INTO sweeps VALUES (4, 0)`,
			`INSERT INTO cache VALUES (100, now(), 1)`,
		},
		"counter": {
			`UPDATE parents SET children = children - 1 WHERE id = 1`,
			`UPDATE parents SET children = children + CASE id WHEN 1 THEN 1 ELSE -1 END`,
			`UPDATE children SET parent = 3 - parent WHERE request = 1`,
			`UPDATE children SET request = 1000 WHERE request = 1`,
			`DELETE FROM children WHERE request = 1`,
			`INSERT INTO children (parent, request) SELECT parent, request FROM children WHERE request = 1`,
			`DELETE FROM events WHERE request = 1`,
			`INSERT INTO events SELECT * FROM events WHERE request = 1`,
			`UPDATE events SET child = (SELECT id FROM children WHERE request = 2) WHERE request = 1`,
			// The number that a rolled back attempt was given.
			`UPDATE events SET child = child - 1 WHERE request = 1`,
		},
		"share": {
			`UPDATE stock SET n = n - 1 WHERE id = 1`,
			`UPDATE stock SET n = n + 1 WHERE id = 2`,
		},
		"skew": {
			`UPDATE doctors SET on_call = false WHERE shift = 1`,
			`UPDATE rota SET on_call_before = 0 WHERE id = 1`,
			`DELETE FROM rota WHERE id = 1`,
			`INSERT INTO rota SELECT * FROM rota WHERE id = 1`,
		},
		"transfer/write": transferCorruptions,
		"transfer/rc":    transferCorruptions,
		"transfer/rr":    transferCorruptions,
		"transfer/ser":   transferCorruptions,
		"ids": {
			`UPDATE products SET sold = sold - 1 WHERE id = 1`,
			`DELETE FROM orders WHERE request = 1`,
			`INSERT INTO orders (request) VALUES (1)`,
			`DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines)`,
			`INSERT INTO lines VALUES (0, 1, 1)`,
			`UPDATE lines SET order_id = (SELECT id FROM orders WHERE request = 2) WHERE request = 1`,
			// The number that a rolled back attempt was given.
			`UPDATE lines SET order_id = order_id - 1 WHERE request = 1`,
		},
	}
	for _, w := range workload.All(seed) {
		t.Run(w.Name(), func(t *testing.T) {
			if len(corruptions[w.Name()]) == 0 {
				t.Fatal("no corruption is tried")
			}
			db, committed := settled(t, w)
			db.SetMaxOpenConns(1) // so that Check sees what is not committed
			for _, corruption := range corruptions[w.Name()] {
				exec(t, db, `BEGIN`)
				result := exec(t, db, corruption)
				if n, err := result.RowsAffected(); err != nil || n == 0 {
					t.Fatalf("%s: %d rows, %v", corruption, n, err)
				}
				t.Log(corruption)
				mustBeViolated(t, w, db, committed)
				exec(t, db, `ROLLBACK`)
			}
		})
	}
}

func exec(t *testing.T, db *sql.DB, statement string) sql.Result {
	t.Helper()
	result, err := db.ExecContext(t.Context(), statement)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	return result
}

func mustBeViolated(t *testing.T, w workload.Workload, db *sql.DB, committed []int64) {
	t.Helper()
	err := w.Check(t.Context(), db, committed)
	violation, ok := errors.AsType[*workload.InvariantError](err)
	if !ok {
		t.Errorf("got %v, want an InvariantError", err)
		return
	}
	if violation.Workload != w.Name() || violation.What == "" || violation.Want == violation.Got {
		t.Errorf("got %+v", violation)
	}
}

func TestChecksTellAServerErrorFromAViolation(t *testing.T) {
	for _, w := range workload.All(seed) {
		t.Run(w.Name(), func(t *testing.T) {
			db, committed := settled(t, w)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := w.Check(ctx, db, committed)
			if _, violated := errors.AsType[*workload.InvariantError](err); violated || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want the context's error", err)
			}
		})
	}
}

func TestSelectUnderstandsFamiliesAndKeepsOrder(t *testing.T) {
	for _, test := range []struct {
		names, want []string
	}{
		{nil, []string{"crossing", "upserts", "cache", "counter", "share", "skew", "transfer/write", "transfer/rc", "transfer/rr", "transfer/ser", "ids"}},
		{[]string{"ids", "crossing", "ids"}, []string{"crossing", "ids"}},
		{[]string{"transfer"}, []string{"transfer/write", "transfer/rc", "transfer/rr", "transfer/ser"}},
		{[]string{"transfer/rr"}, []string{"transfer/rr"}},
	} {
		selected, err := workload.Select(seed, test.names)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range selected {
			got = append(got, w.Name())
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%v selects %v, want %v", test.names, got, test.want)
		}
	}
}

func TestSelectNamesTheWorkloadsThatExist(t *testing.T) {
	_, err := workload.Select(seed, []string{"crossing", "transfers"})
	want := `no workload is called "transfers": choose from crossing, upserts, cache, counter, share, skew, transfer, ids`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
