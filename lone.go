package pgretry

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// Texts differ each time in programs that put literals into them, so the cache
// is bounded, in entries and in the length of a text worth keeping.
const (
	analysedTexts     = 2048
	analysedTextBytes = 16 << 10
)

var analyses = sqltext.NewCache(analysedTexts, analysedTextBytes)

func analyze(text string) *sqltext.Info { return analyses.Analyze(text) }

// rollsBack says whether the statement that ends a transaction undoes it.
func rollsBack(info *sqltext.Info) bool {
	return info.Statements == 1 && info.Keyword == sqltext.Rollback
}

// mayControlTx says quickly and cautiously whether a text could begin or end a
// transaction. Statements are many and such texts are few.
func mayControlTx(text string) bool {
	text = strings.TrimLeft(text, " \t\r\n\f\v")
	if len(text) < 3 {
		return false
	}
	switch text[0] | 0x20 {
	case 's': // START, but not SELECT, SET or SAVEPOINT
		if text[1]|0x20 == 't' {
			return true
		}
	case 'a', 'b', 'c', 'e', 'p', 'r', '-', '/', ';':
		return true
	}
	semicolon := strings.IndexByte(text, ';')
	return semicolon >= 0 && semicolon < len(text)-1
}

// mayDeclare says quickly and cautiously whether a text could declare a cursor.
func mayDeclare(text string) bool {
	text = strings.TrimLeft(text, " \t\r\n\f\v")
	return text != "" && (text[0]|0x20 == 'd' || text[0] == '-' || text[0] == '/' || text[0] == ';' || strings.IndexByte(text, ';') >= 0)
}

// rawBlock is a transaction that the application began by sending BEGIN as a
// statement, seen under a closure's context.
type rawBlock struct {
	attempt *attempt
	first   verdict
}

// abandon ends a block whose connection goes away or back to the pool.
func (b *rawBlock) abandon() {
	if b.attempt != nil {
		b.attempt.txEnded(false, outcomeRolledBack, 0, b.first)
	}
	*b = rawBlock{}
}

// noteRaw follows transactions that are begun and ended by statements, so that
// nothing inside one is taken for a statement that stands alone.
func (c *conn) noteRaw(text string, err error) {
	if mayDeclare(text) && analyze(text).WithHold {
		c.holdsCursor = true
	}
	if !mayControlTx(text) || err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		return
	}
	switch info := analyze(text); {
	case err == nil && (info.BeginsTx || info.EndsTx):
		c.rawOpen, c.rawDoubt = info.LeavesTxOpen, false
	case info.BeginsTx || info.EndsTx:
		c.rawOpen, c.rawDoubt = c.rawOpen || info.BeginsTx, true
	}
}

// mayHaveCommitted says of a text that failed whether a COMMIT in it may have taken
// effect: as one of several statements, or without an answer.
func mayHaveCommitted(info *sqltext.Info, err error) bool {
	return info.EndsTx && !rollsBack(info) && (info.Statements > 1 || Classify(err, PhaseCommit) == ClassUnknownOutcome)
}

// loneStatement is a statement outside a transaction that runs under a closure's
// context: what it commits, a further run of the closure would commit again.
type loneStatement struct {
	attempt *attempt // nil outside closures; then nothing is noted
	conn    *conn
	info    *sqltext.Info
	noted   bool

	underWay bool
}

func (c *conn) beginLone(ctx context.Context, text string) loneStatement {
	a := attemptFrom(ctx)
	if a == nil {
		a = c.rawBlock.attempt
	}
	if a == nil {
		return loneStatement{}
	}
	a.meets(c.connector)
	l := loneStatement{attempt: a, conn: c, info: analyze(text)}
	if !repeatable(l.info) {
		l.underWay = true
		a.writeBegan()
	}
	return l
}

