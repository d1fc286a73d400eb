package pgretry

import (
	"context"
	"database/sql/driver"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/sqltext"
)

const (
	// cachedTextBytes is the longest text that is kept prepared.
	cachedTextBytes = 16 << 10
	// cachedFor is how long a statement stays prepared. Another session may have made a
	// table that comes earlier in the search_path since; a statement that is prepared
	// does not see it.
	cachedFor = time.Minute
	// seenTexts is how many texts are remembered of those that came once.
	seenTexts = 512
)

// statementCache keeps statements with arguments prepared in a session, so that each
// costs one round trip instead of two. lib/pq, which prepares such a statement each time,
// calls it; the driver's users see no difference but in time.
//
// It is used only where the session is known to be ours alone: lib/pq counts its
// statements from 1 in every session, and behind a pooler that gives each transaction to
// another process, 1 would be whatever another client has prepared. As a second line the
// names begin at random, so that what is not there is an error and never something else.
type statementCache struct {
	config  *config
	state   cacheState
	wanted  bool // a text was used again: it would be of use
	entries map[string]*cachedStatement
	newest  *cachedStatement // of a ring, most recently used first
	stale   []staleStatement // to be closed when there is time
	plans   *plans           // the connector's, until the session differs from others

	replans  bool             // it plans for the arguments at hand each time
	unjudged *cachedStatement // of which the plan is to be looked at
	seed     maphash.Seed
	seen     [seenTexts]uint64

	inProgress *uint32 // lib/pq's, by which it knows that rows are being read
	txnFinish  *func() // lib/pq's, by which it stops to wait for a transaction's context; nil if there is none
	suspended  bool    // until the transaction ends: it has changed what names mean
	asking     bool    // for the driver itself, which changes no meaning
	failure    error   // of a cached statement, that another attempt would perhaps not have
}

type cacheState uint8

const (
	cacheUnproved cacheState = iota // nobody has asked whether the session is ours alone
	cacheOn
	cacheOff
)

// cachedStatement is a text that was used more than once.
type cachedStatement struct {
	text         string
	stmt         cacheableStmt // nil if it is better not kept
	name         string        // lib/pq's
	prepared     time.Time     // or found to be better not kept
	uses         int           // since then
	plan         verdictOnPlan // what is thought of the plan for all arguments
	newer, older *cachedStatement
}

// staleStatement is a statement that is of no use any more.
type staleStatement struct {
	stmt cacheableStmt
	name string
}

// cacheableStmt is what lib/pq's statements are.
type cacheableStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// newStatementCache returns the cache of a session, nil if there is to be none.
func newStatementCache(config *config, t *tap, known *plans) *statementCache {
	if !t.libPQ || config.mode == ModeOff || config.statementCache == 0 {
		return nil
	}
	inner := reflect.ValueOf(t.Conn).Elem()
	binary, progress := field(field(inner, "cfg"), "BinaryParameters"), field(field(inner, "inProgress"), "v")
	if binary.Kind() != reflect.Bool || binary.Bool() || progress.Kind() != reflect.Uint32 || !startNamesAtRandom(inner) {
		return nil
	}
	var finish *func()
	if f := field(inner, "txnFinish"); f.IsValid() && f.Type() == reflect.TypeFor[func()]() {
		finish = (*func())(unsafe.Pointer(f.UnsafeAddr())) //nolint:gosec // the type was checked
	}
	return &statementCache{
		txnFinish:  finish,
		inProgress: (*uint32)(unsafe.Pointer(progress.UnsafeAddr())), //nolint:gosec // the kind was checked
		config:     config, entries: make(map[string]*cachedStatement), seed: maphash.MakeSeed(),
		wanted: config.statementCacheInsists,
		plans:  known,
	}
}

// field returns a field of a struct, the zero Value if there is none: another version of
// lib/pq may have others.
func field(outer reflect.Value, name string) reflect.Value {
	if outer.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return outer.FieldByName(name)
}

