package sqltext

import (
	"slices"
	"strings"
	"testing"
)

// What a text may leave behind.
const (
	nothing = effect(0)
	session = effectOnSession
	hidden  = effectHidden
	both    = effectOnSession | effectHidden
)

var effectsOfTexts = map[string]effect{
	"":                       nothing,
	"; -- set a = 1":         nothing,
	"select 1":               nothing,
	"/* set a = 1 */ show a": nothing,
	"select 'set a = 1; notify c', $$ listen c $$, E'\\'; listen c --'": nothing,
	`select "set_config", "pg_notify" from "listen"`:                    nothing,
	"insert into t (a) values (now()) on conflict (a) do nothing":       nothing,
	"update t set (a, b) = ($1, lower($2)) where c in (1, 2)":           nothing,
	"delete from t": nothing,
	"merge into t using s on true when not matched then insert (a) values (s.a)": nothing,
	"select * from t for update": nothing,
	"lock t":                     nothing,
	"truncate t":                 nothing,
	"vacuum (analyze) t (a, b)":  nothing,
	"analyze t (a)":              nothing,

	// parameters
	"set a = 1":                   session,
	"SET/**/search_path TO x":     session,
	"set session a = 1":           session,
	"set session authorization x": session,
	"set session characteristics as transaction read only": session,
	"set role x":                         session,
	"set time zone 'UTC'":                session,
	"set names 'UTF8'":                   session,
	"set local a = 1":                    nothing,
	"set local a.b = 1":                  nothing,
	"set local session.a = 1":            nothing,
	"set local transaction.a = 1":        nothing,
	"set local role x":                   nothing,
	"set transaction read only":          nothing,
	"set session transaction read only":  nothing,
	"set local transaction read only":    nothing,
	"set constraints all deferred":       nothing,
	"set constraints s.c deferred":       nothing,
	"set local.a = 1":                    session, // a parameter of that name
	"set Local -- c\n . a = 1":           session,
	"set transaction.a = 1":              session,
	"set constraints.a = 1":              session,
	"set session.a = 1":                  session,
	"set session transaction.a = 1":      session,
	"set transaction_read_only = on":     session,
	"reset a":                            session,
	"reset all":                          session,
	"discard plans":                      session,
	"discard all":                        session,
	"select set_config('a', 'b', true)":  nothing,
	"select SET_CONFIG($1, $2, TRUE), 1": nothing,
	"select pg_catalog.set_config('a', f.x || 'b', true) from f":              nothing,
	"select set_config(lower('A,'), coalesce(a, b), /* false */ true) from t": nothing,
	"select set_config('a', array[1, 2]::text, true)":                         nothing,
	"select set_config('a', 'b', false)":                                      session,
	"select set_config('a', 'b', $1)":                                         session,
	"select set_config('a', 'b', not true)":                                   session,
	"select set_config('a', 'b', (true))":                                     session,
	"select set_config('a', 'b', 'true')":                                     session,
	"select set_config('a', 'b', true is null)":                               session,
	"select set_config('a', 'b', true and false)":                             session,
	"select set_config('a', 'b', t.true) from t":                              session,
	"select set_config('a', true)":                                            session,
	"select set_config(1, 2, 3, true)":                                        session,
	"select set_config('a', set_config('b', 'c', true), true)":                nothing,
	"select set_config('a', set_config('b', 'c', false), true)":               session,
	"select set_config('a', 'b', true), set_config('a', 'b', false)":          session,
	"with x as (select set_config('a', 'b', false)) select 1":                 session,
	"select app.set_config('a', 'b', true)":                                   both,
	"select setseed(0.5)":                                                     session,
	"select random()":                                                         nothing,

	// what is prepared, held, listened to, loaded
	"prepare p as select 1":                                        session,
	"prepare p (int, text) as select pg_notify($2, 'x')":           session,
	"deallocate p":                                                 session,
	"execute p":                                                    both,
	"explain analyze execute p":                                    both,
	"create table t as execute p":                                  both,
	"declare c cursor for select 1":                                nothing,
	"declare c cursor without hold for select 1":                   nothing,
	"declare c cursor with hold for select 1":                      session,
	"declare c scroll cursor With /* c */ Hold for select app.f()": both,
	"fetch next from c":                                            nothing,
	"move c":                                                       nothing,
	"close c":                                                      nothing,
	"load 'x'":                                                     session,
	"listen c":                                                     session,
	"unlisten *":                                                   session,
	"notify c":                                                     hidden,
	"notify c, 'x'":                                                hidden,
	"select pg_notify('c', 'x')":                                   hidden,
	"select pg_catalog . pg_notify('c', 'x')":                      hidden,
	`select "pg_notify"('c', 'x')`:                                 hidden,
	"insert into t select pg_notify('c', a) from u":                hidden,

	// temporary objects
	"create temp table t (a int)":                       session,
	"create temporary table t (a int) on commit drop":   session,
	"create local temp sequence s":                      session,
	"create or replace temp view v as select 1":         session,
	"select 1 into temp t":                              session,
	"select 1 into local temporary table t":             session,
	"select * from pg_temp.t":                           session,
	`drop table "pg_temp".t`:                            session,
	"create table pg_temp_3.t (a int)":                  session,
	"create table db.pg_temp.t (a int)":                 session,
	"create temp table t as select pg_notify('c', 'x')": both,
	"select temp, pg_temp from t":                       nothing,
	"select 1 into t":                                   nothing,

	// what can hide anything
	"do $$begin end$$":               both,
	"call p()":                       both,
	"explain analyze select app.f()": both,
	"select f(1)":                    both,
	"select f(1), now()":             both,
	"select public.now()":            both,
	"select * from f(1) as x(a)":     both,
	"select * from t where a > (select max(app.f(b)) from u)":                              both,
	"with recursive x as (with y as (select f(1)) table y) select * from x":                both,
	"with x(a) as (with y(b) as (values (lower('A'))) table y), z(c) as (table x) table z": nothing,
	"select * from generate_series(1, 3) g(n), (values (1)) v(m), (select 2) w(k)":         nothing,
	"select * from jsonb_to_recordset($1) x(a int, b varchar(3))":                          nothing,
	"select 1 operator(pg_catalog.+) f(2)":                                                 both,
	"select distinct on (a) f(a) from t":                                                   both,
	"delete from t returning with (old as o) f(o.a)":                                       both,
	"selec 1":                  both,
	"repack t":                 both,
	`"set" a = 1`:              both,
	"upsert into t values (1)": nothing,
	"select 'a":                both,
	"select (1":                both,
	"select 'a\\'b'":           both,
	`select U&"\0061"`:         both,
	"select query_to_xml($1, true, true, '')": both,
	"select ts_stat($1)":                      both,
	"select dblink('a', 'b')":                 both,

	// functions
	"select nextval('s'), setval('s', 1), pg_catalog.nextval('s')": nothing,
	"select currval('s')":                   session,
	"select lastval()":                      session,
	"insert into t values (currval('s'))":   session,
	"select pg_advisory_lock(1)":            session,
	"select pg_try_advisory_lock_shared(1)": session,
	"select pg_advisory_unlock_all()":       session,
	"select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1, 2)":              nothing,
	"select app.pg_advisory_xact_lock(1)":                                                  both,
	"select pg_sleep(1), txid_current(), pg_current_xact_id(), lo_create(0), loread(1, 2)": nothing,
	"select lo_import('/a')":         hidden,
	"select pg_terminate_backend(1)": hidden,
	"select uuid_generate_v4(), crypt('a', gen_salt('bf')), public.digest('a', 'md5')":  nothing,
	`select extensions.similarity(a, b), "st_distance"(a, b), levenshtein(a, b) from t`: nothing,
	"select app.crypt('a', 'b')":        both,
	`select "Crypt"('a', 'b')`:          both,
	`select "public.crypt"('a', 'b')`:   both,
	`select db.pg_catalog.nextval('s')`: both,
	"select set_limit(0.5)":             session,
	"select st_transfer(1)":             both,
	"select xmlelement(name a), date(a), a::timestamptz(3) from t tablesample bernoulli (10)": nothing,
	"select a from t group by a, rollup (b), grouping sets ((c), ())":                         nothing,

	// COPY
	"copy t (a, b) from stdin":                            nothing,
	"copy t from stdin (format csv, force_null (a))":      nothing,
	"copy t to stdout":                                    nothing,
	"copy (select f(1)) to stdout":                        both,
	"copy t from stdin where f(a)":                        both,
	"copy t to '/a'":                                      hidden,
	"select 1; copy t to stdout; copy t from program 'x'": hidden,

	// definitions call nothing, but for what is computed at once
	"create table t (a vector(3), b int default app.f(), check (app.g(b)))":                             nothing,
	"create table t (a int generated always as (app.f(b)) stored)":                                      nothing,
	"create table t as select app.f(1)":                                                                 both,
	"create unlogged table if not exists t (a) with (fillfactor = 70) as values (app.f(1))":             both,
	"create materialized view v as select app.f(1)":                                                     both,
	"create table t as select lower('A') a":                                                             nothing,
	"create table p partition of t for values from (app.f(1)) to (2)":                                   both,
	"create local temp table t as select pg_notify('c', 'x')":                                           both,
	"create table t as select 1; create view v as select app.f(1)":                                      nothing,
	"create unique index on t (app.f(a))":                                                               both,
	"create function f() returns int begin atomic select 1 case; end; set a = 1; end":                   both, // CASE is a label
	"alter foreign table t alter a set default app.f(1)":                                                nothing,
	"create view v as select app.f(1)":                                                                  nothing,
	"create index on t (a, lower(b))":                                                                   nothing,
	"create unique index concurrently i on s.t using gin (a) with (x = 1)":                              nothing,
	"create index on t (app.f(a))":                                                                      both,
	"create index on t (a) where app.f(a)":                                                              both,
	"create function f(a int) returns int language sql as 'select g(1)'":                                nothing,
	"create function f() returns int begin atomic select g(1); select set_config('a', 'b', false); end": nothing,
	"create function f() returns int begin atomic select 1; set a = 1":                                  both, // its end was missed
	"create trigger r before insert on t for each row execute function f()":                             nothing,
	"create extension x":                                                      nothing,
	"alter table t add a int default app.f(1)":                                both,
	"alter table t alter a type int using lower(a)::int":                      nothing,
	"alter table t add primary key (a), add foreign key (b) references u (c)": nothing,
	"alter domain d add check (app.f(value))":                                 both,
	"alter function f(int) stable":                                            nothing,
	"drop function f(int)":                                                    nothing,
	"comment on function f(int) is 'x'":                                       nothing,
	"grant execute on function f(int) to u":                                   nothing,
	"alter system set a = 1":                                                  hidden,
	"alter role u set a = 1":                                                  nothing,

	// transactions, and several statements
	"begin": nothing,
	"begin isolation level serializable; set transaction read only; commit": nothing,
	"commit and chain":                                      nothing,
	"savepoint s; rollback to s; release s":                 nothing,
	"prepare transaction 'a'":                               nothing,
	"commit prepared 'a'":                                   hidden,
	"rollback prepared 'a'":                                 hidden,
	"select 1; set a = 1":                                   session,
	"set a = 1; select 1":                                   session,
	"select 1;; notify c;":                                  hidden,
	"set local a = 1; listen c; select pg_notify('c', 'x')": both,
	"create function f() returns int language sql as 'x'; select f()": both,
	"create index on t (a); select where f(a)":                        both,
	"select 1 from t where a; create index on t (a)":                  nothing,
}

