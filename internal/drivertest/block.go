package drivertest

import (
	"errors"
	"strings"
)

// block is the state of a session's transaction block as the server keeps it.
type block struct {
	open       bool
	failed     bool
	savepoints []string
}

// command is the effect of a statement on the transaction block.
type command struct {
	verb string // BEGIN, COMMIT, ROLLBACK, ROLLBACK TO, SAVEPOINT, RELEASE or empty
	name string // of the savepoint
}

// parseCommand understands the first statement of a text, without comments.
func parseCommand(query string) command {
	words := strings.Fields(strings.ToUpper(strings.TrimRight(strings.TrimSpace(query), ";")))
	if len(words) == 0 {
		return command{}
	}
	last := words[len(words)-1]
	switch words[0] {
	case "BEGIN":
		return command{verb: "BEGIN"}
	case "START":
		if len(words) > 1 && words[1] == "TRANSACTION" {
			return command{verb: "BEGIN"}
		}
	case "COMMIT", "END":
		return command{verb: "COMMIT"}
	case "ROLLBACK", "ABORT":
		for _, word := range words {
			if word == "TO" {
				return command{verb: "ROLLBACK TO", name: last}
			}
		}
		return command{verb: "ROLLBACK"}
	case "SAVEPOINT":
		return command{verb: "SAVEPOINT", name: last}
	case "RELEASE":
		return command{verb: "RELEASE", name: last}
	}
	return command{}
}

// before returns the error with which the server refuses a statement in the
// block's present state.
func (b *block) before(c command) error {
	switch c.verb {
	case "COMMIT", "ROLLBACK":
		return nil
	case "SAVEPOINT", "RELEASE", "ROLLBACK TO":
		if !b.open {
			return &Error{Severity: "ERROR", Code: "25P01", Message: c.verb + " can only be used in transaction blocks"}
		}
	}
	if b.failed && c.verb != "ROLLBACK TO" {
		return &Error{Severity: "ERROR", Code: "25P02", Message: "current transaction is aborted, commands ignored until end of transaction block"}
	}
	if (c.verb == "ROLLBACK TO" || c.verb == "RELEASE") && b.lookup(c.name) < 0 {
		return &Error{Severity: "ERROR", Code: "3B001", Message: "savepoint " + strings.ToLower(c.name) + " does not exist"}
	}
	return nil
}

// after notes the outcome of a statement.
func (b *block) after(c command, err error) {
	if err != nil {
		var state interface{ SQLState() string }
		if b.open && errors.As(err, &state) {
			b.failed = true
		}
		return
	}
	switch c.verb {
	case "BEGIN":
		b.open = true
	case "COMMIT", "ROLLBACK":
		b.end()
	case "SAVEPOINT":
		b.savepoints = append(b.savepoints, c.name)
	case "RELEASE":
		b.savepoints = b.savepoints[:b.lookup(c.name)]
	case "ROLLBACK TO":
		b.savepoints = b.savepoints[:b.lookup(c.name)+1]
		b.failed = false
	}
}

func (b *block) end() { *b = block{savepoints: b.savepoints[:0]} }

// lookup returns the index of the innermost savepoint of that name, or -1.
func (b *block) lookup(name string) int {
	for i := len(b.savepoints) - 1; i >= 0; i-- {
		if b.savepoints[i] == name {
			return i
		}
	}
	return -1
}
