package pgretry

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"
)

const (
	// customPlans is how often the server plans a prepared statement for the arguments at
	// hand before it thinks of a plan for all arguments, which may be much worse.
	customPlans = 5
	// verdictFor is how long it is believed that a plan for all arguments does no harm.
	verdictFor = 10 * time.Minute
	// maxVerdicts bounds how many are remembered.
	maxVerdicts = 4096
	// staleBatch is how many statements that are of no use any more are dropped together.
	staleBatch = 32
)

// plans is for which texts the plan that the server makes for all arguments is as good as
// one for the arguments at hand: those that insert values, and those that find one row at
// most by a unique index. All others are prepared anew before the server would think of
// such a plan. Setting plan_cache_mode instead would have every foreign key and every
// PL/pgSQL function planned anew each time.
type plans struct {
	verdicts sync.Map // of texts
	count    atomic.Int64
}

type planVerdict struct {
	fixed bool // one plan will do
	at    time.Time
}

// find returns what is known of a text.
func (p *plans) find(text string, now time.Time) (fixed, known bool) {
	found, ok := p.verdicts.Load(text)
	if !ok {
		return false, false
	}
	verdict := found.(planVerdict)
	if now.Sub(verdict.at) >= verdictFor {
		if p.verdicts.CompareAndDelete(text, found) {
			p.count.Add(-1)
		}
		return false, false
	}
	return verdict.fixed, true
}

func (p *plans) note(text string, fixed bool, now time.Time) {
	if _, known := p.verdicts.Swap(text, planVerdict{fixed, now}); known {
		return
	}
	if p.count.Add(1) > maxVerdicts {
		p.verdicts.Clear()
		p.count.Store(0)
	}
}

// wantsTidying says whether there is something to do for tidyStatements.
func (c *statementCache) wantsTidying() bool {
	return c != nil && c.state == cacheOn && (c.unjudged != nil || len(c.stale) >= staleBatch)
}

// tidyStatements does what is better done outside a transaction: it drops statements that
// are of no use any more, and looks at the plan of one that is. An error means that the
// session is not usable.
func (c *conn) tidyStatements(ctx context.Context) error {
	cache := c.tap.cache
	if !cache.wantsTidying() || cache.isReading() {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	err := c.tap.wire.during(asking, 0, func() error {
		if len(cache.stale) >= staleBatch {
			if err := cache.dropStale(func(text string) error { return c.command(asking, text) }); err != nil && sqlState(err) == "" {
				return err
			}
		}
		if s := cache.unjudged; s != nil {
			cache.unjudged = nil
			fixed, err := c.hasFixedPlan(asking, s)
			switch state := sqlState(err); {
			case err == nil:
				s.fixed = fixed
			case state == "" || Classify(err, PhaseStatement) == ClassConnectionLost:
				return err
			case state == lockNotAvailable, state == queryCanceled, strings.HasPrefix(state, "40"), strings.HasPrefix(state, "25"):
				return nil // another time
			}
			cache.plans.note(s.text, s.fixed, cache.config.now()) // what cannot be explained is not believed
		}
		return nil
	})
	if err != nil {
		return c.unanswered(ctx, asking, err)
	}
	return nil
}

// dropStale drops all statements that are of no use any more at once.
func (c *statementCache) dropStale(command func(string) error) error {
	var text strings.Builder
	for _, s := range c.stale {
		fmt.Fprintf(&text, "DEALLOCATE %s;", pq.QuoteIdentifier(s.name))
	}
	stale := c.stale
	c.stale = nil
	err := command(text.String())
	if sqlState(err) == "" {
		return err
	}
	// One of them is gone, or a pooler gives them other names. Closing what is not there is
	// no error.
	for _, s := range stale {
		if err := s.stmt.Close(); err != nil {
			return err
		}
	}
	return nil
}

// planNode is a node of a plan as EXPLAIN shows it.
type planNode struct {
	Type   string     `json:"Node Type"`
	Schema string     `json:"Schema"`
	Index  string     `json:"Index Name"`
	Cond   string     `json:"Index Cond"`
	Plans  []planNode `json:"Plans"`
}

// hasFixedPlan says whether the plan that the server makes of a statement for all arguments
// is as good as any.
func (c *conn) hasFixedPlan(ctx context.Context, s *cachedStatement) (bool, error) {
	arguments := strings.TrimPrefix(strings.Repeat(", NULL", s.stmt.NumInput()), ", ")
	// Several statements in one text are one transaction, in which SET LOCAL holds.
	// Nobody is to wait for the locks of tables that the next transaction does not touch.
	answer, err := c.ask(ctx, "SET LOCAL lock_timeout = 1; SET LOCAL plan_cache_mode = force_generic_plan; EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE "+
		pq.QuoteIdentifier(s.name)+"("+arguments+")")
	if err != nil {
		return false, err
	}
	var explained []struct{ Plan planNode }
	if json.Unmarshal([]byte(answer), &explained) != nil || len(explained) != 1 {
		return false, nil //nolint:nilerr // another server's plans are not understood
	}
	var found []uniqueLookup
	if !explained[0].Plan.isFixed(&found) {
		return false, nil
	}
	for _, lookup := range found {
		answer, err := c.ask(ctx, `SELECT 'yes' FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
			JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL
			AND i.indnkeyatts = `+fmt.Sprint(lookup.columns)+` AND n.nspname = `+pq.QuoteLiteral(lookup.schema)+` AND c.relname = `+pq.QuoteLiteral(lookup.index))
		if err != nil || answer == "" {
			return false, err
		}
	}
	return true, nil
}

// uniqueLookup is an index by which a plan finds one row at most, if it is unique and has
// so many columns.
type uniqueLookup struct {
	schema, index string
	columns       int
}

// isFixed says whether no arguments would have another plan, provided that the lookups that
// it finds are what they seem.
func (n *planNode) isFixed(found *[]uniqueLookup) bool {
	switch n.Type {
	case "Result", "Values Scan":
		return len(n.Plans) == 0
	case "Index Scan", "Index Only Scan":
		columns := comparedColumns(n.Cond)
		*found = append(*found, uniqueLookup{n.Schema, n.Index, columns})
		return columns > 0 && n.Schema != "" && n.Index != "" && len(n.Plans) == 0
	case "ModifyTable", "LockRows", "Limit":
		return len(n.Plans) == 1 && n.Plans[0].isFixed(found)
	}
	return false
}

// comparedColumn is a condition that compares a column for equality with something that
// does not depend on the row: (account.id = $1), (account.id = ($1)::bigint).
var comparedColumn = regexp.MustCompile(`^\(((?:[\w.]|"[^"]*")+) = (?:\$\d+|\(\$\d+\)::[\w ]+|-?\d+|'[^']*'::[\w ]+)\)$`)

// comparedColumns returns how many columns the condition of an index compares, 0 if it
// does anything else.
func comparedColumns(condition string) int {
	parts := []string{condition}
	if inner, ok := strings.CutPrefix(condition, "(("); ok {
		parts = strings.Split(strings.TrimSuffix(inner, "))"), ") AND (")
		for i := range parts {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	columns := make(map[string]bool)
	for _, part := range parts {
		match := comparedColumn.FindStringSubmatch(part)
		if match == nil {
			return 0
		}
		columns[match[1]] = true
	}
	return len(columns)
}