func TestEffectsAreSeenInTexts(t *testing.T) {
	for text, want := range effectsOfTexts {
		info := Analyze(text)
		var got effect
		if info.SessionState {
			got |= session
		}
		if info.HiddenEffect {
			got |= hidden
		}
		if got != want {
			t.Errorf("%q: %02b, want %02b (session state is 01, a hidden effect 10); functions %q", text, got, want, info.Functions)
		}
		if info.LeavesSessionState(nil) != info.SessionState {
			t.Errorf("%q leaves other session state if no function is allowed", text)
		}
	}
}

func TestAllowedFunctionsLeaveNoSessionState(t *testing.T) {
	for _, c := range []struct {
		text, allowed string // separated by spaces
		leaves        bool
	}{
		{"select f(1)", "f", false},
		{"select f(1)", "g", true},
		{"select f(1)", "", true},
		{"select f(1), g(2), f(3)", "f", true},
		{"select f(1), g(2), f(3)", "g f", false},
		{"select app.f(1); select app.f(2)", "app.f", false},
		{"select App.F(1)", "app.f", false},
		{`select "App"."F"(1)`, "App.F", false},
		{"select set_config('a', 'b', false)", "set_config", false},
		{"select pg_catalog.set_config('a', 'b', false)", "pg_catalog.set_config", false},
		{"select pg_catalog.set_config('a', 'b', false)", "set_config", true},
		{"select set_config('a', 'b', true), f(1)", "f", false},
		{"select lastval()", "lastval", false},
		{"select pg_advisory_lock(1)", "pg_advisory_lock", false},
		{"select now()", "", false},
		{"set a = 1", "set", true},
		{"set a = 1; select f(1)", "f", true},
		{"select f(1), 'a", "f", true},
		{"call f()", "f", true},
		{"do $$begin end$$", "do", true},
		{"create temp table t as select f(1)", "f", true},
		{"declare c cursor with hold for select f(1)", "f", true},
		{"declare c cursor for select f(1)", "f", false},
		{"selec f(1)", "f", true},
		{"explain analyze execute f(1)", "f", true},
		{"select 1 operator(pg_catalog.+) f(2)", "operator", true},
	} {
		var asked []string
		info := Analyze(c.text)
		got := info.LeavesSessionState(func(name string) bool {
			asked = append(asked, name)
			return slices.Contains(strings.Fields(c.allowed), name)
		})
		if got != c.leaves {
			t.Errorf("%q with %q allowed: %v, want %v", c.text, c.allowed, got, c.leaves)
		}
		for _, name := range asked {
			if !slices.Contains(info.Functions, name) {
				t.Errorf("%q: asked for %s, which is not in %q", c.text, name, info.Functions)
			}
		}
	}
}