// executed notes what the statement has done, or may have.
func (l *loneStatement) executed(err error) {
	if l.underWay {
		l.underWay = false
		defer l.attempt.writeEnded() // after what it did is noted
	}
	switch {
	case l.attempt == nil || err == driver.ErrSkip: //nolint:errorlint // drivers must return it bare
		return
	case err != nil:
		l.failed(err)
		return
	case l.conn.rawBlock.attempt != nil:
		l.inBlock()
		return
	case l.info.BeginsTx && !l.info.EndsTx:
		l.conn.rawBlock.attempt = l.attempt
		l.attempt.txBegan()
	case !repeatable(l.info):
		l.noted = true
		l.attempt.noteCommitted("a statement outside the transaction (" + l.info.Keyword.String() + ")")
	}
	l.attempt.noteSuccess()
}

// inBlock notes a statement that succeeded inside a raw block.
func (l *loneStatement) inBlock() {
	block := &l.conn.rawBlock
	if !l.info.EndsTx {
		if l.info.Statements > 0 {
			block.first = verdict{} // after an error, a ROLLBACK TO: nothing else succeeds
		}
		return
	}
	o := outcomeCommitted
	if rollsBack(l.info) {
		o = outcomeRolledBack
	}
	block.attempt.txEnded(false, o, 0, block.first)
	if l.info.AndChain {
		block.attempt.txBegan()
		block.first = verdict{}
		return
	}
	*block = rawBlock{}
}

// failed notes an error, which for a cursor may come after executed.
func (l *loneStatement) failed(err error) {
	class := Classify(err, PhaseStatement)
	if block := &l.conn.rawBlock; block.attempt != nil {
		if block.first.err == nil {
			block.first = verdict{class: class, err: err}
		}
		switch {
		case mayHaveCommitted(l.info, err):
			block.attempt.noteCommitted("a transaction, perhaps, by a COMMIT inside a text that failed")
		case l.info.EndsTx && !rollsBack(l.info) && l.conn.foreignMayHaveCommitted(context.Background(), class):
			block.attempt.noteCommitted(foreignPart)
		}
		if class == ClassConnectionLost || l.conn.block() == outsideBlock || l.info.EndsTx && l.info.Statements == 1 && sqlState(err) != "" {
			block.abandon() // a COMMIT that fails ends it too
		}
		return
	}
	l.attempt.noteFailure(class, err)
	if errors.Is(err, driver.ErrBadConn) && !l.keepsErrors() {
		return // it had no effect: database/sql executes it again
	}
	l.conn.connector.telemetry.deadlock(l.attempt.currentSpan(), err)
	if l.noted {
		l.noted = false
		l.attempt.takeBackCommitted()
	}
	switch {
	case repeatable(l.info):
	case l.conn.foreignMayHaveCommitted(context.Background(), class):
		l.noted = true
		l.attempt.noteCommitted(foreignPart)
	case !undone(l.info, err):
		l.noted = true
		l.attempt.noteCommitted("a statement outside the transaction whose outcome is unknown (" + l.info.Keyword.String() + ")")
	}
}

// keepsErrors says whether errors are those of the inner driver, whatever they are.
func (l *loneStatement) keepsErrors() bool { return l.conn.connector.config.mode == ModeOff }

// repeatable says whether running the statement again does what running it once
// did.
func repeatable(info *sqltext.Info) bool {
	if info.ProvenRead {
		return true
	}
	if info.Statements != 1 {
		return info.Statements == 0
	}
	switch info.Keyword {
	case sqltext.Set, sqltext.Reset, sqltext.Show, sqltext.Listen, sqltext.Unlisten:
		return true
	}
	return false
}

// undone says whether the error proves that nothing of the statement was
// committed: the server answered, and the statement cannot have committed a part
// of its work before it failed. Its commit was part of the call, so the error is
// judged as one of COMMIT.
func undone(info *sqltext.Info, err error) bool {
	if sqlState(err) == "" || info.TxControl || info.Suspicious {
		return false
	}
	switch Classify(err, PhaseCommit) {
	case ClassUnknownOutcome, ClassConnectionLost:
		return false
	}
	switch info.Keyword {
	case sqltext.Select, sqltext.Insert, sqltext.Update, sqltext.Delete, sqltext.Merge, sqltext.With, sqltext.Values, sqltext.Table:
		return true
	}
	return false
}
