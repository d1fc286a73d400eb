package pgretry

import (
	"fmt"
	"reflect"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// cause returns what ended the call's context or BEGIN's, nil if they go on.
func (r *replay) cause() error {
	if cause := contextError(r.call); cause != nil {
		return cause
	}
	return contextError(r.t.began)
}

// leave gives the conflict to the application because a context has ended: nothing is
// retried then.
func (r *replay) leave(cause error) error {
	t := r.t
	const words = "the context is done"
	t.surface()
	t.tellFinal(outcomeExhausted, r.original, "", words)
	if r.site == atCommit {
		t.finish(outcomeExhausted, r.original, "")
	} else {
		t.refuse(RefusedInterrupted, "")
	}
	return t.giveUp(r.original, ErrExhausted, "", words, cause)
}

// panicking leaves a transaction that nobody can use, on a connection that nobody
// will: the inner driver or the hook panics.
func (r *replay) panicking() {
	t := r.t
	t.conn.broken = true
	t.inner = nil
	t.poison = t.giveUp(r.original, ErrExhausted, "", "a panic came in the way", nil)
	t.finish(outcomeExhausted, r.original, "")
	t.state = txPoisoned
}

// differs says in words which statement showed what else, and keeps it for the
// statistics.
func (r *replay) differs(failed setback) string {
	d := Divergence{Statement: failed.statement, What: failed.what}
	what := failed.what
	if failed.statement < len(r.t.journal().entries) {
		e := &r.t.journal().entries[failed.statement]
		d.Fingerprint = sqltext.Fingerprint(e.text)
		what = fmt.Sprintf("statement %d (%s, fingerprint %s): %s", failed.statement, e.info.Keyword, d.Fingerprint, failed.what)
	}
	r.t.conn.connector.stats.diverged(d)
	return what
}

// handOut gives the conflict to the application with the transaction as the server
// had left it: aborted, inside the application's savepoint. From now on the
// application has seen what no replay can show again.
func (r *replay) handOut(o outcome, reason RefusalReason, words string) error {
	t := r.t
	if t.state != txAborted {
		// A statement that cannot succeed aborts the block again.
		err := t.conn.command(r.newContext(), `ROLLBACK TO SAVEPOINT "pgretry: there is no such savepoint"`)
		if sqlState(err) == "" {
			t.conn.broken = true
			return r.poison(outcomeRefused, ErrRefused, RefusedConnectionLost, "the connection was lost", nil)
		}
	}
	t.state, t.first = txAborted, r.original
	t.refuse(RefusedSavepoint, "")
	t.tellFinal(o, r.original, reason, words)
	t.surface()
	return hinted(r.original.err, explain(o, reason, words))
}

// poison ends the transaction for good. The call that met the conflict gets the
// server's error, all later ones a RetryError.
func (r *replay) poison(o outcome, reason error, refusal RefusalReason, words string, cause error) error {
	t := r.t
	t.letGo(r.original.err)
	if inner := t.inner; inner != nil {
		t.inner = nil
		if !t.conn.gone && inner.Rollback() != nil {
			// Whatever state it is in: nobody may use it again.
			t.conn.broken = true
		}
	}
	t.poison = t.giveUp(r.original, reason, refusal, words, cause)
	t.surface()
	t.tellFinal(o, r.original, refusal, words)
	t.finish(o, r.original, refusal)
	t.state = txPoisoned
	if r.cause() != nil {
		return t.poison // matches the context's error and the server's
	}
	return explained(r.original.err, o, refusal, words)
}

// explained returns an error that says why there was no replay.
func explained(err error, o outcome, refusal RefusalReason, words string) error {
	lost, ok := err.(*ConnectionLostError) //nolint:errorlint // ours, never wrapped
	if !ok {
		return hinted(err, explain(o, refusal, words))
	}
	told := *lost
	told.Refusal, told.Limit = refusal, words
	return &told
}

// giveUp makes the error of a transaction that is not replayed.
func (t *tx) giveUp(v verdict, reason error, refusal RefusalReason, words string, cause error) *RetryError {
	return &RetryError{
		Reason: reason, Refusal: refusal, Attempts: t.pace.attempts, Elapsed: t.pace.config.now().Sub(t.pace.started),
		Class: v.class, Err: v.err, Limit: words, cause: cause,
	}
}

// hinted returns a server's error with a sentence more in its hint, and any other
// error as it is.
func hinted(err error, sentence string) error {
	v := reflect.ValueOf(err)
	if sentence == "" || v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct || sqlState(err) == "" {
		return err
	}
	field, ok := v.Elem().Type().FieldByName("Hint")
	if !ok || len(field.Index) != 1 || !field.IsExported() || field.Type.Kind() != reflect.String {
		return err
	}
	copied := reflect.New(v.Elem().Type())
	copied.Elem().Set(v.Elem())
	hint := copied.Elem().FieldByIndex(field.Index)
	if hint.String() != "" {
		sentence = hint.String() + " " + sentence
	}
	hint.SetString(sentence)
	if hinted, ok := copied.Interface().(error); ok {
		return hinted
	}
	return err
}