// startNamesAtRandom makes lib/pq, which names prepared statements by a number that it
// counts up, begin somewhere else in each session. It says whether that was possible.
func startNamesAtRandom(inner reflect.Value) bool {
	counter := field(inner, "namei")
	if counter.Kind() != reflect.Int || !counter.CanAddr() {
		return false
	}
	const room = 1 << 20 // it must not overflow
	start := rand.IntN(int(^uint(0)>>1) - room)
	*(*int)(unsafe.Pointer(counter.UnsafeAddr())) = start //nolint:gosec // the only way; the kind was checked
	return true
}

// errQueryInProgress is lib/pq's. It does not look for it where a statement was prepared
// before, and does not note that rows are being read where a query has arguments: what is
// sent then takes the rest of the rows for its answer.
var errQueryInProgress = errors.New("pq: there is already a query being processed on this connection")

// take returns the statement that the text is to be executed by, nil if that is not a
// cached one. An error is the call's.
func (c *statementCache) take(ctx context.Context, t *tap, text string, args []driver.NamedValue) (*cachedStatement, error) {
	c.failure = nil
	switch {
	case c.asking || c.state == cacheOff:
		return nil, nil
	case !t.isValid():
		return nil, driver.ErrBadConn
	case c.isReading():
		return nil, errQueryInProgress
	}
	c.resume(t)
	if c.state == cacheOn && len(args) > 0 {
		if found := c.entries[text]; found != nil {
			switch young := c.config.now().Sub(found.prepared) < found.lifetime(); {
			case young && found.stmt == nil:
				return nil, nil
			case young && (found.plan.fixed() || found.uses < customPlans || c.replans):
				c.use(found)
				return found, nil
			case young:
				switch found.plan = c.plans.find(text, c.config.now()); {
				case found.plan.fixed():
					c.use(found)
					return found, nil
				case found.plan == planUnknown:
					c.unjudged = found // the one that takes its place
				}
			}
			judge := c.unjudged == found
			c.drop(found)
			again, err := c.prepare(ctx, t, text)
			if judge {
				c.unjudged = again
			}
			return again, err
		}
	}
	info := analyze(text)
	switch {
	case info.InvalidatesPrepared(text, c.allowed()):
		c.invalidate(info, t)
		if dropsAll(text) && t.txStatus() != 'E' {
			c.stale = nil // whatever becomes of the transaction
		}
	case len(args) == 0 || len(text) > cachedTextBytes || !isCacheable(info) || readsClock(text) || !c.hasSeen(text):
	case c.state == cacheOn && !c.suspended:
		return c.prepare(ctx, t, text)
	case c.state == cacheUnproved:
		c.wanted = true
	}
	return nil, nil
}

func (c *statementCache) allowed() func(string) bool {
	if len(c.config.allowed) == 0 {
		return nil
	}
	return c.config.allowed.match
}

// isCacheable says whether a text is one statement of a kind whose plan is worth keeping.
func isCacheable(info *sqltext.Info) bool {
	return info.Statements == 1 && info.Copy == sqltext.CopyNone && !info.TxControl &&
		info.Keywords.Intersects(sqltext.KeywordsOf(sqltext.Select, sqltext.Insert, sqltext.Update, sqltext.Delete,
			sqltext.Merge, sqltext.With, sqltext.Values))
}

// clockWords mean another time each time that they are read.
var clockWords = [...]string{"now", "today", "tomorrow", "yesterday"}

// readsClock says whether a text could have a literal such as 'now' or 'tomorrow 8:00',
// which means the time when it is prepared.
func readsClock(text string) bool {
	lower := strings.ToLower(text)
	return slices.ContainsFunc(clockWords[:], func(word string) bool {
		for from := 0; ; {
			at := strings.Index(lower[from:], word)
			if at < 0 {
				return false
			}
			before := lower[:from+at]
			from += at + len(word)
			after := strings.TrimLeft(lower[from:], " \t\r\n\f\v")
			call := word == "now" && strings.HasPrefix(after, "(")
			if !call && !endsInWord(before) && !strings.HasPrefix(lower[from:], "_") && !beginsWithLetter(lower[from:]) {
				return true
			}
		}
	})
}

