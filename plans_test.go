package pgretry

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
)

// usedPlans is how often the server used a plan for all arguments for what is kept.
const usedPlans = `SELECT coalesce(sum(generic_plans), 0) FROM pg_prepared_statements`

func TestPlansAreMadeForTheArgumentsAtHand(t *testing.T) {
	for _, text := range []string{
		`SELECT id FROM job WHERE status = $1 ORDER BY id LIMIT 10`,
		`SELECT id FROM job WHERE id > $1 ORDER BY id LIMIT 10`,
		`SELECT count(*) FROM job WHERE status = $1`,
		`SELECT id FROM job WHERE id = ANY ($1::bigint[])`,
		`UPDATE job SET at = at WHERE status = $1 AND id < 10`,
		`DELETE FROM job WHERE part = $1`,
		`SELECT j.id FROM job j JOIN job k ON k.id = j.part WHERE j.id = $1`,
		`INSERT INTO job (id, status, part) SELECT id + 2000000, status, part FROM job WHERE status = $1 LIMIT 1`,
		`SELECT id FROM job WHERE part = $1 AND again = 1`,
		`SELECT id FROM job WHERE seldom = $1`,
		`UPDATE job SET at = at WHERE id::text = $1 AND at > now()`,
		`UPDATE job SET at = at WHERE code COLLATE "POSIX" = $1 AND at > now()`,
		`SELECT id FROM parted WHERE part = 1 AND id = $1`,
	} {
		t.Run(text, func(t *testing.T) {
			_, k := enterKeeping(t, 8, jobs)
			for n := range 40 {
				args := []any{n}
				if strings.Contains(text, "ANY") {
					args = []any{pq.Array([]int{n})}
				}
				k.notes(text, args...)
			}
			if !slices.Contains(k.keeps(), text) {
				t.Error("it is not kept")
			}
			k.is("1", usedPlans) // by our looking at it
			k.is("auto", `SHOW plan_cache_mode`)
		})
	}
}

const jobs = `CREATE TABLE job (id bigint PRIMARY KEY, status int, part int, again int, at timestamptz DEFAULT now(), UNIQUE (part, again, id));
	INSERT INTO job SELECT n, n % 50, n % 7, n, now() FROM generate_series(1, 20000) n; CREATE INDEX ON job (status); CREATE INDEX ON job (part);
	ALTER TABLE job ADD seldom int, ADD code varchar(9) UNIQUE; UPDATE job SET seldom = id, code = id; CREATE INDEX ON job (seldom); ANALYZE job;
	CREATE TABLE parted (part int, id int, PRIMARY KEY (part, id)) PARTITION BY LIST (part)`

// Of these no plan could be better than the one for all arguments.
func TestThePlanForAllArgumentsIsUsedWhereNoneCouldBeBetter(t *testing.T) {
	for _, text := range []string{
		`SELECT at FROM job WHERE id = $1`,
		`SELECT at FROM job WHERE id = $1 FOR UPDATE`,
		`UPDATE job SET at = now() WHERE id = $1`,
		`DELETE FROM job WHERE id = $1`,
		`INSERT INTO job (id, status) VALUES ($1 + 3000000, 1)`,
		`INSERT INTO job (id, status) VALUES ($1 + 4000000, 1), ($1 + 5000000, 2) ON CONFLICT (id) DO UPDATE SET status = 3 RETURNING id`,
		`SELECT at FROM job WHERE part = $1 AND again = 3 AND id = $1`,
	} {
		t.Run(text, func(t *testing.T) {
			_, k := enterKeeping(t, 8, jobs)
			for n := range 40 {
				k.notes(text, n)
			}
			if !slices.Contains(k.keeps(), text) {
				t.Error("it is not kept")
			}
			var used bool
			if err := k.conn.QueryRowContext(t.Context(), `SELECT (`+usedPlans+`) > 20`).Scan(&used); err != nil || !used {
				t.Errorf("it is not used, %v", err)
			}
		})
	}
}

