package pgretrytest

import (
	"context"
	"database/sql/driver"
	"fmt"
	"reflect"
	"strings"
	"sync"

	"github.com/pgretry/pgretry/internal/abort"
)

// record is what was seen of one run, which may be of several attempts.
type record struct {
	stage *stage
	point *point // at which its first attempt is aborted, nil for nowhere
	want  func(name, digest string) bool
	clear func(context.Context) error // sets the sequences back if nothing was committed

	mu       sync.Mutex
	attempts []*attempt
	failure  error // that keeps the run from being judged

	runs    int // of the closure
	took    span
	err     error // what the closure's loop returned
	results []any
}

var (
	_ abort.Script        = (*record)(nil)
	_ abort.ScriptedBlock = (*attempt)(nil)
)

// attempt is a transaction.
type attempt struct {
	record  *record
	calls   []abort.Call
	aborted bool
	holds   snapshot // at its COMMIT, nil if it did not come to it
}

// Begin makes ready for an attempt.
func (r *record) Begin(ctx context.Context, on abort.Session) (abort.ScriptedBlock, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := &attempt{record: r}
	if last := r.last(); last != nil && last.holds != nil {
		return nil, r.fail(fmt.Errorf("the closure begins another transaction after one that was to be committed; what is on trial is one transaction"))
	}
	if len(r.attempts) > 0 { // the first one finds the sequences as the run before has left them
		if err := r.clear(ctx); err != nil {
			return nil, r.fail(err)
		}
	}
	if err := r.stage.sequences.forgetIn(ctx, on); err != nil {
		return nil, r.fail(err)
	}
	r.attempts = append(r.attempts, a)
	return a, nil
}

// fail notes the first thing that keeps the run from being judged.
func (r *record) fail(err error) error {
	if r.failure == nil {
		r.failure = err
	}
	return err
}

func (r *record) last() *attempt {
	if len(r.attempts) == 0 {
		return nil
	}
	return r.attempts[len(r.attempts)-1]
}

// Call notes a call.
func (a *attempt) Call(call abort.Call) (sqlState string) {
	a.record.mu.Lock()
	defer a.record.mu.Unlock()
	call.Args = copiedArgs(call.Args)
	a.calls = append(a.calls, call)
	point := a.record.point
	if point == nil || len(a.record.attempts) > 1 || !point.isAt(a.calls) {
		return ""
	}
	a.aborted = true
	return point.sqlState
}

// Skipped takes back the last call.
func (a *attempt) Skipped() {
	a.record.mu.Lock()
	defer a.record.mu.Unlock()
	a.calls = a.calls[:len(a.calls)-1]
}

// Commit looks at what the transaction would leave.
func (a *attempt) Commit(ctx context.Context, on abort.Session) error {
	// What COMMIT would do first, and may fail in.
	if err := on.Exec(ctx, `SET CONSTRAINTS ALL IMMEDIATE`); err != nil {
		return err
	}
	found, err := a.record.stage.reader.take(ctx, on, a.record.want)
	a.record.mu.Lock()
	defer a.record.mu.Unlock()
	if err != nil {
		return a.record.fail(err)
	}
	a.holds = found
	return nil
}

// copiedArgs copies what an application may use again after the call.
func copiedArgs(args []driver.NamedValue) []driver.NamedValue {
	list := make([]driver.NamedValue, len(args))
	copy(list, args)
	for i, arg := range list {
		if arg.Value != nil {
			list[i].Value = copied(reflect.ValueOf(arg.Value)).Interface()
		}
	}
	return list
}

// statements returns the calls that execute statements.
func statements(calls []abort.Call) (list []abort.Call) {
	for _, call := range calls {
		if call.Kind.IsStatement() {
			list = append(list, call)
		}
	}
	return list
}

// longestText is how many bytes of a statement are shown.
const longestText = 160

// shortened is a text on one line.
func shortened(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > longestText {
		text = strings.ToValidUTF8(text[:longestText], "") + " …"
	}
	return text
}
