package pgretry

import (
	"context"
	"database/sql/driver"
	"regexp"

	"go.opentelemetry.io/otel/trace"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// repeat executes a statement outside a transaction again after conflicts. Each
// time nothing of it happened: the server had begun and rolled back a transaction of
// its own for it.
type repeat struct {
	conn     *conn
	ctx      context.Context // the statement's
	run      context.Context // the same with the attempt's span
	text     string
	pace     pace
	original verdict
	survived bool // the last conflict; for rows it counts when they are closed
	reads    bool // it is a read, which can be fetched again over another connection
	span     trace.Span
	previous trace.SpanContext
}

// execLone executes a statement outside a transaction.
func (c *conn) execLone(ctx context.Context, s call) (driver.Result, error) {
	if c.hasNoSession() {
		return nil, driver.ErrBadConn
	}
	if c.tap.cache.wantsAttention() && c.block() == outsideBlock {
		if err := c.proveSession(ctx); err != nil {
			return nil, c.lostBefore(ctx, PhaseStatement, err)
		}
	}
	lone := c.beginLone(ctx, s.text)
	since := c.tap.mark()
	result, err := c.execQueued(ctx, s)
	if err != nil {
		err = c.lostLone(ctx, s.text, since, err)
	}
	lone.executed(err)
	c.noteRaw(s.text, err)
	c.observeLone(s.text)
	if err == nil || lone.attempt != nil || !c.isConflict(err) {
		return result, err
	}
	r := c.newRepeat(ctx, s.text, err)
	for {
		if err := r.pause(err); err != nil {
			return nil, err
		}
		since = c.tap.mark()
		if result, err = c.execQueued(r.run, s); err != nil {
			err = c.lostLone(ctx, s.text, since, err)
		}
		if again, err := r.ended(err); !again {
			r.count()
			return result, err
		}
	}
}

// queryLone is execLone for statements that return rows.
func (c *conn) queryLone(ctx context.Context, s call) (driver.Rows, error) {
	if c.hasNoSession() {
		return nil, driver.ErrBadConn
	}
	if c.tap.cache.wantsAttention() && c.block() == outsideBlock {
		if err := c.proveSession(ctx); err != nil {
			return nil, c.lostBefore(ctx, PhaseStatement, err)
		}
	}
	lone := c.beginLone(ctx, s.text)
	since := c.tap.mark()
	inner, err := c.queryQueued(ctx, s)
	if err != nil {
		err = c.lostLone(ctx, s.text, since, err)
	}
	lone.executed(err)
	c.noteRaw(s.text, err)
	c.observeLone(s.text)
	var r *repeat
	if err != nil && lone.attempt == nil && c.isConflict(err) {
		r = c.newRepeat(ctx, s.text, err)
		for again := true; again; {
			if err := r.pause(err); err != nil {
				return nil, err
			}
			since = c.tap.mark()
			if inner, err = c.queryQueued(r.run, s); err != nil {
				err = c.lostLone(ctx, s.text, since, err)
			}
			again, err = r.ended(err)
		}
	}
	if err != nil {
		return nil, err
	}
	rows := newRows(c, inner, 0, lone)
	rows.text = s.text
	rows.repeat = r
	if lone.attempt == nil && c.connector.config.mode == ModeReplay {
		c.keepLone(ctx, s, rows)
	}
	return rows, nil
}

// keepLone keeps the statement for as long as its rows may have to be fetched again.
func (c *conn) keepLone(ctx context.Context, s call, rows *rows) {
	info := analyze(s.text)
	if !info.Whole || withoutReplayFrom(ctx) {
		return
	}
	c.lone.reset()
	if c.lone.reserve(s, info, c.connector.config) != "" {
		c.lone.reset()
		return
	}
	c.loneUse++
	rows.use = c.loneUse
	rows.watch(ctx, 0)
}

// rowsFailed judges an error of rows outside a transaction.
func (c *conn) rowsFailed(rows *rows, err error, at site) (again bool, _ error) {
	kept := rows.watched && rows.use == c.loneUse
	lost := Classify(err, PhaseStatement) == ClassConnectionLost && c.connector.config.mode != ModeOff
	reads := kept && analyze(rows.text).ProvenRead && !c.stateful && c.tx.state == txNone && c.block() == outsideBlock
	again = kept && c.isConflict(err) || lost && reads
	if !again {
		rows.ended = true
		if lost {
			err = c.lostRows(rows.context(), rows.text, err)
		}
		if rows.lone.attempt != nil {
			rows.lone.failed(err)
		}
		return false, err
	}
	e := c.lone.last()
	if rows.repeat == nil {
		rows.repeat = c.newRepeat(rows.ctx, e.text, err)
	}
	rows.repeat.reads = reads
	if lost {
		c.noteLost(rows.ctx, lostStatement)
	}
	r := rows.repeat
	r.original = verdict{class: Classify(err, PhaseStatement), err: err}
	rows.letGo(err) // one cursor at a time, and none while waiting
	for {
		if err := r.pause(err); err != nil {
			rows.ended = true
			return false, err
		}
		again, err = r.fetchAgain(rows, e, at)
		if !again {
			rows.ended = err != nil
			return err == nil, err
		}
	}
}

// fetchAgain executes the statement again and fetches what the application has seen.
// It says whether another conflict came in the way.
func (r *repeat) fetchAgain(rows *rows, e *entry, at site) (again bool, err error) {
	ctx := rows.newContext(r.run)
	if r.conn.gone {
		if err := r.conn.reconnect(ctx); err != nil {
			return r.ended(err)
		}
	}
	s, release, err := r.conn.prepared(ctx, e)
	if err != nil {
		return r.ended(err)
	}
	inner, err := s.query(r.conn, ctx)
	if err != nil {
		return r.ended(either(err, release()))
	}
	real := r.conn.tap.takeRows(inner)
	got, what, err := showAgain(inner, real, &rows.shown, false)
	if err == nil && what == "" && got.digest != rows.shown.digest {
		what = "it showed something else"
	}
	if err == nil && what == "" && at != atClose {
		rows.resume(inner, real, release)
		return r.ended(nil)
	}
	err = either(err, either(inner.Close(), release()))
	if what != "" {
		d := Divergence{Fingerprint: sqltext.Fingerprint(e.text), What: what}
		r.conn.connector.stats.diverged(d)
		return false, r.giveUp(outcomeDiverged, "", "the statement ("+d.Fingerprint+"): "+what)
	}
	if err == nil {
		rows.resume(closedRows{rows.names}, real, nil)
	}
	return r.ended(err)
}

// isConflict says whether the error is one after which nothing remains of the
// statement.
func (c *conn) isConflict(err error) bool {
	v := verdict{class: Classify(err, PhaseStatement), err: err}
	return replayable(&pace{config: c.connector.config}, v)
}

func (c *conn) newRepeat(ctx context.Context, text string, err error) *repeat {
	config := c.connector.config
	return &repeat{
		conn: c, ctx: ctx, text: text,
		pace:     pace{config: config, started: config.now(), attempts: 1},
		original: verdict{class: Classify(err, PhaseStatement), err: err},
	}
}

// pause waits until the statement may be executed again. An error is what the
// application gets instead.
func (r *repeat) pause(err error) error {
	v := verdict{class: Classify(err, PhaseStatement), err: err}
	if reason, what := r.refuses(); reason != "" {
		return r.giveUp(outcomeRefused, reason, what)
	}
	if cause := contextError(r.ctx); cause != nil {
		return r.cut("the context is done", cause)
	}
	wait, limit, _ := r.pace.next(v, r.ctx)
	if limit == "" && v.class == ClassConnectionLost && !r.conn.connector.budget.take() {
		limit = "the retry budget is used up"
	}
	if limit != "" {
		return r.giveUp(outcomeExhausted, "", limit)
	}
	connector := r.conn.connector
	connector.stats.replayed(false)
	connector.tellRetried(r.ctx, KindStatement, v, r.pace.attempts, wait)
	if waitErr := connector.config.wait(r.ctx, wait); waitErr != nil {
		return r.cut("the context ended the wait", waitErr)
	}
	r.pace.attempts++
	r.startSpan()
	return nil
}

// refuses says why the statement must not be executed again, "" if it may.
func (r *repeat) refuses() (reason RefusalReason, what string) {
	config := r.conn.connector.config
	info := analyze(r.text)
	switch {
	case config.mode != ModeReplay:
		return RefusedMode, ""
	case withoutReplayFrom(r.ctx):
		return RefusedByContext, ""
	case r.conn.block() != outsideBlock:
		return RefusedTxControl, ""
	case !info.Whole && !info.Suspicious: // the latter has a reason of its own
		return RefusedStatement, info.Keyword.String()
	}
	if reason, what = config.refuses(callExec, info); reason != "" || info.ProvenRead {
		return reason, what
	}
	if (info.Keyword == sqltext.DDL || info.Keyword == sqltext.Truncate) && !r.conn.isPostgreSQL(r.ctx) {
		return RefusedStatement, info.Keyword.String() + " of another engine"
	}
	if found, err := r.conn.hasForeignTables(r.ctx); err != nil || found {
		return RefusedForeignTables, ""
	}
	return "", ""
}

// postgreSQL is how PostgreSQL names itself, and others that do its DDL in transactions as
// it does. YugabyteDB adds its own version, CockroachDB has another name, and Greenplum and
// Redshift say so in the end.
var (
	postgreSQL = regexp.MustCompile(`^PostgreSQL \d+(\.\d+)*(beta\d+|rc\d+|devel)?( |$)`)
	derivative = regexp.MustCompile(`Greenplum|Redshift|Cloudberry|Materialize`)
)

// isPostgreSQL asks the server what it is.
func (c *conn) isPostgreSQL(ctx context.Context) bool {
	version, err := c.ask(ctx, "SELECT pg_catalog.version()")
	return err == nil && postgreSQL.MatchString(version) && !derivative.MatchString(version)
}

// giveUp ends the matter with the server's first error.
func (r *repeat) giveUp(o outcome, reason RefusalReason, words string) error {
	connector := r.conn.connector
	connector.stats.surfaced()
	r.survived = false
	if !reason.tells() && o == outcomeRefused {
		return r.original.err
	}
	connector.tellFinal(r.ctx, KindStatement, o, r.original, r.pace.attempts, reason, words)
	r.endSpan(o, nil)
	return hinted(r.original.err, explain(o, reason, words))
}

// cut ends the matter because the context has ended. The error matches that too.
func (r *repeat) cut(words string, cause error) error {
	return &RetryError{
		Reason: ErrExhausted, Attempts: r.pace.attempts, Elapsed: r.pace.config.now().Sub(r.pace.started),
		Class: r.original.class, Err: r.giveUp(outcomeExhausted, "", words), Limit: words, cause: cause,
	}
}

// ended judges how the statement ended this time.
func (r *repeat) ended(err error) (again bool, _ error) {
	switch {
	case err == nil:
		r.survived = true
		r.endSpan(outcomeCommitted, nil)
		return false, nil
	case r.conn.isConflict(err):
		r.endSpan(outcomeRetried, err)
		return true, err
	case r.reads && Classify(err, PhaseStatement) == ClassConnectionLost:
		r.conn.noteLost(r.ctx, lostStatement)
		r.endSpan(outcomeRetried, err)
		return true, err
	case Classify(err, PhaseStatement) == ClassAborted:
		// A transaction is open that the driver knows nothing of.
		r.endSpan(outcomeRolledBack, err)
		r.survived = false
		r.conn.connector.stats.surfaced()
		return false, r.original.err
	}
	r.endSpan(outcomeRolledBack, err)
	return false, err
}

// count counts the statement as one whose conflicts were hidden, if they were.
func (r *repeat) count() {
	if r.survived {
		r.conn.connector.stats.hid(sqlState(r.original.err))
	}
}

func (r *repeat) startSpan() {
	telemetry := r.conn.connector.telemetry
	r.run = r.ctx
	if !telemetry.tracing(r.ctx) {
		return
	}
	r.run, r.span = telemetry.startAttempt(r.ctx, attemptStart{
		number: r.pace.attempts, kind: KindStatement.String(), name: nameFrom(r.ctx),
		previous: r.previous, started: r.pace.config.now(),
	})
	r.previous = r.span.SpanContext()
}

func (r *repeat) endSpan(o outcome, err error) {
	v := verdict{}
	if err != nil {
		v = verdict{class: Classify(err, PhaseStatement), err: err}
	}
	endSpan(r.span, ending{outcome: o, class: v.class, err: v.err, statements: 1})
	r.span = nil
}
