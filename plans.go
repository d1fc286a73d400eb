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
	// smallFor is how long a statement stays prepared that looks for one row in a table of a
	// few pages. The server reads all of them then, and would go on so, should the table
	// grow, until it has seen how large it has become.
	smallFor = time.Second
	// smallBytes is how large such a table may be. The server goes by the index from ten
	// pages or so on.
	smallBytes = 64 * 8192
	// staleBatch is how many statements that are of no use any more are dropped together.
	staleBatch = 32
)

// plans is for which texts the plan that the server makes for all arguments is as good as
// one for the arguments at hand: those that insert values, and those that find one row at
// most by the columns of a unique index. All others are prepared anew before the server would think of
// such a plan. Setting plan_cache_mode instead would have every foreign key and every
// PL/pgSQL function planned anew each time.
type plans struct {
	verdicts sync.Map // of texts
	count    atomic.Int64
}

// verdict is what is to be thought of the plan for all arguments.
type verdictOnPlan uint8

const (
	planUnknown verdictOnPlan = iota // nobody has looked
	planVaries                       // another one may be better for certain arguments
	planSmall                        // one will do as long as the table is small
	planFixed                        // one will do
)

// fixed says whether one plan will do.
func (v verdictOnPlan) fixed() bool { return v == planSmall || v == planFixed }

type datedVerdict struct {
	verdict verdictOnPlan
	at      time.Time
}

// find returns what is thought of a text.
func (p *plans) find(text string, now time.Time) verdictOnPlan {
	found, ok := p.verdicts.Load(text)
	if !ok {
		return planUnknown
	}
	known := found.(datedVerdict)
	if now.Sub(known.at) >= verdictFor {
		if p.verdicts.CompareAndDelete(text, found) {
			p.count.Add(-1)
		}
		return planUnknown
	}
	return known.verdict
}

