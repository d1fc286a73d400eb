package certainty

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
)

// BankReport is what a run of [Bank] found. Its counts are of transfers where they say
// nothing else.
type BankReport struct {
	// Side is the name of the [BankSide].
	Side string
	// Workers and Duration are the run's.
	Workers  int
	Duration time.Duration
	// Faults is how often each fault happened.
	Faults map[string]int

	// Transfers is how many were begun. Each was reported as one of the next three.
	Transfers int
	Committed int
	// Failed were reported with an error that claims that nothing happened.
	Failed int
	// Unknown were reported with an error that makes no claim.
	Unknown int
	// Told is how often each kind of error was reported.
	Told map[string]int
	// UnknownBooked are those of Unknown that are in the ledger.
	UnknownBooked int
	// CommittedAfterwards are those of Committed that were begun after the last fault.
	CommittedAfterwards int

	// Slowest is the longest that a transfer took, Recovery the time from the last fault
	// until every worker had committed a transfer.
	Slowest, Recovery time.Duration

	// Doubled are in the ledger more than once.
	Doubled int
	// Missing were reported committed and are not in the ledger.
	Missing int
	// Denied were reported failed and are in the ledger.
	Denied int
	// Phantoms are entries of the ledger that belong to no transfer, or not so.
	Phantoms int
	// WrongBalances counts accounts that do not hold what the ledger says.
	WrongBalances int
	// Stuck counts workers that committed nothing after the last fault.
	Stuck int
	// PoolInUse counts connections of the pool that stayed in use, Sessions those at the
	// server that outlived the pool.
	PoolInUse, Sessions int

	violations []string
	unlisted   int
}

// bankListed is how many violations are listed in words.
const bankListed = 20

// violated notes that something is wrong, in a count if it has one.
func (r *BankReport) violated(count *int, format string, args ...any) {
	if count != nil {
		*count++
	}
	if len(r.violations) == bankListed {
		r.unlisted++
		return
	}
	r.violations = append(r.violations, fmt.Sprintf(format, args...))
}

// Broken says in an error what was wrong, nil if nothing was.
func (r *BankReport) Broken() error {
	if len(r.violations) == 0 {
		return nil
	}
	var all []error
	for _, violation := range r.violations {
		all = append(all, fmt.Errorf("%s: %s", r.Side, violation))
	}
	if r.unlisted > 0 {
		all = append(all, fmt.Errorf("%s: and %d more", r.Side, r.unlisted))
	}
	return errors.Join(all...)
}

// WrongClaims is how many transfers were doubled or reported wrongly.
func (r *BankReport) WrongClaims() int { return r.Doubled + r.Missing + r.Denied }

// FaultCount is how many faults there were in all.
func (r *BankReport) FaultCount() (all int) {
	for _, n := range r.Faults {
		all += n
	}
	return all
}

// FaultsInWords lists the faults, the most frequent first.
func (r *BankReport) FaultsInWords() string { return bankCounts(r.Faults) }

// ErrorsInWords lists the kinds of errors, the most frequent first.
func (r *BankReport) ErrorsInWords() string { return bankCounts(r.Told) }

func bankCounts(counts map[string]int) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(counts[b]-counts[a], strings.Compare(a, b))
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%d × %s", counts[name], name)
	}
	return strings.Join(names, ", ")
}

// bankError names the kind of an error.
func bankError(err error) string {
	if retry, ok := errors.AsType[*pgretry.RetryError](err); ok {
		why := retry.Limit
		switch {
		case errors.Is(err, pgretry.ErrDiverged):
			why = "the replay showed something else"
		case retry.Refusal != "":
			why = string(retry.Refusal)
		}
		return fmt.Sprintf("not tried again (%s)", why)
	}
	if _, ok := errors.AsType[*pgretry.CommitUnknownError](err); ok {
		return "outcome of COMMIT unknown"
	}
	if lost, ok := errors.AsType[*pgretry.ConnectionLostError](err); ok {
		switch {
		case !lost.RolledBack:
			return "connection lost, outcome unknown"
		case lost.Refusal != "":
			return fmt.Sprintf("connection lost, rolled back (%s)", lost.Refusal)
		case lost.Limit != "":
			why := lost.Limit
			if _, difference, ok := strings.Cut(why, "): "); ok {
				why = difference // without the statement in which it was
			}
			return fmt.Sprintf("connection lost, rolled back (%s)", why)
		}
		return "connection lost, rolled back"
	}
	server, ok := errors.AsType[*pq.Error](err)
	var about net.Error
	switch {
	case ok:
		return "SQLSTATE " + string(server.Code)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, sql.ErrTxDone):
		return "deadline"
	case errors.Is(err, driver.ErrBadConn):
		return "bad connection"
	case errors.As(err, &about), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "no connection"
	default:
		return fmt.Sprintf("%T", err)
	}
}

// BankTable returns reports as a Markdown table.
func BankTable(reports ...*BankReport) string {
	header := []string{
		"transfers with", "faults", "transfers", "told committed", "told failed", "told unknown",
		"booked twice", "told committed, not booked", "told failed, booked", "balances",
	}
	var rows [][]string
	for _, r := range reports {
		balances := "right"
		if r.WrongBalances > 0 {
			balances = fmt.Sprintf("%d wrong", r.WrongBalances)
		}
		row := []string{r.Side}
		for _, n := range []int{r.FaultCount(), r.Transfers, r.Committed, r.Failed, r.Unknown, r.Doubled, r.Missing, r.Denied} {
			row = append(row, fmt.Sprint(n))
		}
		rows = append(rows, append(row, balances))
	}
	return markdown(header, rows)
}

// Markdown returns the report as a table.
func (r *BankReport) Markdown() string { return BankTable(r) }
