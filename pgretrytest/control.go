package pgretrytest

import "github.com/pgretry/pgretry/internal/abort"

// Counts says how often the server was made to fail.
type Counts struct {
	Statements int64 // in transactions, as they were executed or prepared
	Rows       int64 // in transactions, as rows were read or results closed
	Commits    int64 // at COMMIT
	Lone       int64 // statements outside transactions
}

// Total is the sum of all counts.
func (c Counts) Total() int64 { return c.Statements + c.Rows + c.Commits + c.Lone }

// control is what connectors and drivers have in common for tests to hold on to.
type control struct{ shared *abort.Control }

// Pause lets everything through, until Resume. Neither statements nor attempts are
// counted meanwhile, and a transaction that begins is never aborted. For set-up, and for
// a look at what is left.
func (c control) Pause() { c.shared.Inject(false) }

// Resume ends Pause.
func (c control) Resume() { c.shared.Inject(true) }

// Counts returns how often the server was made to fail so far.
func (c control) Counts() Counts {
	var counts Counts
	for kind, n := range c.shared.Injected() {
		switch kind {
		case abort.Next, abort.Close:
			counts.Rows += n
		case abort.Commit:
			counts.Commits += n
		case abort.Lone:
			counts.Lone += n
		default:
			counts.Statements += n
		}
	}
	return counts
}