func endsInWord(text string) bool {
	return text != "" && (text[len(text)-1] == '_' || beginsWithLetter(text[len(text)-1:]))
}

func beginsWithLetter(text string) bool {
	return text != "" && (text[0] >= 'a' && text[0] <= 'z' || text[0] >= 0x80)
}

// dropsAll says whether the text drops all that the session has prepared.
func dropsAll(text string) bool {
	words := strings.Fields(strings.ToLower(strings.TrimRight(text, "; \t\r\n\f\v")))
	return slices.Equal(words, []string{"discard", "all"}) || slices.Equal(words, []string{"deallocate", "all"})
}

// hasSeen says whether the text was used before, as far as is remembered. A text that is
// used once only, like one with literals in it, is not worth preparing.
func (c *statementCache) hasSeen(text string) bool {
	hash := maphash.String(c.seed, text) | 1
	place := &c.seen[(hash>>1)%seenTexts]
	if *place == hash {
		return true
	}
	*place = hash
	return false
}

// prepare prepares a statement that is to stay. That costs what lib/pq does each time.
func (c *statementCache) prepare(ctx context.Context, t *tap, text string) (*cachedStatement, error) {
	for len(c.entries) >= c.config.statementCache {
		c.drop(c.newest.newer)
	}
	for len(c.stale) > 0 && len(c.stale)+len(c.entries) >= c.config.statementCache {
		last := len(c.stale) - 1
		stmt := c.stale[last].stmt
		c.stale = c.stale[:last]
		if err := stmt.Close(); err != nil {
			return nil, err
		}
	}
	stmt, err := t.preparer.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	cacheable, ok := stmt.(cacheableStmt)
	name := field(reflect.Indirect(reflect.ValueOf(stmt)), "name")
	if !ok || name.Kind() != reflect.String {
		c.state = cacheOff
		return nil, stmt.Close()
	}
	now := c.config.now()
	found := &cachedStatement{text: text, stmt: cacheable, name: name.String(), prepared: now, uses: 1, plan: c.plans.find(text, now)}
	found.newer, found.older = found, found
	c.entries[text] = found
	c.insert(found)
	return found, nil
}

// lifetime is how long a statement stays prepared.
func (s *cachedStatement) lifetime() time.Duration {
	if s.plan == planSmall && s.uses >= customPlans {
		return smallFor // before that the server looks at the table each time
	}
	return cachedFor
}

// use makes a statement the one that was used most recently.
func (c *statementCache) use(s *cachedStatement) {
	s.uses++
	if s != c.newest {
		s.newer.older, s.older.newer = s.older, s.newer
		c.insert(s)
	}
}

// insert puts a statement at the head of the ring.
func (c *statementCache) insert(s *cachedStatement) {
	if c.newest == nil {
		s.newer, s.older = s, s
	} else {
		s.older, s.newer = c.newest, c.newest.newer
		s.older.newer, s.newer.older = s, s
	}
	c.newest = s
}

// drop takes a statement out. It is closed later.
func (c *statementCache) drop(s *cachedStatement) {
	delete(c.entries, s.text)
	switch {
	case s.older == s:
		c.newest = nil
	case c.newest == s:
		c.newest = s.older
	}
	s.newer.older, s.older.newer = s.older, s.newer
	if s.stmt != nil {
		c.stale = append(c.stale, staleStatement{s.stmt, s.name})
		if c.unjudged == s {
			c.unjudged = nil
		}
	}
}

// dropAll takes everything out, after something that may have changed what it means.
func (c *statementCache) dropAll() {
	for c.newest != nil {
		c.drop(c.newest)
	}
	clear(c.seen[:])
}

