package sqltext

import "testing"

// provenReads run on an empty database.
var provenReads = []string{
	"select 1",
	"SELECT 1;",
	"(select 1)",
	"((select 1) union (select 2)) order by 1 limit 1",
	"values (1, 'a'), (2, 'b')",
	"table pg_class",
	"select * from pg_class where relname = 'x' and relkind in ('r', 'v') order by relname limit 10 offset 5",
	`SELECT "c"."relname", count(*) FROM "pg_class" AS "c" LEFT JOIN "pg_namespace" n ON n.oid = c.relnamespace GROUP BY 1 HAVING count(*) > 1`,
	"select now(), current_timestamp, current_user, localtime, lower('A') || upper('b')",
	"select pg_catalog.now(), \"pg_catalog\".\"now\"(), \"lower\"('A')",
	"select coalesce(null, 1), nullif(1, 2), greatest(1, 2), cast('1' as int), '1'::int, 1::pg_catalog.text",
	"select '{1,2}'::int[], array[1, 2], array[[1], [2]], (array[1, 2])[1], '1'::character varying(10), 1::double precision",
	"select extract(epoch from now()), substring('abc' from 2 for 1), trim(both from ' a '), position('a' in 'b')",
	"select date '2020-01-01', interval '1 day', timestamp with time zone '2020-01-01 00:00+00' at time zone 'UTC'",
	"select 'a' like 'b' escape 'c', 'a' ilike 'b', 'a' similar to 'b', 1 between 2 and 3",
	"with a as (select 1) select * from a",
	"with recursive a(n) as (select 1 union all select n + 1 from a where n < 3), b(m) as (values (1)) select n from a",
	"with a as not materialized (select 1) table a",
	"select count(*) filter (where relkind = 'r') over (partition by relkind order by oid) from pg_class",
	"select row_number() over w from pg_class window w as (order by oid)",
	"select percentile_cont(0.5) within group (order by oid::int8) from pg_class",
	"select * from generate_series(1, 3) as g(n) join (values (1)) as v(m) on g.n = v.m",
	"select * from (select 1 as a) x cross join lateral (select 2) y where exists (select 1)",
	"select case when 1 = 1 then 'a' else 'b' end, 'x' is distinct from 'y'",
	"select jsonb_build_object('a', 1) -> 'a', '{}'::jsonb @> '{}'::jsonb, to_tsvector('a') @@ to_tsquery('a')",
	"select 1 where 'a' = any(array['a']) and not (1 = 2)",
	"select distinct on (relkind) lower(relname::text) from pg_class order by relkind",
	"select 'insert into t', $$delete from t$$, E'\\'; drop table t --' /* update t */",
	"select t.update from (select 1 as \"update\") t",
	"select 1 from pg_class for read only",
	"show server_version",
	"show transaction isolation level",
	"SHOW all",
	"explain select 1",
	"explain verbose select lower('A')",
	"explain (costs off, format json) select 1",
	"explain (select 1)",
	"explain ((select 1))",
	"explain (verbose) (select 1)",
	"explain with a as (select 1) select * from a",
	"explain values (1)",
}

func TestHarmlessStatementsAreProvenReads(t *testing.T) {
	for _, text := range provenReads {
		if info := Analyze(text); !info.ProvenRead {
			t.Errorf("%q is no proven read: %+v", text, info)
		}
	}
}

