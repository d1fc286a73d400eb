package sqltext

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// builtinsOfLaterVersions are not in every version from 12 on.
var builtinsOfLaterVersions = set(`
	pg_current_xact_id pg_current_xact_id_if_assigned pg_current_snapshot pg_snapshot_xip pg_snapshot_xmax
	pg_snapshot_xmin pg_visible_in_snapshot pg_xact_status pg_xact_commit_timestamp_origin jsonb_set_lax
	jsonb_path_exists_tz jsonb_path_match_tz jsonb_path_query_array_tz jsonb_path_query_first_tz jsonb_path_query_tz
	json_array json_arrayagg json_exists json_objectagg json_query json_scalar json_serialize json_table json_value
	any_value array_sample array_shuffle array_reverse array_sort bit_count bit_xor casefold crc32 crc32c date_add
	date_bin date_subtract erf erfc gamma lgamma gcd lcm is_normalized min_scale normalize random_normal regexp_count
	regexp_instr regexp_like regexp_substr string_to_table to_bin to_oct trim_array trim_scale unistr
	uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7
	multirange range_agg range_intersect_agg datemultirange int4multirange int8multirange nummultirange tsmultirange
	tstzmultirange
	has_parameter_privilege pg_column_compression pg_database_collation_actual_version pg_get_catalog_foreign_keys
	pg_get_function_sqlbody pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_settings_get_flags
	to_regcollation pg_log_backend_memory_contexts`)

func TestServerHasEveryBuiltinWithKnownEffect(t *testing.T) {
	db := open(t)
	syntax := set(syntaxLikeFunctions)
	for name := range builtinEffects {
		var builtin bool
		const query = `select exists (select 1 from pg_proc where proname = $1 and pronamespace = 'pg_catalog'::regnamespace)
			or exists (select 1 from pg_type where typname = $1 and typnamespace = 'pg_catalog'::regnamespace)`
		if err := db.QueryRow(query, name).Scan(&builtin); err != nil {
			t.Fatal(err)
		}
		if !builtin && !builtinsOfLaterVersions[name] && !syntax[name] {
			t.Errorf("there is no function %s", name)
		}
	}
}

func TestServersExtensionsHaveTheFunctionsWithKnownEffect(t *testing.T) {
	tx, err := open(t).Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}()
	for _, name := range []string{
		"pgcrypto", `"uuid-ossp"`, "pg_trgm", "unaccent", "fuzzystrmatch", "hstore", "ltree", "intarray", "citext", "cube", "earthdistance",
	} {
		if _, err := tx.Exec("create extension " + name); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := set(`vector halfvec sparsevec cosine_distance inner_product l1_distance l2_distance l2_normalize l2_norm
		vector_dims vector_norm binary_quantize subvector hamming_distance jaccard_distance geometry geography box2d box3d
		postgis_version time_bucket time_bucket_gapfill daitch_mokotoff`) // the last since version 16
	for name := range extensionEffects {
		if !elsewhere[name] && !strings.HasPrefix(name, "st_") && !hasFunction(t, tx, name) {
			t.Errorf("there is no function %s", name)
		}
	}
}

// sessionState shows all of a session's state that the server has a view of.
const sessionState = `select concat_ws(E'\n', current_user, session_user,
	(select string_agg(name || '=' || setting, ',' order by name) from pg_settings where name not like 'transaction%'),
	(select string_agg(name || ': ' || statement, ',' order by name) from pg_prepared_statements),
	(select string_agg(name, ',' order by name) from pg_cursors),
	(select string_agg('listening to ' || c, ',' order by c) from pg_listening_channels() c),
	(select string_agg(objid || mode, ',' order by objid, mode) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
	(select string_agg(relname, ',' order by relname) from pg_class where relnamespace = pg_my_temp_schema()))`

// look returns what a query shows, be it an error.
func look(t *testing.T, c *sql.Conn, query string) string {
	t.Helper()
	var shown sql.NullString
	if err := c.QueryRowContext(t.Context(), query).Scan(&shown); err != nil {
		return err.Error()
	}
	return shown.String
}

func execute(t *testing.T, c *sql.Conn, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if text == "" {
			continue
		}
		if _, err := c.ExecContext(t.Context(), text); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	}
}

