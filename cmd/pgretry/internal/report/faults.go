package report

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/pgretry/pgretry/internal/certainty"
)

// Faults is everything that the demo of faults found, each part with lib/pq for comparison.
type Faults struct {
	// ServerVersion describes the server.
	ServerVersion string
	// Seed is what faults and writes are decided by.
	Seed uint64
	// LoneWithout and Lone are about writes outside transactions.
	LoneWithout, Lone *certainty.LoneReport
	// CommitsWithout and Commits are about the answers to COMMIT.
	CommitsWithout, Commits *certainty.CommitReport
	// BankWithout and Banks are about money being transferred all the while. Banks has one of each
	// way to use pgretry.
	BankWithout *certainty.BankReport
	Banks       []*certainty.BankReport
}

// Broken says what of pgretry's promise was not kept, nil if all was.
func (f Faults) Broken() error {
	broken := []error{f.Lone.Broken(), f.Commits.Broken()}
	for _, bank := range f.Banks {
		broken = append(broken, bank.Broken())
	}
	return errors.Join(broken...)
}

func (f Faults) lone() []*certainty.LoneReport {
	return []*certainty.LoneReport{f.LoneWithout, f.Lone}
}

func (f Faults) commits() []*certainty.CommitReport {
	return []*certainty.CommitReport{f.CommitsWithout, f.Commits}
}

func (f Faults) banks() []*certainty.BankReport {
	return append([]*certainty.BankReport{f.BankWithout}, f.Banks...)
}

// WriteFaultsText writes the tables and what they mean.
func WriteFaultsText(out io.Writer, f Faults) error {
	_, err := fmt.Fprintf(out, "%s\n%s\n%s\nPostgreSQL %s, seed %d.\n", f.loneText(), f.commitsText(), f.banksText(), f.ServerVersion, f.Seed)
	return err
}

func (f Faults) loneText() string {
	t := newFaultTable(table.Row{
		"with", "writes\ncut", "applied\nnever", "once", "twice", "three\ntimes",
		"told\ndone", "told\nlost", "told\nfailed", "told\nwrongly",
	}, 1)
	for _, r := range f.lone() {
		t.AppendRow(table.Row{r.Driver, r.Trials, r.Applied[0], r.Applied[1], r.Applied[2], r.Applied[3], r.Affirmed, r.Open, r.Denied, r.Wrong})
	}
	return fmt.Sprintf(`Writes outside a transaction, their connection cut at each message of the exchange:

%s

"Lost" makes no claim: the write may have been applied once. database/sql executes a write again, up
to three times in all, when lib/pq says "driver: bad connection".
`, t.Render())
}

func (f Faults) commitsText() string {
	t := newFaultTable(table.Row{
		"COMMIT meets", "with", "trials", "truly\ncommitted", "told\ncommitted", "told not\ncommitted", "told\nunknown", "told\nwrongly",
	}, 2)
	for i, scenario := range f.Commits.Results {
		if i > 0 {
			t.AppendSeparator()
		}
		name := scenario.Scenario
		for _, report := range f.commits() {
			for _, r := range report.Results {
				if r.Scenario != scenario.Scenario {
					continue
				}
				t.AppendRow(table.Row{name, report.Driver, r.Trials, r.There, r.Affirmed, r.Denied, r.Open, r.Wrong})
				name = ""
			}
		}
	}
	return fmt.Sprintf(`Transactions whose COMMIT got no answer:

%s

lib/pq says "driver: bad connection" whether the transaction was committed or not. pgretry asks the
server, on another connection, and says "unknown" only where the server cannot tell. Where it was not
committed, the transaction is run again: that is why it is there in the end.
`, t.Render())
}

func (f Faults) banksText() string {
	t := newFaultTable(table.Row{
		"transfers with", "faults", "transfers", "told\ncommitted", "told\nfailed", "told\nunknown",
		"booked\ntwice", "told committed,\nnot booked", "told failed,\nbooked", "balances",
	}, 1)
	for _, r := range f.banks() {
		t.AppendRow(table.Row{r.Side, r.FaultCount(), r.Transfers, r.Committed, r.Failed, r.Unknown, r.Doubled, r.Missing, r.Denied, balances(r)})
	}
	var details strings.Builder
	for _, r := range f.banks() {
		fmt.Fprintf(&details, "\n%s met %s.\n", r.Side, r.FaultsInWords())
		if told := r.ErrorsInWords(); told != "" {
			fmt.Fprintf(&details, "It was told %s.\n", told)
		}
	}
	return fmt.Sprintf(`A bank under fire, %d workers and %v of faults each:

%s

Balances are compared with the ledger, to which lib/pq adds some transfers twice.
%s`, f.BankWithout.Workers, f.BankWithout.Duration.Round(time.Millisecond), t.Render(), details.String())
}

// newFaultTable returns a table in the demo's style whose first columns are words.
func newFaultTable(header table.Row, words int) table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.Style().Options.SeparateColumns = false
	t.AppendHeader(header)
	var numbers []table.ColumnConfig
	for column := words + 1; column <= len(header); column++ {
		numbers = append(numbers, table.ColumnConfig{Number: column, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(numbers)
	t.SuppressTrailingSpaces()
	return t
}

func balances(r *certainty.BankReport) string {
	if r.WrongBalances > 0 {
		return "WRONG"
	}
	return "right"
}