func TestConditionsAreUnderstoodOrNotBelieved(t *testing.T) {
	for condition, want := range map[string]string{
		`(id = $1)`:                                                 "[id]",
		`(account.id = $1)`:                                         "[id]",
		`("my table".id = $1)`:                                      "[id]",
		`(a."my ""id""" = $1)`:                                      `[my "id"]`,
		`(account.id = ($1)::bigint)`:                               "[id]",
		`(account.id = 7)`:                                          "[id]",
		`((account.a = $1) AND (account.b = 'x'::text))`:            "[a b]",
		`((a = 1) AND (b = $1) AND (c = $2))`:                       "[a b c]",
		`((account.code)::text = $1)`:                               "[code::text]",
		`(((a.code)::text = 'x) AND (b = 1'::text) AND (a.n = $2))`: "[code::text n]",
		`((a.id = $1) AND (a.balance >= $2))`:                       "[id]",
		`((a.id = $1) AND ((a.b = 1) OR (a.c = 2)))`:                "[id]",
		`((a.c = 3) OR ((a.id = $1) AND (a.b = 2) AND (a.d = 4)))`:  "[]",
		`((a.id = $1) OR (a.b = 2))`:                                "[]",
		`(NOT (a.id = $1))`:                                         "[]",
		`(account.id = ANY ($1))`:                                   "[]",
		`(account.id > $1)`:                                         "[]",
		`(account.id = other.id)`:                                   "[]",
		`(lower(account.name) = $1)`:                                "[]",
		`(account.id = (SELECT 1))`:                                 "[]",
		`(account.id IS NULL)`:                                      "[]",
		`((account.id)::integer = $1)`:                              "[]",
		``:                                                          "[]",
		`(`:                                                         "[]",
		`(a = 'x`:                                                   "[]",
		`((account.a = $1) AND (ROW(account.b, account.c) > ROW($2, $3)))`:                     "[a]",
		`((a.name = 'x'' OR (a.id = 1) AND ('::text) AND (a.kind = ANY ('{1,2}'::integer[])))`: "[]",
	} {
		var names []string
		for _, column := range comparedColumns(condition) {
			if column.asText {
				column.name += "::text"
			}
			names = append(names, column.name)
		}
		if got := fmt.Sprint(names); got != want {
			t.Errorf("%s: %s, want %s", condition, got, want)
		}
	}
}

// A server that finds a row faster by reading a page or two than by its key reads them.
const small = `CREATE TABLE small (id int PRIMARY KEY, code varchar(9) UNIQUE, n int, part int, often int, seldom int, fixed char(9) UNIQUE, UNIQUE (n, part));
	CREATE INDEX ON small (often); CREATE UNIQUE INDEX ON small (seldom) WHERE seldom > 100;
	INSERT INTO small SELECT n, 'c' || n, n, n, n, n, n FROM generate_series(1, 9) n; ANALYZE small`

func TestInASmallTableThePlanForAllArgumentsIsUsedForOneRow(t *testing.T) {
	for text, used := range map[string]bool{
		`SELECT n FROM small WHERE id = $1`:                              true,
		`SELECT n FROM small WHERE id = $1 AND part > 3`:                 true,
		`UPDATE small SET part = part WHERE id = $1`:                     true,
		`UPDATE small SET part = part WHERE $1::int > 0 AND n + id < 99`: false,
		`SELECT n FROM small WHERE code = 'c' || $1::text`:               false,
		`SELECT id FROM small WHERE code = $1`:                           true,
		`SELECT code FROM small WHERE id::text = $1`:                     false,
		`SELECT code FROM small WHERE fixed = $1::text`:                  false,
		`SELECT id FROM small WHERE n = $1`:                              false,
		`SELECT id FROM small WHERE often = $1`:                          false,
		`SELECT id FROM small WHERE seldom = $1`:                         false,
		`SELECT id FROM small WHERE n = $1 AND part = 3`:                 true,
		`SELECT n FROM small WHERE id = $1 OR n = 3`:                     false,
		`SELECT n FROM small WHERE id > $1`:                              false,
	} {
		t.Run(text, func(t *testing.T) {
			_, k := enterKeeping(t, 8, small)
			for n := range 40 {
				k.notes(text, n)
			}
			if !slices.Contains(k.keeps(), text) {
				t.Error("it is not kept")
			}
			var plans int
			if err := k.conn.QueryRowContext(t.Context(), usedPlans).Scan(&plans); err != nil {
				t.Fatal(err)
			}
			if used != (plans > 20) {
				t.Errorf("it is used %d times", plans)
			}
		})
	}
}

