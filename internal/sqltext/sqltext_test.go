package sqltext

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestStatementsAreCountedWhereTheServerWouldCountThem(t *testing.T) {
	for _, c := range []struct {
		text       string
		statements int
	}{
		{"", 0},
		{" \t\r\n\f", 0},
		{";;;", 0},
		{"-- nothing", 0},
		{"/* nothing /* at ; */ all */;", 0},
		{"select 1", 1},
		{"select 1;", 1},
		{";select 1;;", 1},
		{"select 1; select 2", 2},
		{"select ';'", 1},
		{"select ''';'", 1},
		{"select ''; select 2", 2},
		{`select E'\';'`, 1},
		{`select e'\\'; select 2`, 2},
		{"select E'a'\n'\\';' ", 1},
		{"select E'a' -- it goes on\n  '\\';' ", 1},
		{`select ";"`, 1},
		{`select 1 as """;"`, 1},
		{`select U&";"`, 1},
		{`select U&';', u&'a'`, 1},
		{`select N';', B'0', X'1F', n';'`, 1},
		{"select $$;$$", 1},
		{"select $a$;$$;$b$;$a$", 1},
		{"select $a$;$A$;$a$", 1},
		{"select $_1é$;$_1é$", 1},
		{"select $1; select $2", 2},
		{"select $1$$;$$", 1},
		{"select a$b$; select 2 as c$b$", 2},
		{"select é$$; select 1 as é$$", 2},
		{"select 1 -- ; select 2\n; select 3", 2},
		{"select 1 -- ; select 2\r; select 3", 2},
		{"select 1 /* ; /* ; */ ; */", 1},
		{"select 1 /*/ ; */", 1},
		{"select 2*/**/3; select 4", 2},
		{"select 1+--;\n2", 1},
		{"select 1.; select .5", 2},
		{"select 1e5;select 1E-5", 2},
		{"create rule r as on insert to t do (select 1; select 2)", 1},
		{"create function f() returns int begin atomic select 1; select case when true then 1 end; end; select 2", 2},
		{"CREATE OR REPLACE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); SELECT 1 AS end; END", 1},
		{"begin; select 1; end", 3},
		{"create function f() returns int language sql as $$ select 1; select 2; $$; select 1", 2},
	} {
		if got := Analyze(c.text).Statements; got != c.statements {
			t.Errorf("%q: %d statements, want %d", c.text, got, c.statements)
		}
	}
}

