package sqltext

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lib/pq"
)

// ownTables are what the texts below name.
const ownTables = `
	create table t (id serial primary key, a int, b text, c timestamptz);
	create table u (a int, b text);
	create table "T" (id int);
	create sequence s`

// withOwnRows run where ownTables were made.
var withOwnRows = []string{
	"insert into t values (1, 2, 'x') returning id",
	"INSERT INTO \"t\" (\"a\", \"b\") VALUES (1, 'x'), (DEFAULT, E'\\n') RETURNING \"id\", now();",
	"insert into t (a) values (nextval('s'::regclass)), (pg_catalog.currval('s')) returning *, lastval()",
	"insert into t default values",
	"insert into t (a) select 1 for update",
	"insert into t (a) select 1 where now() > '2020-01-01' limit 1",
	"insert into t (a, b) select 1, unnest('{x,y}'::text[]) returning id",
	"INSERT INTO t (a, b) SELECT unnest(array[1, 2]), unnest(array['x', 'y']) ON CONFLICT (id) DO UPDATE SET a = t.a + excluded.a RETURNING *",
	"insert into t (a) select extract(year from now()) where 1 is distinct from 2",
	"insert into t as x (a) overriding system value values (1) on conflict (id) do update set a = excluded.a where x.a is distinct from excluded.a",
	"insert into t (id) values (1) on conflict on constraint t_pkey do update set (a, b) = (1, lower('X')) returning a",
	"insert into t (c) values ('2020-01-01'::timestamp with time zone), (timestamp with time zone '2020-01-01 00:00+00')",
	"insert into t (a) values (extract(epoch from now())), (position('a' in 'b'))",
	"insert into t (b) values (trim(both from ' x ')), (substring('x' from 1 for 2)), (cast(1 as text))",
	`insert into t (b) values ('C:\temp'), ('select * from u'), ($$table u$$) /* from u */ returning b -- join u`,
	"update t set a = a + 1",
	"update only t as x set a = 1, b = default where x.id = 1 returning x.*, random()",
	"update t * set a = 1 where a is distinct from 2 and b is not distinct from 'x' or a in (1, 2)",
	"update t set (a, b) = (1, upper(b)) where c < current_timestamp returning case when a = 1 then 'x' end as \"from\"",
	"update t set c = c at time zone 'UTC' at time zone 'UTC' where a between 1 and 2",
	"delete from t",
	"delete from only t as x where x.a = any(array[1, 2]) returning id",
	"DELETE FROM \"T\" WHERE id = 1",
	"select * from t for update",
	"select a, b from only t x where x.id = 1 for update nowait",
	"SELECT \"t\".\"a\" FROM \"t\" WHERE \"t\".\"id\" = 1 ORDER BY \"t\".\"id\" LIMIT 1 FOR UPDATE",
	"select a from t as x order by a, b limit 1 offset 2 for no key update",
	"select 1 from t * for share limit 1",
	"select a is distinct from 1 from t where a is not distinct from 2 for update",
	"select extract(year from c), substring(b from 1 for 2) as \"from\" from t for update",
	"select a from t order by a fetch first 2 rows only for update",
	"select a from t for update for share nowait",
	"select t.* from t where b like 'x' and not (a = 1) for no key update offset 1",
	"select a as \"select\", t.b from t for update;",
	"select",
	"select 1",
	"SELECT pg_notify('c', 'x')",
	"select pg_catalog.pg_notify('c', 'x'), now() as \"from\" where 1 is distinct from 2",
	"select nextval('s'), extract(year from now())",
	"select unnest(array[1, 2]) order by 1 limit 1",
	"select 1 for update",
}

