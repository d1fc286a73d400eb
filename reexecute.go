package pgretry

import (
	"database/sql/driver"
	"errors"
	"io"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// execute executes the journal again from an entry on.
func (r *replay) execute(first int) setback {
	t := r.t
	for i := first; i < len(t.journal().entries); i++ {
		if err := t.pinBefore(r.ctx, &t.journal().entries[i].call, i); err != nil {
			return r.unexpected(err)
		}
		if failed := r.executeAgain(i); failed.kind != noSetback {
			failed.statement = i
			return failed
		}
		if !t.journal().entries[i].failed {
			t.savepoints.note(t.journal(), i)
		}
	}
	return setback{}
}

// unexpected judges an error that the transaction did not have before. Whether it
// is a conflict is asked before anything else.
func (r *replay) unexpected(err error) setback {
	t := r.t
	v := t.judgeStatement(err)
	if v.class == ClassConnectionLost {
		t.losesConnection()
		v.err = t.lost(err)
	}
	switch {
	case r.cause() != nil:
		return setback{kind: interrupted}
	case t.replayable(v):
		return setback{kind: conflicted, verdict: v}
	}
	what := "it failed"
	if state := sqlState(err); state != "" {
		what += " with SQLSTATE " + state
	}
	return setback{kind: diverged, verdict: v, what: what}
}

// executeAgain executes one entry and compares what it shows with what the
// application saw, which is never replaced by what a replay shows.
func (r *replay) executeAgain(i int) setback {
	t := r.t
	e := &t.journal().entries[i]
	var failed setback
	switch e.kind {
	case callExec:
		failed = r.execAgain(e)
	case callQuery:
		failed = r.queryAgain(e)
	case callPrepare:
		failed = r.prepareAgain(e)
	case callClose:
		e.stmt.shut = true
		failed = r.compare(e, shown{}, e.stmt.Stmt.Close())
	}
	failed.statement = i
	return failed
}

// compare compares a result, or an error that came in its place or after it, with
// what the application saw.
func (r *replay) compare(e *entry, got shown, err error) setback {
	if err != nil {
		if failed := r.unexpected(err); failed.kind != diverged || !e.failed {
			return failed
		}
		got.failed(err)
	}
	switch {
	case err == nil && e.failed:
		return setback{kind: diverged, what: "it succeeded where it had failed"}
	case got.digest == e.shown.digest:
		return setback{}
	case err != nil:
		return setback{kind: diverged, what: "it failed with SQLSTATE " + sqlState(err) + " in another way than before"}
	case e.kind == callExec:
		return setback{kind: diverged, what: "it affected another number of rows"}
	}
	return setback{kind: diverged, what: "it showed something else"}
}

func (r *replay) execAgain(e *entry) setback {
	c, release, err := r.t.conn.prepared(r.ctx, e)
	if err != nil {
		r.t.failed(err)
		return r.unexpected(err)
	}
	result, err := c.exec(r.t.conn, r.ctx)
	r.t.executed(e.text, err)
	err = either(err, release())
	var got shown
	if err == nil {
		got.digest.addResult(result)
	}
	return r.compare(e, got, err)
}

func (r *replay) queryAgain(e *entry) setback {
	t := r.t
	c, release, err := t.conn.prepared(r.ctx, e)
	if err != nil {
		t.failed(err)
		return r.unexpected(err)
	}
	ctx := r.ctx
	if e.cursor != nil {
		ctx = e.cursor.newContext(ctx)
	}
	inner, err := c.query(t.conn, ctx)
	t.executed(e.text, err)
	if err != nil {
		return r.compare(e, shown{}, either(err, release()))
	}
	real := t.conn.tap.takeRows(inner)
	got, what, err := showAgain(inner, real, &e.shown, e.failed && !e.closed)
	var failed setback
	switch {
	case what != "":
		failed = setback{kind: diverged, what: what}
	case err != nil:
		t.failed(err)
		failed = r.compare(e, got, err)
	case !e.closed:
		failed = r.compare(e, got, nil)
	}
	keep := failed.kind == noSetback && !e.failed && e.cursor != nil &&
		(r.cursor != e.cursor || r.site != atClose) && r.site != atCommit
	if keep {
		e.cursor.resume(inner, real, release)
		return setback{}
	}
	err = either(inner.Close(), release())
	switch {
	case failed.kind != noSetback:
		return failed
	case e.closed: // by a failure that is due now
		if err != nil {
			t.failed(err)
		}
		return r.compare(e, got, err)
	case e.failed: // it has failed as it did before
		return setback{}
	case err != nil:
		t.failed(err)
		return r.compare(e, got, err)
	}
	if e.cursor != nil {
		e.cursor.resume(closedRows{e.cursor.names}, real, noRelease)
	}
	return setback{}
}

// showAgain fetches exactly as much as the application did; failing means that it
// then saw an error. It returns what came, in words what was different, and an error
// if there was one.
func showAgain(inner, real driver.Rows, want *shown, failing bool) (got shown, what string, err error) {
	names := inner.Columns()
	got.columns(names, real)
	dest := make([]driver.Value, len(names))
	for set, seen := range want.sets() {
		if set > 0 {
			next, ok := inner.(driver.RowsNextResultSet)
			if ok {
				err = next.NextResultSet()
			}
			switch {
			case !ok, err == io.EOF: //nolint:errorlint // drivers must return it bare
				return got, "it has fewer result sets", nil
			case err != nil:
				return got, "", err
			}
			got.nextSet()
			names = inner.Columns()
			got.columns(names, real)
			dest = make([]driver.Value, len(names))
		}
		for range seen.rows {
			switch err := inner.Next(dest); {
			case err == io.EOF: //nolint:errorlint // drivers must return it bare
				return got, "it has fewer rows", nil
			case err != nil:
				return got, "", err
			}
			got.row(dest)
		}
		fails := failing && set == len(want.earlier)
		if !seen.end && !fails {
			continue
		}
		switch err := inner.Next(dest); {
		case err == nil && seen.end:
			return got, "it has more rows", nil
		case err == nil, err == io.EOF && fails: //nolint:errorlint // drivers must return it bare
			return got, "it did not fail as it had", nil
		case err != io.EOF: //nolint:errorlint // drivers must return it bare
			return got, "", err
		}
		got.end = true
	}
	return got, "", nil
}

func (r *replay) prepareAgain(e *entry) setback {
	t := r.t
	inner, err := t.conn.session.PrepareContext(r.ctx, e.text)
	if err != nil {
		t.failed(err)
		return r.compare(e, shown{}, err)
	}
	t.conn.tap.lastStmt = nil
	var got shown
	got.digest.add(tagInputs, uint64(inner.NumInput()))
	if e.info.Copy == sqltext.CopyFromClient && e.stmt != nil {
		// The rows that follow go into this one.
		e.stmt.replace(inner)
		return r.compare(e, got, nil)
	}
	if err := inner.Close(); err != nil {
		t.failed(err)
		return r.compare(e, got, err)
	}
	return r.compare(e, got, nil)
}

// either returns the errors that are not nil: one of them as it is, because its own
// value matters.
func either(first, second error) error {
	switch {
	case first == nil:
		return second
	case second == nil:
		return first
	}
	return errors.Join(first, second)
}