func TestKeywordIsThatOfTheFirstStatement(t *testing.T) {
	for text, want := range map[string]Keyword{
		"":                                     None,
		"; -- x":                               None,
		"select 1":                             Select,
		"/* c */ SeLeCt 1":                     Select,
		"((select 1))":                         Select,
		"values (1)":                           Values,
		"table t":                              Table,
		"with a as (select 1) select * from a": With,
		"insert into t values (1)":             Insert,
		"update t set a = 1":                   Update,
		"delete from t":                        Delete,
		"merge into t using s on true when matched then delete": Merge,
		"begin isolation level serializable":                    Begin,
		"start transaction":                                     Begin,
		"commit":                                                Commit,
		"end work":                                              Commit,
		"commit and chain":                                      Commit,
		"rollback":                                              Rollback,
		"abort transaction":                                     Rollback,
		"rollback transaction and no chain":                     Rollback,
		"savepoint s":                                           Savepoint,
		"release savepoint s":                                   Release,
		"rollback to s":                                         RollbackTo,
		"rollback work to savepoint s":                          RollbackTo,
		"ROLLBACK/**/TRANSACTION--\nTO s":                       RollbackTo,
		"prepare p as select 1":                                 Prepare,
		`prepare "transaction" as select 1`:                     Prepare,
		"prepare transaction 'x'":                               PrepareTransaction,
		"commit prepared 'x'":                                   CommitPrepared,
		"rollback prepared 'x'":                                 RollbackPrepared,
		"execute p(1)":                                          Execute,
		"deallocate all":                                        Deallocate,
		"declare c cursor for select 1":                         Declare,
		"fetch next from c":                                     Fetch,
		"move c":                                                Move,
		"close c":                                               Close,
		"copy t from stdin":                                     Copy,
		"call p()":                                              Call,
		"do $$begin end$$":                                      Do,
		"set a = 1":                                             Set,
		"set session a = 1":                                     Set,
		"set session characteristics as transaction read only": Set,
		"set local a = 1":                 SetLocal,
		"set transaction read only":       SetTransaction,
		"set local transaction read only": SetTransaction,
		"set constraints all deferred":    SetConstraints,
		"set local.a = 1":                 Set, // of a parameter called so
		"set transaction.a = 1":           Set,
		"set session transaction.a = 1":   Set,
		"set constraints.a = 1":           Set,
		"set local transaction.a = 1":     SetLocal,
		"set local a.transaction = 1":     SetLocal,
		"reset all":                       Reset,
		"show all":                        Show,
		"discard all":                     Discard,
		"load 'x'":                        Load,
		"listen c":                        Listen,
		"unlisten *":                      Unlisten,
		"notify c":                        Notify,
		"lock t":                          Lock,
		"explain select 1":                Explain,
		"create table t (a int)":          DDL,
		"alter table t add b int":         DDL,
		"drop table t":                    DDL,
		"comment on table t is 'x'":       DDL,
		"grant select on t to u":          DDL,
		"truncate t":                      Truncate,
		"vacuum (analyze) t":              Vacuum,
		"analyze t":                       AnalyzeTables,
		"cluster t":                       Cluster,
		"reindex table t":                 Reindex,
		"checkpoint":                      Checkpoint,
		"selec 1":                         Other,
		`"select" 1`:                      Other,
		"$1":                              Other,
		"'select'":                        Other,
		"select 1; delete from t":         Select,
	} {
		if got := Analyze(text).Keyword; got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestKeywordsHoldEveryStatementsKind(t *testing.T) {
	got := Analyze("select 1; prepare p as select 2;; set a = 1; select 3").Keywords
	if want := KeywordsOf(Select, Prepare, Set); got != want {
		t.Errorf("%b, want %b", got, want)
	}
	if got.Len() != 3 || !got.Has(Prepare) || got.Has(Deallocate) || !got.Intersects(KeywordsOf(Set, Load)) {
		t.Errorf("the set's methods do not agree with its content %b", got)
	}
}

func TestEveryKeywordHasAName(t *testing.T) {
	seen := map[string]bool{}
	for k := range keywords {
		if name := k.String(); name == "" || seen[name] {
			t.Errorf("keyword %d is called %q", k, name)
		}
		seen[k.String()] = true
	}
	if keywords > 64 {
		t.Errorf("%d keywords do not fit a KeywordSet", keywords)
	}
	if got := Keyword(255).String(); got != "invalid" {
		t.Errorf("%q", got)
	}
}

func TestTransactionControlIsSeenInEveryStatement(t *testing.T) {
	const (
		control = 1 << iota
		begins
		ends
		chain
	)
	for text, want := range map[string]int{
		"select 1":                          0,
		"savepoint s; rollback to s":        0,
		"release s":                         0,
		"set transaction read only":         0,
		"select 'commit'; select $$;end;$$": 0,
		"select a from begin":               0,
		"begin":                             control | begins,
		"start transaction":                 control | begins,
		"commit":                            control | ends,
		"end":                               control | ends,
		"rollback":                          control | ends,
		"abort":                             control | ends,
		"prepare transaction 'x'":           control | ends,
		"commit prepared 'x'":               control,
		"rollback prepared 'x'":             control,
		"commit and chain":                  control | begins | ends | chain,
		"rollback work and chain":           control | begins | ends | chain,
		"end and no chain":                  control | ends,
		"select 1; commit; begin":           control | begins | ends,
		"update t set a = ';'; /* ; */ end": control | ends,
		"create procedure p() begin atomic select 1 case; end; commit": control | begins | ends,
	} {
		info := Analyze(text)
		got := 0
		for bit, set := range map[int]bool{control: info.TxControl, begins: info.BeginsTx, ends: info.EndsTx, chain: info.AndChain} {
			if set {
				got |= bit
			}
		}
		if got != want {
			t.Errorf("%q: %04b, want %04b", text, got, want)
		}
	}
}

func TestDataModificationIsFoundWhereAStatementStands(t *testing.T) {
	for text, want := range map[string]bool{
		"insert into t values (1)": true,
		"update only t set a = 1":  true,
		`update "t" set a = 1`:     true,
		"delete from t":            true,
		"merge into t using s on true when matched then delete":                          true,
		"with x as (insert into t values (1) returning a) select * from x":               true,
		"with x as materialized (delete from t returning a) select * from x":             true,
		"with x as (select 1) update t set a = 1":                                        true,
		"with x(a) as (select 1) search depth first by a set o insert into t select 1":   true,
		"with x(key) as (select 1) search depth first by key set key update t set a = 1": true,
		"explain analyze insert into t values (1)":                                       true,
		"explain (costs, analyze) insert into t values (1)":                              true,
		`explain ("analyze") insert into t values (1)`:                                   true,
		"copy (insert into t values (1) returning a) to stdout":                          true,
		"select 1; delete from t":                                                        true,
		"select * from [insert into t values (1) returning a]":                           true,
		"explain insert into t values (1)":                                               false,
		"explain (costs off) update t set a = 1":                                         false,
		"select 1":                                                                       false,
		"select * from t for update":                                                     false,
		"select * from t for no key update of t":                                         false,
		"select max(update), t.delete from t":                                            false,
		"select 'insert into', \"delete\" from t":                                        false,
		"select 1 /* ; delete from t */":                                                 false,
		"prepare p as insert into t values (1)":                                          false,
		"create trigger r before insert or update on t execute function f()":             false,
		"create table u (a int references t on delete cascade on update cascade)":        false,
		"truncate t": false,
	} {
		if got := Analyze(text).DataModifying; got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestFunctionsAreTheNamesBeforeAParenthesis(t *testing.T) {
	for text, want := range map[string]string{
		"select 1":                        "",
		"select NOW()":                    "now",
		"select now ( ), now(), count(*)": "now count",
		"select pg_catalog.Now()":         "pg_catalog.now",
		"select pg_catalog /* c */ . -- d\n now /* e */ ()": "pg_catalog.now",
		`select "Now"(), "pg_catalog"."now"()`:              "Now pg_catalog.now",
		`select "a.b"(), a."b.c"(), "say ""hi"""()`:         `"a.b" a."b.c" say "hi"`,
		"select é(1)": "é",
		"select count(*) filter (where a) over (partition by (b) order by (c)), sum(x) over w from t window w as ()": "count sum",
		"select a from t where a in (1) and exists (select 1) and not (b) or b = any(c)":                             "",
		"select coalesce(a, 1), nullif(a, 1), greatest(1, 2), row(1, 2), array(select 1), cast(a as numeric(1,2))":   "",
		"select extract(year from a), substring(b from 1 for 2), trim(both from c), overlay(d placing e from 1)":     "",
		"select a::numeric(1,2), b::varchar(3)[], c::pg_catalog.bpchar(3), d::character varying(4)":                  "",
		"select percentile_cont(0.5) within group (order by a) from t group by grouping sets ((a), (b))":             "percentile_cont",
		"select a from t group by rollup (a)":         "",
		"insert into t (a, b) values (lower($1), $2)": "lower",
		`insert into "s"."t" ("a") values ($1) on conflict ("a") do update set ("a", b) = (1, 2) returning f("a")`: "f",
		"insert into t as x (a) select g(1)":                                                                                     "g",
		"update t set (a, b) = (select 1, h(2)) where i(c)":                                                                      "h i",
		"with x (a) as (select f(1)), y(b) as not materialized (select g(2)) select h(a) from x":                                 "f g h",
		"with recursive x(a) as (select 1) cycle a set c using p, y(b) as (select 2) select f()":                                 "f",
		"with x as (select 1) (select 2) order by a, f(b)":                                                                       "f",
		"select * from generate_series(1, 2) as g(a) join (values (1)) as v(b) on (true) left join lateral (select 3) l on true": "generate_series",
		"select * from a join b using (c) where d between (1) and (2)":                                                           "",
		"select distinct on (a) nextval('s') from t":                                                                             "nextval",
		"select distinct on (a) filter(1), distinct_on(2) from t":                                                                "filter distinct_on",
		"select set(1), by(2), over(3), key(4), conflict(5), sets(6), cube(7), insert(8)":                                        "set by over key conflict sets cube insert",
		"select a from t order by set(1), like(2), join(3)":                                                                      "set like join",
		"select a from t where b like (c) and d ilike ('e')":                                                                     "",
		"call p(1)":                "p",
		"vacuum (full) t":          "",
		"copy t (a, b) from stdin": "",
		"create table if not exists s.t (a int default f(1), b varchar(10), primary key (a), foreign key (b) references u (c))": "f",
		"select $1(2), 'f'(1), 3(4)":                 "",
		"select public.values(1), a.cast(2)":         "public.values a.cast",
		"select 'f(1)', $$g(2)$$ /* h(3) */ -- i(4)": "",
		"with x as (select 1) (select 2), f(b)":      "f",
		"with x as (select 1); , f(b)":               "f",
		"select treat(a as b)":                       "treat",
	} {
		got := strings.Join(Analyze(text).Functions, " ")
		if got != want {
			t.Errorf("%q:\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestTextThatMayMeanSomethingElseIsSuspicious(t *testing.T) {
	for text, want := range map[string]bool{
		"":                        false,
		"select 'a'":              false,
		"select 'it''s'":          false,
		`select E'\n\\'`:          false,
		"select $1, $2::text":     false,
		"select $tag$ ' $tag$":    false,
		"select '\xff\xc3'":       false,
		"select \xff":             false,
		"select 1.5e-3, .5, 1.":   false,
		`select 'a\b', 'C:\temp'`: false,
		`select '\\', N'\\'`:      false,
		`select '\\\''`:           true,
		`select '\\''x'`:          false,
		`select '\a\''`:           true,
		`select 'a' '\''`:         true,
		"select 'a'\n'\\'":        true,
		"select 'a'\n'\\b'":       false,
		`select N'\'`:             true,
		`select U&'\'`:            false,
		`select B'\', x'\'`:       false,
		`select $$\$$`:            false,
		`select "\"`:              false,
		`select '\é'`:             false,
		`select '\'`:              true,
		`select '\'';select 1--'`: true,
		"select 'a":               true,
		`select E'a\`:             true,
		`select E'a\'`:            true,
		`select "a`:               true,
		`select U&"\0064blink"()`: true,
		"select $$a":              true,
		"select $a$ $b$":          true,
		"select $a":               true,
		"select $1a":              true,
		"select 1a":               true,
		"select 0x1F":             true,
		"select 1_000":            true,
		"select 1e":               true,
		"select 1 /* a":           true,
		"select 1 /* /* a */":     true,
		"select (1":               true,
		"select 1)":               true,
		"select (1]":              true,
		"select (1; select 2":     true,
		"select \\ 1":             true,
		"select {1}":              true,
		"select 1\x00; select 2":  true,
		"select '\x00'":           true,
		"select \x01":             true,
		"create function f() begin atomic select 1;": true,
	} {
		info := Analyze(text)
		if info.Suspicious != want {
			t.Errorf("%q: %v, want %v", text, info.Suspicious, want)
		}
		if info.Suspicious && info.ProvenRead {
			t.Errorf("%q is suspicious and yet a proven read", text)
		}
	}
}

func TestOtherHazardsAreNamed(t *testing.T) {
	for text, want := range map[string]Info{
		"declare c cursor with hold for select 1":        {WithHold: true},
		"declare c cursor without hold for select 1":     {},
		"select * from t for update":                     {LocksRows: true},
		"select * from t for no key update skip locked":  {LocksRows: true},
		"select * from t for share of t":                 {LocksRows: true},
		"select * from t for key share":                  {LocksRows: true},
		"select 'for update', a.update from t":           {},
		"create temp table t (a int)":                    {Temporary: true},
		"create or replace temporary view v as select 1": {Temporary: true},
		"select 1 into temp t":                           {Temporary: true},
		"select pg_temp.f()":                             {Temporary: true},
		"drop table db.pg_temp.t, pg_temp_3.t":           {Temporary: true},
		"select temp from weather":                       {},
		"copy t from stdin":                              {Copy: CopyFromClient},
		`COPY "t" ("a", "b") FROM STDIN`:                 {Copy: CopyFromClient},
		"copy t from stdin where a is distinct from b":   {Copy: CopyFromClient},
		"copy (select a from t) to stdout":               {Copy: CopyToClient},
		"copy t to program 'rm'":                         {Copy: CopyOnServer},
		"copy t from '/etc/passwd'":                      {Copy: CopyOnServer},
		"select 1; copy t from program 'x'":              {Copy: CopyOnServer},
		"select a from stdin":                            {},
	} {
		got := Analyze(text)
		got = Info{WithHold: got.WithHold, LocksRows: got.LocksRows, Temporary: got.Temporary, Copy: got.Copy}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestDeepNestingIsStillUnderstood(t *testing.T) {
	text := "select " + strings.Repeat("(", 10_000) + "f(1)" + strings.Repeat(")", 10_000) + "; commit"
	info := Analyze(text)
	if info.Suspicious || info.Statements != 2 || !info.EndsTx || !slices.Equal(info.Functions, []string{"f"}) {
		t.Errorf("%+v", info)
	}
}

func TestLongestWordIsLongEnough(t *testing.T) {
	for name := range words {
		if len(name) > longestWord {
			t.Errorf("%q is longer than %d bytes and never found", name, longestWord)
		}
	}
}