// withoutOwnRows show, or may show, what is not the transaction's, or are not
// understood.
var withoutOwnRows = []string{
	"select (select 1)",
	"select 1 where exists (select from t)",
	"select array(table u)",
	"select 1 union select a from u",
	"select 1 into temp v",
	"select to_regclass('u')",
	"select transfer(1)",
	"select public.pg_notify('c', 'x')",
	"select pg_notify('c', b) from t",
	"(select 1)",
	"values (1)",
	"table t",
	"select * from t",
	"select * from t for key share",
	"select * from t for update for key share",
	"select * from t for update of t",
	"select * from t for update skip locked",
	"select * from t for no key update skip locked limit 1",
	"select * from t for read only",
	"(select * from t for update)",
	"select * from t, u for update",
	"select * from t x, u for update",
	"select * from t as x cross join u for update",
	"select * from t join u on true for update",
	"select * from t left join u on true for update of t",
	"select * from t natural join u for update",
	"select * from t join u using (a) for update",
	"select * from t tablesample system (100) for update",
	"select * from (t cross join u) for update",
	"select * from generate_series(1, 2) for update",
	"select * from rows from (generate_series(1, 2)) for update",
	"select * from lateral generate_series(1, 2) as x for update",
	"select * from current_user for update",
	"select * from only (t) for update",
	"select * from (select 1) x for update",
	"select * from (values (1)) x for update",
	"select * from t x (y) for update",
	"select (select max(a) from u) from t for update",
	"select a from t where a in (select a from u) for update",
	"select a from t where exists (table u) for update",
	"select a from t where a in (values (1)) for update",
	"select array(select a from u) from t for update",
	"select a from t order by (select 1) for update",
	"select a from t order by a limit (select 1) for update",
	"with x as (select 1) select * from t for update",
	"select 1 from t where (select true from u for update)",
	"select a from t where a = (select a from u limit 1) union select 1",
	"select a from t order by a using < for update",
	"select a into temp v from t for update",
	"select to_regclass('u') from t for update",
	"select current_schemas(true) from t for update",
	"select pg_sequence_last_value('s') from t for update",
	"select 'x'::mood from t for update",
	"select nextval('s') from t",

	"insert into t (a) select a from u",
	"insert into t (a) select 1 from u",
	"insert into t (a) select unnest(array[1]) from t",
	"insert into t (a) select (select max(a) from u)",
	"insert into t (a) select 1 where exists (select from u)",
	"insert into t (a) select 1 where not exists (table u)",
	"insert into t (a) select 1 union select a from u",
	"insert into t (a) select 1 limit (select count(*) from u)",
	"insert into t (a) select 1 returning (select max(a) from u)",
	"insert into t (id) select 1 on conflict do nothing",
	"insert into t (a) select transfer(1)",
	"insert into t (a) (select 1)",
	"insert into t (a) (values (1))",
	"insert into t (a) table u",
	"insert into t (a) with x as (select 1) values (2)",
	"insert into t (a) with x as (update u set a = 1 returning a) values (2)",
	"insert into t (a) values (1) union select a from u",
	"insert into t (a) values ((select max(a) from u))",
	"insert into t (a) values (1) returning (select max(a) from u)",
	"insert into t (a) values (1) on conflict do nothing",
	"insert into t (id) values (1) on conflict (id) do nothing returning id",
	"insert into t (id) values (1) on conflict (id) do update set a = (select max(a) from u)",
	"insert into t (id) values (1) on conflict (id) do update set a = 1 where exists (table u)",
	"insert into t (b) values (1::mood)",
	"insert into t (a) values (transfer(1))",
	"insert into t (a) values (setval('s', 1))",
	"insert into t (a) values (public.nextval('s'))",
	"insert into t (a) values (1); select 1",
	"with x as (select 1) insert into t (a) values (1)",
	"with x as (insert into t (a) values (1) returning a) select * from x",

	"update t set a = u.a from u",
	"update t set a = (select max(a) from u)",
	"update t set (a, b) = (select a, b from u limit 1)",
	"update t set a = 1 where a in (select a from u)",
	"update t set a = 1 where a in (table u)",
	"update t set a = 1 where a in (values (1))",
	"update t set a = 1 returning (select max(a) from u)",
	"update t set a = 1 where transfer(a)",
	"update t set a = t.a is distinct from u.a from u",
	"with x as (select 1) update t set a = 1",
	"explain analyze update t set a = 1",
	"prepare p as update t set a = 1",

	"delete from t using u where t.a = u.a",
	"delete from t where exists (select 1 from u)",
	"delete from t where transfer(a)",
	"with x as (select 1) delete from t",
	"merge into t using u on t.a = u.a when matched then delete",
	"merge into t using (values (1)) x (y) on true when matched then delete",
	"copy t from stdin",
	"truncate t",
	"declare c cursor for select * from t for update",
	"create table v as select * from t for update",
	"execute p",
	"fetch c",
	"call p(1)",

	"",
	"insert",
	"update",
	"delete",
	"insert into t",
	"insert t values (1)",
	"delete t",
	"select * from",
	"select * from t for",
	"select * from t for no",
	"select * from t for no key",
	"select * from t for update order by a",
	"select * from t where for update union table u",
	"select * from t. for update x",
	"select * from t x y for update",
	"select * from t as for update",
	"select * from t for update 'x",
	"update t set b = 'x\\'y'",
	`update t set a = U&"f"(1)`,
	"upsert into t values (1)",
}