// invalidate makes ready for a statement that may change what others mean.
func (c *statementCache) invalidate(info *sqltext.Info, t *tap) {
	c.dropAll()
	// From now on names may mean something else than to other sessions, and the server may
	// plan in another way.
	c.plans, c.replans = new(plans), false
	if t.txStatus() != 'I' || info.BeginsTx {
		c.suspended = true // it may be undone again
	}
	if info.Keywords.Intersects(sqltext.KeywordsOf(sqltext.Reset, sqltext.Discard, sqltext.Deallocate)) || info.Suspicious {
		c.forget()
	}
}

// isInvalidatedBy returns what a text is, if it may change what others mean; nil if not.
func (c *statementCache) isInvalidatedBy(text string) *sqltext.Info {
	if c == nil {
		return nil
	}
	if info := analyze(text); info.InvalidatesPrepared(text, c.allowed()) {
		return info
	}
	return nil
}

// forget begins anew: the session may have lost what was prepared, and its settings.
func (c *statementCache) forget() {
	c.dropAll() // closing what is not there is no error
	if c.state == cacheOn {
		c.state = cacheUnproved
	}
}

// isReading says whether rows are still being read.
func (c *statementCache) isReading() bool { return atomic.LoadUint32(c.inProgress) != 0 }

// reads notes that rows are being read, until lib/pq has read the last.
func (c *statementCache) reads() { atomic.StoreUint32(c.inProgress, 1) }

// watchesTx says whether lib/pq waits for the context of a transaction that has just
// begun.
func (c *statementCache) watchesTx() bool { return c.txnFinish != nil && *c.txnFinish != nil }

// asks notes that the driver itself asks for something, until answered is called.
func (c *statementCache) asks() (answered func()) {
	if c == nil {
		return func() {}
	}
	c.asking = true
	return func() { c.asking = false }
}

// suspend is for what may happen unseen, perhaps in a transaction.
func (c *statementCache) suspend() {
	if c != nil {
		c.forget()
		c.plans, c.replans = new(plans), false
		c.suspended = true
	}
}

// resume takes up again what a transaction has suspended, if it is over.
func (c *statementCache) resume(t *tap) {
	if c.suspended && t.txStatus() == 'I' {
		c.suspended = false
	}
}

// exec executes a cached statement.
func (c *statementCache) exec(ctx context.Context, t *tap, s *cachedStatement, args []driver.NamedValue) (driver.Result, error) {
	result, err := s.stmt.ExecContext(t.unwatched(ctx), args)
	c.ended(ctx, t)
	if err == nil {
		return result, nil
	}
	if c.failed(t, s, err) {
		return t.execer.ExecContext(ctx, s.text, args)
	}
	return nil, err
}

// query is exec for statements that return rows.
func (c *statementCache) query(ctx context.Context, t *tap, s *cachedStatement, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := s.stmt.QueryContext(t.unwatched(ctx), args)
	if err == nil {
		c.reads()
		if real, ok := rows.(pqRows); ok {
			return &cachedRows{pqRows: real, tap: t, ctx: ctx}, nil
		}
		c.state = cacheOff
		return rows, nil
	}
	c.ended(ctx, t)
	if c.failed(t, s, err) {
		return t.queryOnce(ctx, s.text, args)
	}
	return nil, err
}

// ended looks, after a call, whether its context has ended. Then lib/pq has perhaps sent a
// cancel request, which may still be on its way and would hit whatever comes next. For a
// statement that is not prepared it closes the connection, so this does.
func (c *statementCache) ended(ctx context.Context, t *tap) {
	if ctx.Done() != nil && ctx.Err() != nil {
		t.kill()
	}
}

// pqRows is what lib/pq's rows can do.
type pqRows interface {
	driver.RowsNextResultSet
	driver.RowsColumnTypeDatabaseTypeName
	driver.RowsColumnTypeLength
	driver.RowsColumnTypePrecisionScale
	driver.RowsColumnTypeScanType
}

var _ pqRows = (*cachedRows)(nil)

// cachedRows are lib/pq's rows of a cached statement.
type cachedRows struct {
	pqRows
	tap *tap
	ctx context.Context // the query's
}