// newSession returns a session that nothing was done in and that ends when the
// test does.
func newSession(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	db.SetMaxIdleConns(0)
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestServerShowsSessionStateThatANewSessionLacks(t *testing.T) {
	db := open(t)
	execute(t, newSession(t, db), "create sequence s", "create procedure p() language sql as $$select set_config('work_mem', '5MB', false)$$",
		"create function f() returns text language sql as $$select set_config('work_mem', '5MB', false)$$", "create table t (a int)")
	for _, c := range []struct{ before, text, probe string }{
		{text: "set work_mem = '5MB'"},
		{text: "set session work_mem = '5MB'"},
		{text: "set session characteristics as transaction isolation level serializable"},
		{text: "set role pg_monitor"},
		{text: "set session authorization pg_monitor"},
		{text: "set time zone 'Asia/Tokyo'"},
		{text: "set names 'LATIN1'"},
		{text: "set local.x = '1'", probe: "select current_setting('local.x', true)"},
		{text: "set transaction.x = '1'", probe: "select current_setting('transaction.x', true)"},
		{text: "set session transaction.x = '1'", probe: "select current_setting('transaction.x', true)"},
		{text: "set constraints.x = '1'", probe: "select current_setting('constraints.x', true)"},
		{before: "set work_mem = '5MB'", text: "reset work_mem"},
		{before: "set work_mem = '5MB'", text: "reset all"},
		{before: "create temp table x (a int)", text: "discard temp"},
		{text: "listen c"},
		{before: "listen c", text: "unlisten *"},
		{text: "prepare q as select 1"},
		{before: "prepare q as select 1", text: "deallocate q"},
		{before: "prepare q as select f()", text: "execute q"},
		{before: "prepare q as select f()", text: "explain analyze execute q"},
		{before: "prepare q as select f()", text: "create table v as execute q"},
		{text: "declare c cursor with hold for select 1"},
		{text: "load 'auto_explain'", probe: "select current_setting('auto_explain.log_analyze', true)"},
		{text: "create temp table x (a int)"},
		{text: "create local temporary view x as select 1"},
		{text: "select 1 as a into temp x"},
		{text: "create table pg_temp.x (a int)"},
		{text: "do $$begin perform set_config('work_mem', '5MB', false); end$$"},
		{text: "call p()"},
		{text: "select f()"},
		{text: "select * from f() as x(a)"},
		{text: "create table w as select f()"},
		{text: "alter table t add b text default f()", before: "insert into t values (1)"},
		{text: "select set_config('work_mem', '5MB', false)"},
		{text: "select set_config('work_mem', '5MB', true is null)"},
		{text: "select query_to_xml($$select set_config('work_mem', '5MB', false)$$, true, true, '')"},
		{text: "select pg_advisory_lock(4711)"},
		{text: "select pg_try_advisory_lock_shared(4711)"},
		{before: "select pg_advisory_lock(4711)", text: "select pg_advisory_unlock(4711)"},
		{before: "select pg_advisory_lock(4711)", text: "select pg_advisory_unlock_all()"},
		{before: "select nextval('s')", text: "select 1, lastval()"}, // shows state that is there already
		{before: "select nextval('s')", text: "select 1, currval('s')"},
	} {
		t.Run(c.text, func(t *testing.T) {
			if info := Analyze(c.text); !info.SessionState {
				t.Errorf("no session state: %+v", info)
			}
			session, fresh := newSession(t, db), newSession(t, db)
			if before, nothing := look(t, session, sessionState), look(t, fresh, sessionState); before != nothing {
				t.Fatalf("two new sessions differ: %s\nand\n%s", before, nothing)
			}
			execute(t, session, c.before)
			if strings.Contains(c.text, "val(") {
				if got, want := look(t, session, c.text), look(t, fresh, c.text); got == want {
					t.Errorf("a new session shows the same: %s", got)
				}
				return
			}
			probe := c.probe
			if probe == "" {
				probe = sessionState
			}
			before := look(t, session, probe)
			execute(t, session, "begin", c.text, "commit")
			after := look(t, session, probe)
			if after == before {
				t.Errorf("nothing has changed: %s", after)
			}
			if got := look(t, fresh, probe); c.before == "" && got == after {
				t.Errorf("a new session has the same: %s", got)
			}
		})
	}
}

// What is drawn after setseed is the same in every session, and not otherwise.
func TestServerShowsThatSetseedOutlivesItsTransaction(t *testing.T) {
	db := open(t)
	draw := func() string {
		session := newSession(t, db)
		execute(t, session, "begin", "select setseed(0.5)", "commit")
		return look(t, session, "select random()::text")
	}
	first := draw()
	if second := draw(); second != first || !Analyze("select setseed(0.5)").SessionState {
		t.Errorf("%s, then %s", first, second)
	}
	if other := look(t, newSession(t, db), "select random()::text"); other == first {
		t.Errorf("%s without a seed", other)
	}
}

func TestServerShowsThatTextsWithoutSessionStateLeaveNone(t *testing.T) {
	db := open(t)
	session := newSession(t, db)
	execute(t, session, "create sequence s", "create table t (a int primary key, b text)", "create domain d as int",
		"create function f(a int) returns int immutable language sql as 'select a'")
	want := look(t, session, sessionState)
	texts := append([]string{
		"insert into t (a, b) values (1, now()::text), (2, md5('x')) on conflict (a) do update set b = excluded.b",
		"update t set (a, b) = (3, lower('A')) where a in (1)",
		"delete from t where a = 3 returning a, b",
		"select * from t for update", "lock t", "truncate t", "analyze t (a)",
		"set local work_mem = '5MB'", "set local time zone 'Asia/Tokyo'", "set local role pg_monitor",
		"set local session authorization pg_monitor", "set local search_path = pg_temp", "set transaction read only",
		"set session transaction read only", "set transaction isolation level serializable", "set constraints all deferred",
		"select set_config('work_mem', '5MB', true)", "select pg_catalog.SET_CONFIG('work_mem', upper('5') || 'MB', /* false */ TRUE)",
		"declare c cursor for select 1", "declare c cursor without hold for select 1", "notify c", "notify c, 'x'", "select pg_notify('c', 'x')",
		"select nextval('s'), setval('s', 7)", "select pg_advisory_xact_lock(4711), pg_try_advisory_xact_lock_shared(4711, 2)",
		"select pg_sleep(0), txid_current()", "select lo_open(lo_create(0), 131072)", "select random()",
		"select * from jsonb_to_recordset('[]') x(a int, b varchar(3))", "select json_populate_record(null::t, '{}')",
		"savepoint x; rollback to x; release x",
		"create table u (a numeric(3), b int default f(1), check (f(a::int) > 0)) ", "create table v as select lower('A') a",
		"create index on t (a, lower(b))", "create view w as select f(1)", "create materialized view m as select 1",
		"alter table t add c int default 3, add unique (c), add foreign key (c) references t (a)",
		"alter function f(int) stable", "comment on function f(int) is 'x'", "grant execute on function f(int) to public",
		"drop function f(int) cascade", "create table t2 (like t)", "drop table t2",
		"select pg_export_snapshot()", "select count(*) from pg_ls_dir('.')", "select pg_size_bytes('1 MB'), regexp_like('a', 'b')",
	}, provenReads...)
	for _, text := range texts {
		if info := Analyze(text); info.SessionState {
			t.Errorf("%q is said to leave session state: %+v", text, info)
		}
		execute(t, session, "begin", ";"+text, "commit")
		if got := look(t, session, sessionState); got != want {
			t.Fatalf("%q has left something in the session: %s\nwas\n%s", text, got, want)
		}
	}
}

func TestServerKeepsAnEmptyParameterAfterSetLocal(t *testing.T) {
	session := newSession(t, open(t))
	const unknown, probe = "unknown", "select coalesce(current_setting('own.parameter', true), 'unknown')"
	if got := look(t, session, probe); got != unknown {
		t.Errorf("%q before", got)
	}
	execute(t, session, "begin", "set local own.parameter = '1'", "commit")
	if got := look(t, session, probe); got != "" {
		t.Errorf("%q afterwards", got)
	}
}

func TestServerNotifiesAtCommitWithoutTransactionID(t *testing.T) {
	dsn := pgtest.DSN(t)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	session, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	}()
	execute(t, session, "create table t (a int)", "insert into t values (1)",
		"create function f() returns void language sql as $$select pg_notify('c', 'f')$$",
		"create procedure p() language sql as $$select pg_notify('c', 'p')$$", "prepare q as select pg_notify('c', 'q')")
	listener := pq.NewListener(dsn, 0, 0, func(_ pq.ListenerEventType, err error) {
		if err != nil {
			t.Error(err)
		}
	})
	defer func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := listener.Listen("c"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i, text := range []string{
		"notify c, '%d'", "select pg_notify('c', '%d')", "select count(pg_notify('c', '%d')) from t", "with x as (select pg_notify('c', '%d')) table x",
		"do $$begin notify c, '%d'; end$$", "select f()", "call p()", "execute q", "explain analyze execute q",
		"select query_to_xml($$select pg_notify('c', '%d')$$, true, true, '')",
		"declare x cursor with hold for select pg_notify('c', '%d')",
	} {
		if strings.Contains(text, "%d") {
			text = fmt.Sprintf(text, i)
		}
		if info := Analyze(text); !info.HiddenEffect {
			t.Errorf("%q has no hidden effect: %+v", text, info)
		}
		execute(t, session, "begin", text)
		if got := look(t, session, "select txid_current_if_assigned()"); got != "" {
			t.Errorf("%q got the transaction id %s", text, got)
		}
		execute(t, session, "commit")
		select {
		case <-listener.Notify:
		case <-ctx.Done():
			t.Fatalf("%q: no notification", text)
		}
	}
}