func TestRowsOfTheTransactionsOwnAreProven(t *testing.T) {
	for _, text := range withOwnRows {
		if info := Analyze(text); !info.OwnRows {
			t.Errorf("%q: not its own rows: %+v", text, info)
		}
		if info := Analyze(text + "\n; select 1"); info.OwnRows {
			t.Errorf("%q; select 1: its own rows", text)
		}
	}
	for _, text := range withoutOwnRows {
		if info := Analyze(text); info.OwnRows {
			t.Errorf("%q: its own rows: %+v", text, info)
		}
	}
}

func TestReturningIsFoundAtTheTop(t *testing.T) {
	for text, want := range map[string]bool{
		"insert into t values (1) returning a":                                            true,
		"INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING Returning *":                     true,
		"update t set a = (1) returning (a)":                                              true,
		"delete from t where (a = 1) returning a as b":                                    true,
		"merge into t using u on true when matched then delete returning t.a":             true,
		"with x as (select 1) update t set a = 1 returning a":                             true,
		"with x(key) as (select 1) insert into t table x returning a":                     true,
		"select 1; delete from t returning a":                                             true,
		"insert into t values (1) returning json_object('a': 1 returning text)":           true,
		"insert into t values (1)":                                                        false,
		"insert into t values (json_object('a': 1 returning text))":                       false,
		"insert into t (\"returning\") values ('returning')":                              false,
		"update t set a = x.returning":                                                    false,
		"with x as (insert into t values (1) returning a) select * from x":                false,
		"with x as (delete from t returning a) select a as returning from x":              false,
		"with x as (delete from t returning a) insert into u table x":                     false,
		"with x(a) as (select 1) insert into t (a) select a as returning from x":          false,
		"insert into t values (1); with x as (select 1) table x returning":                false,
		"select a as returning from t":                                                    false,
		"explain insert into t values (1) returning a":                                    false,
		"explain analyze insert into t values (1) returning a":                            false,
		"prepare p as insert into t values (1) returning a":                               false,
		"copy (delete from t returning a) to stdout":                                      false,
		"create rule r as on insert to t do instead insert into u values (1) returning a": false,
		"select 1 /* returning */":                                                        false,
	} {
		if got := Analyze(text).Returning; got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// accepted runs a text and takes it back. It reports what the text returned
// columns for, and the error if the server did not want it.
func accepted(t *testing.T, db *sql.DB, text string) (columns int, err error) {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}()
	rows, err := tx.QueryContext(t.Context(), text)
	if err != nil {
		return 0, err
	}
	names, err := rows.Columns()
	for rows.Next() {
	}
	return len(names), errors.Join(err, rows.Err(), rows.Close())
}

func openWithTables(t *testing.T) *sql.DB {
	t.Helper()
	db := open(t)
	if _, err := db.Exec(ownTables); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestServerReturnsColumnsWhereReturningIsFound(t *testing.T) {
	db := openWithTables(t)
	texts := append([]string{
		"with x as (select 1) update t set a = 1 returning a",
		"with x as (delete from t returning a) insert into u table x",
		"with x as (delete from t returning a) insert into u table x returning b as c",
		"insert into t (a) select x.returning from (select 1 as returning) x",
	}, withOwnRows...)
	for _, text := range texts {
		info := Analyze(text)
		columns, err := accepted(t, db, text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if info.DataModifying && info.Returning != (columns > 0) {
			t.Errorf("%q: %v, the server returns %d columns", text, info.Returning, columns)
		}
	}
}

// plan is a part of what EXPLAIN (FORMAT JSON) says.
type plan struct {
	Node     string `json:"Node Type"`
	Relation string `json:"Relation Name"`
	Parent   string `json:"Parent Relationship"`
	Plans    []plan
}

// relations walks a plan and returns what it reads, how often it locks rows and
// how many subqueries it has.
func (p plan) relations() (read []string, locks, subqueries int) {
	if p.Relation != "" && p.Node != "ModifyTable" {
		read = append(read, p.Relation)
	}
	if p.Node == "LockRows" {
		locks++
	}
	if p.Parent == "InitPlan" || p.Parent == "SubPlan" {
		subqueries++
	}
	for _, inner := range p.Plans {
		r, l, s := inner.relations()
		read, locks, subqueries = append(read, r...), locks+l, subqueries+s
	}
	return read, locks, subqueries
}

// explain returns the server's plan for a text that it does not run, or the
// server's reason not to make one.
func explain(t *testing.T, db *sql.DB, text string) (plan, error) {
	t.Helper()
	var answer []byte
	err := db.QueryRowContext(t.Context(), "explain (format json) "+text).Scan(&answer)
	if err != nil {
		if _, ok := errors.AsType[*pq.Error](err); !ok {
			t.Fatalf("%q: %v", text, err)
		}
		return plan{}, err
	}
	var plans []struct{ Plan plan }
	if err := json.Unmarshal(answer, &plans); err != nil || len(plans) != 1 {
		t.Fatalf("%q: %s: %v", text, answer, err)
	}
	return plans[0].Plan, nil
}

// notOwn returns what in the server's plan contradicts OwnRows.
func notOwn(p plan, keyword Keyword) error {
	read, locks, subqueries := p.relations()
	switch {
	case subqueries > 0:
		return fmt.Errorf("%d subqueries", subqueries)
	case len(read) > 1:
		return fmt.Errorf("it reads %q", read)
	case keyword == Insert && len(read) > 0:
		return fmt.Errorf("it inserts what it reads from %q", read)
	case keyword == Select && locks == 0 && len(read) > 0:
		return errors.New("it locks no rows")
	}
	return nil
}

func TestServerPlansOwnRowsWithoutAnotherRelation(t *testing.T) {
	db := openWithTables(t)
	for _, text := range withOwnRows {
		p, err := explain(t, db, strings.TrimSuffix(text, ";"))
		if err == nil {
			err = notOwn(p, Analyze(text).Keyword)
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestServerPlansRandomOwnRowsWithoutAnotherRelation builds statements of
// clauses in any order, of which the server understands some.
func TestServerPlansRandomOwnRowsWithoutAnotherRelation(t *testing.T) {
	db := openWithTables(t)
	random := rand.New(rand.NewPCG(5, 6))
	pick := func(s ...string) string { return s[random.IntN(len(s))] }
	expression := func() string {
		return pick("1", "a", "a", "x.a", "a is distinct from 1", "(select max(a) from u)", "(select a from u limit 1)", "(values (1))",
			"extract(day from c)", "nextval('s')", "count(*)", "array(table u)", "a in (1, 2)", "a in (select 1)", "(a)", "a + 1", "t.a",
			"\"a\"", "a as \"from\"", "a distinct", "a is", "id", "exists (table u)", "'x'::timestamp with time zone is null", "b = 'from u'")
	}
	relation := func() string {
		return pick("t", "t", "t", "only t", "t x", "t as x", "t *", "t, u", "t join u on true", "t cross join u", "u", "(t cross join u)",
			"generate_series(1, 2) a", "current_user", "(select * from t) t", "only (t)", "t x (a)", "lateral t", "t tablesample system (1)")
	}
	tail := func() string {
		var b strings.Builder
		for random.IntN(3) > 0 {
			b.WriteString(pick(" where ", " where ", " order by ", " limit ", " offset ", " group by ", " returning ", " from ", " using ",
				" union select ", " and ", ", ", " having ", " is not distinct from ", " on conflict do nothing ",
				" on conflict (id) do update set a = "))
			if random.IntN(6) == 0 {
				b.WriteString(relation())
			} else {
				b.WriteString(expression())
			}
		}
		for random.IntN(3) == 0 {
			b.WriteString(pick(" for update", " for no key update", " for share", " for key share", " of t", " nowait", " skip locked",
				" limit 1", " for read only"))
		}
		return b.String()
	}
	proven := map[Keyword]int{}
	for range 60_000 {
		text := ""
		switch random.IntN(12) {
		case 0, 1, 2, 3:
			text = "insert into " + pick("t", "t as x", "t (a)", "t (a)", "t (id, a)") + " " +
				pick("values (", "values (", "values (1, ", "default values", "select ", "table ", "(values (", "with x as (select 1) values (") +
				expression() + pick(")", ")", ")", "", "), (1)", "))") + tail()
		case 4, 5, 6:
			text = "update " + relation() + " set " + pick("a = ", "(a) = ", "a = 1, a = ") + expression() + tail()
		case 7:
			text = "delete from " + relation() + tail()
		default:
			text = pick("select ", "select ", "select ", "select distinct ", "with t as (table u) select ") + expression() + pick("", ", "+expression()) +
				" from " + relation() + tail() + pick(" for update", " for no key update", " for share", "")
		}
		info := Analyze(text)
		if !info.OwnRows {
			continue
		}
		p, err := explain(t, db, text)
		if err != nil {
			continue // the server will not run it either
		}
		proven[info.Keyword]++
		if err := notOwn(p, info.Keyword); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, k := range []Keyword{Insert, Update, Delete, Select} {
		if proven[k] < 50 {
			t.Errorf("only %d of the texts proven were of %v", proven[k], k)
		}
	}
}