// Columns returns names that the application may change: lib/pq's are the statement's own.
func (r *cachedRows) Columns() []string { return slices.Clone(r.pqRows.Columns()) }

func (r *cachedRows) Close() error {
	err := r.pqRows.Close()
	r.tap.cache.ended(r.ctx, r.tap)
	return err
}

// failed judges the error of a cached statement. It says that the statement is to be
// executed again, not prepared: nothing of it has happened, and the reason may be that the
// session had prepared it.
func (c *statementCache) failed(t *tap, s *cachedStatement, err error) (again bool) {
	tellText(err, s.text)
	switch state := sqlState(err); {
	case state == "26000":
		c.forget() // there are no statements of ours where this was executed
		c.stale, c.state = nil, cacheOff
	case state == "0A000", state == "XX000", len(state) == 5 && state[:2] == "42":
		c.drop(s)
		s.stmt, s.prepared, s.plan = nil, c.config.now(), planUnknown
		c.entries[s.text] = s // so that it is not kept again
		c.insert(s)
	case slices.Contains(wrongInput[:], state):
		c.drop(s)
		if t.txStatus() != 'I' {
			return false // mostly it is what it looks like
		}
	default:
		return false
	}
	if t.dead || t.txStatus() != 'I' {
		c.failure = err
		return false
	}
	return true
}

// wrongInput is what an argument is refused with that does not fit the type it had when
// the statement was prepared. Another session may have changed a column's since.
var wrongInput = [...]string{"22P02", "22003", "22007", "22008"}

// isStale says whether an error is one that a cached statement has had and that it would
// perhaps not have had otherwise.
func (c *statementCache) isStale(err error) bool {
	return c != nil && c.failure != nil && errors.Is(err, c.failure)
}

// tellText gives an error of lib/pq's the text, which lib/pq shows the place of an error in
// but does not know of statements that are prepared.
func tellText(err error, text string) {
	reported, ok := err.(*pq.Error) //nolint:errorlint // lib/pq's own
	if !ok {
		return
	}
	query := field(reflect.ValueOf(reported).Elem(), "query")
	if query.Kind() == reflect.String && query.String() == "" {
		*(*string)(unsafe.Pointer(query.UnsafeAddr())) = text //nolint:gosec // the only way; the kind was checked
	}
}

// askCache proves that the session is ours alone: the process that answers is the one that
// the server named when the session began. The answer is how it plans statements that are
// prepared.
const askCache = `SELECT coalesce(pg_catalog.current_setting('plan_cache_mode', true), 'auto') WHERE pg_catalog.pg_backend_pid() = `

// wantsProof says whether it is worth asking what the session is.
func (c *statementCache) wantsProof() bool {
	return c != nil && c.state == cacheUnproved && c.wanted
}

// wantsAttention says whether there is something to ask or to do outside a transaction.
func (c *statementCache) wantsAttention() bool { return c.wantsProof() || c.wantsTidying() }

// proveSession finds out whether the cache may be used, while no transaction is open. An
// error means that the session is not usable.
func (c *conn) proveSession(ctx context.Context) error {
	cache := c.tap.cache
	if cache != nil {
		cache.resume(c.tap)
	}
	if !cache.wantsAttention() || c.block() != outsideBlock {
		return nil
	}
	if !cache.wantsProof() {
		return c.tidyStatements(ctx)
	}
	if cache.isReading() {
		return nil
	}
	cache.state = cacheOff
	pid := c.tap.backendPID()
	if pid == "" {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	var answer string
	err := c.tap.wire.during(asking, 0, func() (err error) {
		answer, err = c.ask(asking, askCache+pid)
		return err
	})
	switch {
	case err == nil:
		if answer != "" || cache.config.statementCacheInsists {
			cache.state, cache.replans = cacheOn, answer == "force_custom_plan"
		}
		return nil
	case sqlState(err) != "" && Classify(err, PhaseStatement) != ClassConnectionLost && cache.config.statementCacheInsists:
		cache.state = cacheOn
		return nil
	}
	return c.unanswered(ctx, asking, err)
}
