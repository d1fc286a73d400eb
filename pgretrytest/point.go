package pgretrytest

import (
	"fmt"

	"github.com/pgretry/pgretry/internal/abort"
)

// point is a call of the undisturbed run at which another run is aborted.
type point struct {
	call     int // counts the calls, from 0
	expected abort.Call
	sqlState string
	words    string
}

// isAt says whether the last of the calls is the one.
func (p *point) isAt(calls []abort.Call) bool {
	last := calls[len(calls)-1]
	return len(calls)-1 == p.call && last.Kind == p.expected.Kind && savepoints{}.same(p.expected.Text, last.Text)
}

// pointsOf returns the points of a run: each statement, each preparation of one, of the
// rows of each query the first and the last that are asked for and the end of reading
// before they have come to theirs, and COMMIT.
func pointsOf(calls []abort.Call) []*point {
	lastNext := make(map[int64]int) // of each statement, the last row's call
	for i, call := range calls {
		if call.Kind == abort.Next {
			lastNext[call.Statement] = i
		}
	}
	total := len(statements(calls))
	var list []*point
	number := 0                           // of the statement
	ordinal := make(map[int64]int)        // by the number that the connection has for it
	texts := make(map[int64]string)       // the same
	rowsBegun := make(map[int64]struct{}) // the same
	for i, call := range calls {
		p := &point{call: i, expected: call, sqlState: [...]string{"40001", "40P01"}[len(list)%2]}
		of := fmt.Sprintf("statement %d of %d, %s", ordinal[call.Statement], total, texts[call.Statement])
		switch {
		case call.Kind.IsStatement():
			number++
			ordinal[call.Statement], texts[call.Statement] = number, shortened(call.Text)
			if call.Spared {
				continue
			}
			p.words = fmt.Sprintf("statement %d of %d, %s", number, total, shortened(call.Text))
		case call.Kind == abort.Prepare:
			p.words = "the preparation of " + shortened(call.Text)
		case call.Kind == abort.Next:
			_, begun := rowsBegun[call.Statement]
			rowsBegun[call.Statement] = struct{}{}
			switch {
			case !begun:
				p.words = "the first row of " + of
			case i == lastNext[call.Statement]:
				p.words = "the end of the rows of " + of
			default:
				continue
			}
		case call.Kind == abort.Close:
			p.words = "the closing of the rows of " + of
		case call.Kind == abort.Commit:
			p.words = "COMMIT"
		default:
			continue
		}
		list = append(list, p)
	}
	return list
}

// spread returns so many of the points, evenly spread, the first and the last among them.
func spread(points []*point, most int) []*point {
	if len(points) <= most {
		return points
	}
	if most == 1 {
		return points[:1]
	}
	list := make([]*point, most)
	for i := range list {
		list[i] = points[i*(len(points)-1)/(most-1)]
	}
	return list
}
