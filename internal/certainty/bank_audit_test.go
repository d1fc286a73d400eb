package certainty

import (
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// settledBank returns a bank with one transfer of 5 from account 1 to account 2, booked
// as often as the ledger should have it, and claimed to have ended as claim.
func settledBank(t *testing.T, server *pgserver.Server, claim commitClaim, booked bool) *bank {
	t.Helper()
	b := &bank{config: BankConfig{Accounts: 3}.withDefaults(), side: BankLibPQ, settling: bankSettling}
	b.config.Workers = 1
	t.Cleanup(func() {
		if err := b.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if err := b.open(t.Context(), server); err != nil {
		t.Fatal(err)
	}
	transfer := bankTransfer{id: 7, source: 1, target: 2, amount: 5, form: bankLone}
	if booked {
		if err := transfer.book(t.Context(), b.admin); err != nil {
			t.Fatal(err)
		}
	}
	b.workers = [][]bankResult{{{transfer: transfer, claim: claim, calm: true, err: errors.New("reset by peer")}}}
	return b
}

func TestTheAuditFindsWhatIsWrong(t *testing.T) {
	server := bankServer(t)
	for _, test := range []struct {
		name   string
		claim  commitClaim
		booked bool
		tamper string
		says   string // "": nothing is wrong
		counts func(*BankReport) int
	}{
		{"committed and booked", commitAffirmed, true, ``, "", nil},
		{"failed and not booked", commitDenied, false, ``, "", nil},
		{"unknown and booked", commitOpen, true, ``, "", nil},
		{"unknown and not booked", commitOpen, false, ``, "", nil},
		{
			"committed and not booked", commitAffirmed, false, ``,
			"transfer 0x7 was reported committed", func(r *BankReport) int { return r.Missing },
		},
		{
			"failed and booked", commitDenied, true, ``,
			"transfer 0x7 was reported failed (*errors.errorString: reset by peer)", func(r *BankReport) int { return r.Denied },
		},
		{
			"booked twice", commitAffirmed, true, `INSERT INTO ledger SELECT * FROM ledger`,
			"is in the ledger 2 times", func(r *BankReport) int { return r.Doubled },
		},
		{
			"unknown and booked twice", commitOpen, true, `INSERT INTO ledger SELECT * FROM ledger`,
			"reported unknown (*errors.errorString: reset by peer)", func(r *BankReport) int { return r.Doubled },
		},
		{
			"another amount", commitAffirmed, true, `UPDATE ledger SET amount = 6`,
			"is in the ledger as another one", func(r *BankReport) int { return r.Phantoms },
		},
		{
			"ordered by nobody", commitAffirmed, true, `INSERT INTO ledger VALUES (8, 3, 3, 1)`,
			"transfer 0x8 is in the ledger and nobody ordered it", func(r *BankReport) int { return r.Phantoms },
		},
		{
			"a balance", commitAffirmed, true, `UPDATE accounts SET balance = 1000001 WHERE id = 3`,
			"account 3 holds 1000001 and, after the ledger, should hold 1000000", func(r *BankReport) int { return r.WrongBalances },
		},
		{
			"the sum", commitAffirmed, true, `DELETE FROM accounts WHERE id = 3`,
			"2 accounts hold 2000000 in all, should be 3 with 3000000", nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := settledBank(t, server, test.claim, test.booked)
			if _, err := b.admin.ExecContext(t.Context(), test.tamper); err != nil {
				t.Fatal(err)
			}
			report := BankReport{Told: make(map[string]int)}
			report.count(b.workers[0])
			report.Stuck = 0 // not what it is about
			if err := b.audit(t.Context(), &report); err != nil {
				t.Fatal(err)
			}
			err := report.Broken()
			switch {
			case test.says == "" && err != nil:
				t.Errorf("it found %v", err)
			case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
				t.Errorf("it found %v and not %q", err, test.says)
			}
			if test.counts != nil && test.counts(&report) == 0 {
				t.Errorf("it is not counted: %+v", report)
			}
		})
	}
}

func TestTheAuditFindsASessionThatIsLeft(t *testing.T) {
	b := settledBank(t, bankServer(t), commitAffirmed, true)
	dsn, err := commitDSN(b.schema.DSN, map[string]string{"application_name": b.application})
	if err != nil {
		t.Fatal(err)
	}
	leaked, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer leaked.Close()
	if err := leaked.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx, err := b.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b.settling = 1
	report := BankReport{Told: make(map[string]int)}
	if err := b.settle(t.Context(), &report); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	if report.PoolInUse != 1 || report.Sessions != 2 || report.Broken() == nil {
		t.Errorf("it found %+v", report)
	}
}

func TestAWorkerThatCommitsNothingAfterTheFaultsIsStuck(t *testing.T) {
	report := BankReport{Told: make(map[string]int)}
	report.count([]bankResult{{claim: commitAffirmed}, {claim: commitOpen, calm: true}})
	report.count([]bankResult{{claim: commitAffirmed, calm: true}})
	if report.Stuck != 1 || report.CommittedAfterwards != 1 || report.Committed != 2 || report.Unknown != 1 || report.Transfers != 3 {
		t.Errorf("it counts %+v", report)
	}
}