// The table has grown, and nobody has told the server yet.
func TestAPlanForASmallTableIsNotUsedForLong(t *testing.T) {
	a, k, c := enterAging(t, small, `ALTER TABLE small SET (autovacuum_enabled = off)`)
	const text = `SELECT n FROM small WHERE id = $1`
	for n := range 40 {
		k.show(text, n)
	}
	scans := func() (n int) { // by this session, not all reported yet
		if err := k.tx.QueryRowContext(t.Context(), `SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'small'
			AND schemaname = current_schema()`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	readsAll := func(n int) bool {
		k.does("begin")
		before := scans()
		k.show(text, n)
		after := scans()
		k.does("commit")
		return after > before
	}
	if !readsAll(1) {
		t.Fatal("the server does not read the small table whole")
	}
	if _, err := a.plain.Exec(`INSERT INTO small SELECT n, 'c' || n, n, n, n, n, n FROM generate_series(10, 30000) n`); err != nil {
		t.Fatal(err)
	}
	if !readsAll(1) {
		t.Fatal("the server has noticed by itself")
	}
	c.since.Store(int64(smallFor))
	for n := range 40 {
		if readsAll(n) {
			t.Fatalf("the large table is read whole at the %d. execution", n+1)
		}
	}
}

// A statement that is not used often would be prepared anew each time.
func TestAStatementOnASmallTableStaysPreparedWhileTheServerLooksAtTheTableAnyway(t *testing.T) {
	_, k, c := enterAging(t, small)
	const text = `SELECT n FROM small WHERE id = $1`
	for n := range 40 {
		k.show(text, n)
	}
	c.since.Add(int64(smallFor))
	k.show(text, 1)
	before := k.prepared()
	for n := range customPlans - 1 {
		c.since.Add(int64(smallFor))
		k.show(text, n)
	}
	if after := k.prepared(); after != before {
		t.Errorf("there are %d prepared statements, there were %d", after, before)
	}
	c.since.Add(int64(smallFor))
	k.show(text, 1)
	if after := k.prepared(); after != before+1 {
		t.Errorf("there are %d prepared statements, want one more than %d: it is used for long with a plan for all arguments", after, before)
	}
}

func TestVerdictsOnPlansAreFewAndNotForEver(t *testing.T) {
	p, now := new(plans), time.Unix(1000, 0)
	p.note("a", planFixed, now)
	p.note("a", planSmall, now)
	if got := p.find("a", now.Add(verdictFor-1)); got != planSmall {
		t.Errorf("got %d, want the later verdict", got)
	}
	if got := p.find("b", now); got != planUnknown {
		t.Errorf("got %d for what nobody has looked at", got)
	}
	if got := p.find("a", now.Add(verdictFor)); got != planUnknown {
		t.Errorf("got %d for what was looked at long ago", got)
	}
	if n := p.count.Load(); n != 0 {
		t.Errorf("%d are counted and none is there", n)
	}
	for n := range 2*maxVerdicts + 1 {
		p.note(fmt.Sprint(n), planVaries, now)
	}
	there := 0
	p.verdicts.Range(func(any, any) bool { there++; return there <= maxVerdicts })
	if there > maxVerdicts {
		t.Errorf("more than %d are remembered", maxVerdicts)
	}
}

const (
	varied = `SELECT id FROM job WHERE id > $1 ORDER BY id LIMIT 1`
	sure   = `SELECT at FROM job WHERE id = $1`
)

// The server has explained a statement already when it executes one, but only when no
// other has locked the table.
func TestAPlanIsLookedAtAnotherTimeIfTheTableIsLocked(t *testing.T) {
	a, k := enterKeeping(t, 8, jobs)
	pid := k.show(`SELECT pg_backend_pid()`)
	for n := range customPlans + 2 {
		k.show(sure, n)
	}
	a.rivalDoes("BEGIN", `LOCK TABLE job IN ACCESS EXCLUSIVE MODE`)
	k.does("begin") // waits for nobody
	if got := k.show(`SELECT pg_backend_pid()`); got != pid {
		t.Errorf("got %s, was %s: it has cost the session", got, pid)
	}
	k.does("rollback")
	a.rivalDoes("ROLLBACK")
	for n := range 40 {
		k.show(sure, n)
	}
	if got := k.show(`SELECT (` + usedPlans + `) > 20`); !strings.Contains(got, "true") {
		t.Errorf("the plan for all arguments is not used: %s", got)
	}
}

// lib/pq takes the rest of the rows for BEGIN's answer, and pgx closes the connection. Nothing else must come of what the
// driver asks before BEGIN: were the error driver.ErrBadConn, database/sql would wait for
// the rows for ever.
func TestABeginWhileRowsAreBeingReadIsTheInnerDriversBusiness(t *testing.T) {
	for name, size := range map[string]int{"a look at a plan is due": 8, "no cache": 0} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, []Option{WithStatementCache(size)}, jobs)
			var shown [2]string
			for i, db := range []*sql.DB{a.plain, a.db} {
				k := keeperOf(t, db, a.plain)
				if size > 0 {
					k.does("begin", "commit") // what is asked once, before the first, is known
				}
				for n := range customPlans + 2 {
					k.show(sure, n)
				}
				rows, err := k.conn.QueryContext(t.Context(), `SELECT generate_series(1, 3)`)
				if err != nil || !rows.Next() {
					t.Fatal(err)
				}
				_, err = k.conn.BeginTx(t.Context(), nil)
				shown[i] = showError(err)
				_ = rows.Close() // the session is of no use any more
			}
			if shown[0] != shown[1] {
				t.Errorf("%s: %s\nwe: %s", tested.name, shown[0], shown[1])
			}
		})
	}
}

