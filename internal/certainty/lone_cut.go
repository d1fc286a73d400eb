package certainty

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/pgretry/pgretry/internal/faultproxy"
)

// loneMessage is a message of the exchange that a write is.
type loneMessage struct {
	direction faultproxy.Direction
	typ       byte
	nth       int // of its kind, since the exchange began
}

// lonePlace is where a message is cut.
type lonePlace uint8

const (
	loneBefore lonePlace = iota
	loneWithin
	loneAfter
)

// loneCut is one way to cut a write.
type loneCut struct {
	statement loneStatement
	idle      bool // the connection is one that the pool has
	asleep    bool // it is cut before the write begins
	at        loneMessage
	where     lonePlace
	reset     bool
	always    bool // every connection is cut there, not only the first
}

// String says where the cut is.
func (c loneCut) String() string {
	connection, end, often := "fresh", "FIN", ""
	if c.idle {
		connection = "idle"
	}
	if c.reset {
		end = "RST"
	}
	if c.asleep {
		return fmt.Sprintf("%s, %s connection, %s while it sleeps", c.statement.name, connection, end)
	}
	if c.always {
		often = ", every time"
	}
	return fmt.Sprintf("%s, %s connection, %s %s %c no. %d %s%s", c.statement.name, connection, end,
		[]string{"before", "within", "after"}[c.where], max(c.at.typ, '-'), c.at.nth, c.at.direction, often)
}

// loneStatement is one way to write.
type loneStatement struct {
	name string
	// prepare does what has to be done once, and returns the write itself.
	prepare func(ctx context.Context, db *sql.DB, row int) (write func() error, err error)
}

var loneStatements = []loneStatement{
	{"UPDATE with parameters", func(ctx context.Context, db *sql.DB, row int) (func() error, error) {
		return func() error {
			_, err := db.ExecContext(ctx, `UPDATE t SET v = v + 7 WHERE id = $1`, row)
			return err
		}, nil
	}},
	{"UPDATE without parameters", func(ctx context.Context, db *sql.DB, row int) (func() error, error) {
		return func() error {
			_, err := db.ExecContext(ctx, fmt.Sprintf(`UPDATE t SET v = v + 7 WHERE id = %d`, row))
			return err
		}, nil
	}},
	{"prepared UPDATE", func(ctx context.Context, db *sql.DB, row int) (func() error, error) {
		stmt, err := db.PrepareContext(ctx, `UPDATE t SET v = v + 7 WHERE id = $1`)
		if err != nil {
			return nil, err
		}
		return func() error {
			_, err := stmt.ExecContext(ctx, row)
			_ = stmt.Close() // says nothing about the write
			return err
		}, nil
	}},
	{"INSERT … RETURNING", func(ctx context.Context, db *sql.DB, row int) (func() error, error) {
		return func() error {
			var number int64
			return db.QueryRowContext(ctx, `INSERT INTO inserted (id) VALUES ($1) RETURNING number`, row).Scan(&number)
		}, nil
	}},
}

// waysToCut returns all ways to cut an exchange of these messages.
func waysToCut(statement loneStatement, idle bool, messages []loneMessage) []loneCut {
	var cuts []loneCut
	for _, at := range messages {
		// Of the many settings that a server tells a new connection, one is enough.
		if at.direction == faultproxy.ToClient && at.typ == 'S' && at.nth > 1 {
			continue
		}
		for _, where := range []lonePlace{loneBefore, loneWithin, loneAfter} {
			for _, reset := range []bool{false, true} {
				for _, always := range []bool{false, true} {
					cuts = append(cuts, loneCut{statement: statement, idle: idle, at: at, where: where, reset: reset, always: always})
				}
			}
		}
	}
	if idle {
		for _, reset := range []bool{false, true} {
			cuts = append(cuts, loneCut{statement: statement, idle: true, asleep: true, reset: reset})
		}
	}
	return cuts
}
