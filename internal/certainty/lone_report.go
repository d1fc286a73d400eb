package certainty

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// LoneReport is what a run of [LoneWrites] found. Its counts are of statements.
type LoneReport struct {
	Driver string
	// Places is how many ways there were to cut.
	Places int
	Trials int
	// Applied is how many took effect never, once, twice, and three times or more.
	Applied [4]int
	// Affirmed were reported done, Open were reported with an error that does not claim
	// that nothing happened, Denied with any other.
	Affirmed, Open, Denied int
	// Wrong were reported done but were not, or not done and were, or took effect more
	// than once.
	Wrong int

	violations []string
}

// loneListed is how many violations are kept in words.
const loneListed = 20

// loneClaimed returns what an error claims about a write.
func loneClaimed(err error, bare bool) commitClaim {
	if !bare {
		return commitClaimed(err)
	}
	var about net.Error
	switch {
	case err == nil:
		return commitAffirmed
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), errors.As(err, &about):
		return commitOpen
	default:
		return commitDenied
	}
}

// add counts what one write was.
func (r *LoneReport) add(cut loneCut, told error, applied int, bare bool) {
	r.Trials++
	r.Applied[min(applied, len(r.Applied)-1)]++
	claim := loneClaimed(told, bare)
	switch claim {
	case commitAffirmed:
		r.Affirmed++
	case commitOpen:
		r.Open++
	case commitDenied:
		r.Denied++
	}
	fault := commitJudgement(claim, commitTruth{applied, applied})
	if fault == "" {
		return
	}
	r.Wrong++
	if len(r.violations) < loneListed {
		r.violations = append(r.violations, fmt.Sprintf("%v: %s (the application was told: %T %v)", cut, fault, told, told))
	}
}

// Broken says in an error what was wrong, nil if nothing was.
func (r *LoneReport) Broken() error {
	var all []error
	for _, violation := range r.violations {
		all = append(all, fmt.Errorf("%s: %s", r.Driver, violation))
	}
	if unlisted := r.Wrong - len(r.violations); unlisted > 0 {
		all = append(all, fmt.Errorf("%s: and %d more", r.Driver, unlisted))
	}
	return errors.Join(all...)
}

// LoneTable returns reports as a Markdown table.
func LoneTable(reports ...*LoneReport) string {
	header := []string{
		"driver", "cuts", "places", "never applied", "once", "twice", "three times", "told done", "told lost", "told failed", "wrong",
	}
	var rows [][]string
	for _, r := range reports {
		row := []string{r.Driver}
		for _, n := range []int{
			r.Trials, r.Places, r.Applied[0], r.Applied[1], r.Applied[2], r.Applied[3], r.Affirmed, r.Open, r.Denied, r.Wrong,
		} {
			row = append(row, fmt.Sprint(n))
		}
		rows = append(rows, row)
	}
	return markdown(header, rows)
}

// Markdown returns the report as a table.
func (r *LoneReport) Markdown() string { return LoneTable(r) }