func (p *plans) note(text string, verdict verdictOnPlan, now time.Time) {
	if _, known := p.verdicts.Swap(text, datedVerdict{verdict, now}); known {
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
			verdict, err := c.judgePlan(asking, s)
			switch state := sqlState(err); {
			case err == nil:
			case state == "" || Classify(err, PhaseStatement) == ClassConnectionLost:
				return err
			case state == lockNotAvailable, state == queryCanceled, strings.HasPrefix(state, "40"), strings.HasPrefix(state, "25"):
				return nil // another time
			}
			s.plan = verdict // what cannot be explained is not believed
			cache.plans.note(s.text, verdict, cache.config.now())
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
	Type    string     `json:"Node Type"`
	Schema  string     `json:"Schema"`
	Table   string     `json:"Relation Name"`
	Index   string     `json:"Index Name"`
	Cond    string     `json:"Index Cond"`
	Filter  string     `json:"Filter"`
	OneTime string     `json:"One-Time Filter"`
	Plans   []planNode `json:"Plans"`
}

// judgePlan says what is to be thought of the plan that the server makes of a statement for
// all arguments. With an error it varies.
func (c *conn) judgePlan(ctx context.Context, s *cachedStatement) (verdictOnPlan, error) {
	arguments := strings.TrimPrefix(strings.Repeat(", NULL", s.stmt.NumInput()), ", ")
	// Several statements in one text are one transaction, in which SET LOCAL holds.
	// Nobody is to wait for the locks of tables that the next transaction does not touch.
	answer, err := c.ask(ctx, "SET LOCAL lock_timeout = 1; SET LOCAL plan_cache_mode = force_generic_plan; EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE "+
		pq.QuoteIdentifier(s.name)+"("+arguments+")")
	if err != nil {
		return planVaries, err
	}
	var explained []struct{ Plan planNode }
	if json.Unmarshal([]byte(answer), &explained) != nil || len(explained) != 1 {
		return planVaries, nil //nolint:nilerr // another server's plans are not understood
	}
	var found []uniqueLookup
	if !explained[0].Plan.isFixed(&found) {
		return planVaries, nil
	}
	verdict := planFixed
	for _, lookup := range found {
		answer, err := c.ask(ctx, lookup.question())
		if err != nil {
			return planVaries, err
		}
		switch {
		case answer == "small":
			verdict = planSmall
		case answer != "large" || lookup.index == "":
			return planVaries, nil
		}
	}
	return verdict, nil
}

// uniqueLookup is a search that finds one row at most, if there is a unique index on some
// of the columns that it compares: the one that it goes by, or any of its table's.
type uniqueLookup struct {
	schema, table string
	index         string // "" if it reads the whole table
	columns       []comparedColumn
}

// comparedColumn is a column that is equal to something.
type comparedColumn struct {
	name   string
	asText bool // it is converted to text before
}

// question returns a query that tells whether it finds one row at most: then the answer is
// whether the table is "small" or "large". A condition that no index could help with, like
// one that converts a number to text, says nothing about how large the table is.
func (u *uniqueLookup) question() string {
	var names, texts []string
	for _, column := range u.columns {
		if name := pq.QuoteLiteral(column.name); column.asText {
			texts = append(texts, name)
		} else {
			names = append(names, name)
		}
	}
	list := func(names []string) string { return "ARRAY[" + strings.Join(names, ", ") + "]::pg_catalog.text[]" }
	// Servers before 14 quote the names of indexes in EXPLAIN.
	which := pq.QuoteLiteral(u.index) + " IN (c.relname, pg_catalog.quote_ident(c.relname))"
	if u.index == "" {
		which = "i.indrelid = (SELECT t.oid FROM pg_catalog.pg_class t WHERE t.relnamespace = n.oid AND t.relname = " + pq.QuoteLiteral(u.table) + ")"
	}
	return `SELECT CASE WHEN pg_catalog.pg_relation_size(i.indrelid) > ` + fmt.Sprint(smallBytes) + ` THEN 'large' ELSE 'small' END
		FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND n.nspname = ` + pq.QuoteLiteral(u.schema) + ` AND ` + which + `
		AND i.indnkeyatts = (SELECT count(DISTINCT a.attname) FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid
			AND a.attnum = ANY ((i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1])
			AND (a.attname = ANY (` + list(names) + `) OR a.attname = ANY (` + list(texts) + `)
				AND a.atttypid IN ('pg_catalog.text'::pg_catalog.regtype, 'pg_catalog.varchar'::pg_catalog.regtype))) LIMIT 1`
}

// isFixed says whether no arguments would have another plan, provided that the lookups that
// it finds are what they seem.
func (n *planNode) isFixed(found *[]uniqueLookup) bool {
	switch n.Type {
	case "Result", "Values Scan":
		// A Result that has a filter is what remains of tables, or partitions, that had nothing.
		return len(n.Plans) == 0 && n.OneTime == ""
	case "Index Scan", "Index Only Scan":
		columns := comparedColumns(n.Cond)
		*found = append(*found, uniqueLookup{n.Schema, n.Table, n.Index, columns})
		return len(columns) > 0 && n.Schema != "" && n.Index != "" && len(n.Plans) == 0
	case "Seq Scan":
		// In spite of an index, which a small table is not worth, if it could be used.
		columns := comparedColumns(n.Filter)
		*found = append(*found, uniqueLookup{n.Schema, n.Table, "", columns})
		return len(columns) > 0 && n.Schema != "" && n.Table != "" && len(n.Plans) == 0
	case "ModifyTable", "LockRows", "Limit":
		return len(n.Plans) == 1 && n.Plans[0].isFixed(found)
	}
	return false
}

// comparison is a condition that compares a column for equality with something that does
// not depend on the row: (account.id = $1), (account.id = ($1)::bigint),
// ((account.code)::text = $1).
var comparison = regexp.MustCompile(`^\((?:` + columnPattern + `|\(` + columnPattern + `\)(::text)) = (?:\$\d+|\(\$\d+\)::[\w ]+|-?\d+|'[^']*'::[\w ]+)\)$`)

const columnPattern = `(?:(?:\w+|"(?:[^"]|"")*")\.)?(\w+|"(?:[^"]|"")*")`

// comparedColumns returns the columns that are equal to something, all of them, where a
// condition is true.
func comparedColumns(condition string) (columns []comparedColumn) {
	for _, part := range conjuncts(condition) {
		match := comparison.FindStringSubmatch(part)
		if match == nil {
			continue
		}
		name := match[1] + match[2]
		if strings.HasPrefix(name, `"`) {
			name = strings.ReplaceAll(name[1:len(name)-1], `""`, `"`)
		}
		columns = append(columns, comparedColumn{name, match[3] != ""})
	}
	return columns
}

// conjuncts takes a condition apart that is true if all of its parts are:
// ((a = 1) AND (b = 2)). Another one is its only part.
func conjuncts(condition string) (parts []string) {
	whole := []string{condition}
	depth, from, last := 0, 0, 0
	for at := 0; at < len(condition); at++ {
		switch condition[at] {
		case '\'', '"':
			end := strings.IndexByte(condition[at+1:], condition[at])
			if end < 0 {
				return whole
			}
			at += end + 1
		case '(':
			if depth++; depth == 2 {
				if between := condition[last:at]; between != "(" && between != " AND " {
					return whole
				}
				from = at
			}
		case ')':
			if depth--; depth == 1 {
				last = at + 1
				parts = append(parts, condition[from:last])
			}
		}
	}
	if len(parts) == 0 || depth != 0 || condition[last:] != ")" {
		return whole
	}
	return parts
}