// prepared returns how many statements the session has.
func (k *keeper) prepared() (n int) {
	k.Helper()
	if err := k.conn.QueryRowContext(k.Context(), `SELECT count(*) FROM pg_prepared_statements`).Scan(&n); err != nil {
		k.Fatal(err)
	}
	return n
}

func TestStatementsOfNoUseDoNotPileUp(t *testing.T) {
	for name, spoil := range map[string]string{
		"":                        "",
		"one of them is gone":     `DO $$ DECLARE one text; BEGIN SELECT quote_ident(name) INTO one FROM pg_prepared_statements ORDER BY prepare_time LIMIT 1; EXECUTE 'DEALLOCATE ' || one; END $$`,
		"all that were there are": `DO $$ BEGIN DEALLOCATE ALL; END $$`,
	} {
		t.Run(name, func(t *testing.T) {
			_, k := enterKeeping(t, 256, jobs)
			most := 0
			for round := range 2 * staleBatch {
				for n := range customPlans {
					k.show(varied, n)
				}
				most = max(most, k.prepared())
				if spoil != "" && round == staleBatch/2 {
					if got := k.show(spoil); strings.Contains(got, "error") {
						t.Fatal(got)
					}
				}
				k.does("begin", "commit")
			}
			if most > staleBatch+2 {
				t.Errorf("there were %d", most)
			}
			if most < staleBatch/2 {
				t.Errorf("there were never more than %d: what is tested here did not happen", most)
			}
		})
	}
}