func TestAskingForSessionStateAllocatesNothing(t *testing.T) {
	prefix := "f"
	for _, text := range []string{ormSelect, "set a = 1", "select f(1), f2(1)"} {
		info := Analyze(text)
		allocations := testing.AllocsPerRun(100, func() {
			info.LeavesSessionState(func(name string) bool { return strings.HasPrefix(name, prefix) })
		})
		if allocations != 0 {
			t.Errorf("%q: %v allocations", text, allocations)
		}
	}
}

// A function that stands in the way of a replay does not pass for one without
// any effect, but for those whose effect is neither kind.
func TestHazardousFunctionsHaveAnEffect(t *testing.T) {
	for name, hazard := range hazardous() {
		e := effectOf(name)
		switch {
		case name == "setval" || hazard == HazardAdvisoryXactLock:
			continue // the prefix alone is no function
		case hazard == HazardAdvisoryLock && e&effectOnSession == 0:
			t.Errorf("%s leaves no session state", name)
		case hazard == HazardOutside && e&effectHidden == 0:
			t.Errorf("%s has no hidden effect", name)
		}
	}
}

func TestEveryFunctionHasOneEffect(t *testing.T) {
	seen := map[string]bool{}
	for _, list := range []string{
		builtinsWithoutEffect, syntaxLikeFunctions, typesAsFunctions, builtinsOnSession, builtinsHidden,
		extensionsWithoutEffect, extensionsOnSession,
	} {
		for name := range strings.FieldsSeq(list) {
			if seen[name] || Harmless(name) {
				t.Errorf("%s is on two lists", name)
			}
			if words[name].class&(classReserved|classSyntax) != 0 {
				t.Errorf("%s is never taken for a function", name)
			}
			seen[name] = true
		}
	}
}