func TestWhateverIsNotUnderstoodIsNoProvenRead(t *testing.T) {
	for _, text := range []string{
		"",
		";",
		"select 1; select 2",
		"nonsense",
		"select transfer($1, $2)",
		"select public.now()",
		"select other.pg_catalog.now()",
		`select "pg_catalog.now"()`,
		`select "Now"()`,
		"select nextval('s')",
		"select setval('s', 1)",
		"select pg_catalog.set_config('a', 'b', false)",
		"select pg_advisory_lock(1)",
		"select pg_try_advisory_xact_lock(hashtext('a'))",
		"select dblink_exec('a', 'b')",
		"select pg_notify('a', 'b')",
		"select lo_create(0)",
		"select pg_sleep(1)",
		"select query_to_xml('delete from t', true, true, '')",
		"select pg_current_xact_id()",
		"select txid_current()",
		"select pg_terminate_backend(1)",
		"select U&\"nextv\\0061l\"('s')",
		"select * from t for update",
		"select * from t for share",
		"select * from t for no key update",
		"select * from t for key share nowait",
		"select * into u from t",
		"select 1 into temp u",
		"with x as (insert into t values (1) returning a) select * from x",
		"with x as (update t set a = 1 returning a) select * from x",
		"with x as (select 1) delete from t",
		"with x as (select 1) insert into t table x",
		"with x as (select 1), y as (delete from t) select 1",
		"with x as (create table t (a int)) select 1",
		"with x as (drop table t) select 1",
		"insert into t values (1)",
		"update t set a = 1",
		"delete from t",
		"merge into t using s on true when matched then do nothing",
		"select * from [delete from t returning a]",
		"select * from [cancel queries select 1]",
		"select 1::mood",
		"select 1::public.mood",
		"select 1::text.mood",
		`select 1::"Mood"`,
		"select cast(1 as mood)",
		"select cast(1 as pg_catalog.mood)",
		"select cast((select cast(1 as int)) as mood)",
		"select mood 'happy'",
		`select "mood" 'happy'`,
		"select public.date '2020-01-01'",
		"select first 'a type can have this name'",
		"select 1 operator(public.+) 2",
		"select treat(a as mood) from t",
		"select distinct on (a) transfer(1) from t",
		"select a from t order by set(1)",
		"select f(a) over (order by transfer(1)) from t",
		"select count(*) filter (where transfer(1)) from t",
		"select * from transfer(1) as x(a)",
		"select * from rows from (transfer(1))",
		"select * from t tablesample own_method(1)",
		"with x as (select 1) select * from x order by a, transfer(b)",
		"with x as (select 1) (select 2) order by a, transfer(b)",
		"values (transfer(1))",
		"select 'a\\'b'",
		"select (1",
		"explain analyze select 1",
		"explain analyse select 1",
		"explain (analyze) select 1",
		"explain (analyze false) select 1",
		"explain (costs, analyze on) select 1",
		`explain ("analyze") select 1`,
		`explain (costs, "analyze") select 1`,
		"explain (unheard_of) select 1",
		"explain verbose analyze select 1",
		"explain select transfer(1)",
		"explain execute p",
		"explain create table t as select 1",
		"explain",
		"show a; set a = 1",
		"set a = 1",
		"prepare p as select 1",
		"execute p",
		"fetch next from c",
		"declare c cursor for select 1",
		"copy t to stdout",
		"call p()",
		"do $$begin end$$",
		"lock t",
		"begin",
		"commit",
		"create table t (a int)",
		"truncate t",
		"listen c",
		"discard all",
	} {
		if Analyze(text).ProvenRead {
			t.Errorf("%q is said to be a proven read", text)
		}
	}
}

func TestExplainOfAModificationWithoutAnalyzeIsAProvenRead(t *testing.T) {
	for _, text := range []string{
		"explain insert into t values (1)",
		"explain (costs off) update t set a = lower(a)",
		"explain with x as (delete from t returning a) select * from x",
	} {
		if !Analyze(text).ProvenRead {
			t.Errorf("%q executes nothing and is no proven read", text)
		}
	}
}

func TestHarmlessKnowsPgCatalogOnly(t *testing.T) {
	for name, want := range map[string]bool{
		"now": true, "pg_catalog.now": true, "clock_timestamp": true,
		"Now": false, "public.now": false, `"pg_catalog.now"`: false, "pg_catalog.pg_catalog.now": false,
		"nextval": false, "pg_catalog.nextval": false, "transfer": false, "": false,
	} {
		if got := Harmless(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	if info := Analyze("insert into t (a) values (now())"); !info.CallsOnlyHarmless() {
		t.Errorf("%+v", info)
	}
	if info := Analyze("insert into t (a) values (transfer(now()))"); info.CallsOnlyHarmless() {
		t.Errorf("%+v", info)
	}
}
