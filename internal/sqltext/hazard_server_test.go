package sqltext

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
)

// builtinsOfSomeVersions are those that not every version since 12 has: the
// first that does and, if it is gone again, the last.
var builtinsOfSomeVersions = map[string]struct{ first, last int }{
	"pg_start_backup": {12, 14}, "pg_stop_backup": {12, 14}, "pg_backup_start": {15, 0}, "pg_backup_stop": {15, 0},
	"pg_log_backend_memory_contexts": {14, 0}, "pg_rotate_logfile_old": {12, 16}, "pg_log_standby_snapshot": {16, 0},
	"pg_sync_replication_slots": {17, 0},
}

// volatileYetNoHazard are the volatile built-in functions of PostgreSQL 15, but
// for the harmless ones, that were looked at and found to do nothing that
// survives ROLLBACK and matters.
var volatileYetNoHazard = strings.Fields(`
	nextval currval lastval pg_nextoid pg_sequence_last_value
	pg_notify pg_notification_queue_usage set_config setseed pg_sleep pg_sleep_for pg_sleep_until
	lo_close lo_creat lo_create lo_from_bytea lo_get lo_lseek lo_lseek64 lo_open lo_put lo_tell lo_tell64 lo_truncate
	lo_truncate64 lo_unlink loread lowrite
	brin_desummarize_range brin_summarize_new_values brin_summarize_range gin_clean_pending_list
	current_query currtid2 pg_blocking_pids pg_safe_snapshot_blocking_pids pg_isolation_test_session_is_blocked
	cursor_to_xml cursor_to_xmlschema query_to_xml query_to_xml_and_xmlschema query_to_xmlschema ts_rewrite ts_stat
	pg_collation_actual_version pg_database_collation_actual_version pg_import_system_collations
	pg_extension_config_dump pg_jit_available pg_last_committed_xact pg_xact_commit_timestamp
	pg_xact_commit_timestamp_origin pg_xact_status txid_status pg_prepared_xact pg_get_multixact_members pg_lock_status
	pg_logical_slot_peek_changes pg_logical_slot_peek_binary_changes pg_stat_clear_snapshot pg_stat_force_next_flush
	pg_stat_have_stats pg_is_wal_replay_paused pg_get_wal_replay_pause_state pg_get_wal_resource_managers
	pg_replication_origin_progress pg_replication_origin_session_is_setup pg_replication_origin_session_progress
	pg_show_replication_origin_status pg_show_all_file_settings pg_hba_file_rules pg_ident_file_mappings
	pg_partition_ancestors pg_partition_tree pg_get_backend_memory_contexts pg_get_shmem_allocations
	suppress_redundant_updates_trigger tsvector_update_trigger tsvector_update_trigger_column unique_key_recheck
	pg_stop_making_pinned_objects plpgsql_validator dsnowball_init dsnowball_lexize`)

// volatileFamiliesWithoutHazard begin the names of functions that only show
// something or that the server calls itself.
var volatileFamiliesWithoutHazard = []string{
	"RI_FKey_", "binary_upgrade_", "pg_control_", "pg_current_", "pg_last_", "pg_ls_", "pg_read_", "pg_stat_file",
	"pg_stat_get_",
}

func serverVersion(t *testing.T, db *sql.DB) int {
	t.Helper()
	var number int
	if err := db.QueryRow("select current_setting('server_version_num')::int / 10000").Scan(&number); err != nil {
		t.Fatal(err)
	}
	return number
}

// querier is a sql.DB or a sql.Tx.
type querier interface {
	QueryRow(query string, args ...any) *sql.Row
}

// hasFunction reports whether a function of that name is in any schema.
func hasFunction(t *testing.T, db querier, name string) bool {
	t.Helper()
	var has bool
	if err := db.QueryRow("select exists (select 1 from pg_catalog.pg_proc where proname = $1)", name).Scan(&has); err != nil {
		t.Fatal(err)
	}
	return has
}

func TestServerHasEveryHazardousBuiltin(t *testing.T) {
	db := open(t)
	version := serverVersion(t, db)
	for name := range strings.FieldsSeq(hazardousBuiltins) {
		versions := builtinsOfSomeVersions[name]
		want := version >= versions.first && (versions.last == 0 || version <= versions.last)
		if got := hasFunction(t, db, name); got != want {
			t.Errorf("version %d has %s: %v, want %v", version, name, got, want)
		}
	}
	for _, p := range hazardousPrefixes {
		var functions int
		const query = "select count(*) from pg_proc where pronamespace = 'pg_catalog'::regnamespace and starts_with(proname, $1)"
		if err := db.QueryRow(query, p.prefix).Scan(&functions); err != nil {
			t.Fatal(err)
		}
		if builtin := strings.HasPrefix(p.prefix, "pg_") && p.prefix != "pg_background_"; (functions > 0) != builtin {
			t.Errorf("%d functions begin with %s", functions, p.prefix)
		}
	}
}

func TestServersExtensionsHaveEveryHazardousFunction(t *testing.T) {
	tx, err := open(t).Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}()
	complete := true
	for _, name := range []string{
		"adminpack", "dblink", "pg_stat_statements", "pg_surgery", "pg_visibility", "pg_prewarm", "postgres_fdw",
	} {
		var available bool
		const query = "select exists (select 1 from pg_available_extensions where name = $1)"
		if err := tx.QueryRow(query, name).Scan(&available); err != nil {
			t.Fatal(err)
		}
		if !available { // not in this version
			complete = false
			continue
		}
		if _, err := tx.Exec("create extension if not exists " + name); err != nil {
			t.Fatal(err)
		}
	}
	found := 0
	for name := range strings.FieldsSeq(hazardousContrib) {
		if hasFunction(t, tx, name) {
			found++
		} else if complete {
			t.Errorf("there is no function %s", name)
		}
	}
	if found == 0 {
		t.Error("none of the functions was found")
	}
}

func TestServersVolatileFunctionsWereAllLookedAt(t *testing.T) {
	db := open(t)
	rows, err := db.Query(`select distinct proname from pg_proc
		where provolatile = 'v' and pronamespace = 'pg_catalog'::regnamespace and not proname ~ 'handler$'
		and prorettype <> 'index_am_handler'::regtype and proname not in ('amvalidate', 'bernoulli', 'system')`)
	if err != nil {
		t.Fatal(err)
	}
	var unknown []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		family := slices.ContainsFunc(volatileFamiliesWithoutHazard, func(p string) bool { return strings.HasPrefix(name, p) })
		listed := family || slices.Contains(volatileYetNoHazard, name)
		switch hazard := HazardOfFunction(name) != HazardNone; {
		case listed && hazard:
			t.Errorf("%s is on both lists", name)
		case !listed && !hazard && !Harmless(name) && !strings.HasSuffix(name, "_size"):
			unknown = append(unknown, name)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		t.Fatal(err)
	}
	// Later versions have functions that nobody has looked at yet.
	if len(unknown) > 0 && serverVersion(t, db) <= 15 {
		t.Errorf("on no list: %q", unknown)
	}
}

func TestServerShowsThatWhatIsCalledAHazardSurvivesRollback(t *testing.T) {
	db := open(t)
	db.SetMaxOpenConns(1)
	for _, c := range []struct{ prepare, hazard, probe, before, after string }{
		{"create sequence s", "select setval('s', 7)", "select last_value::text from s", "1", "7"},
		{"select 1", "select pg_advisory_lock(4711)", "select count(*)::text from pg_locks where locktype = 'advisory'", "0", "1"},
		{"select 1", "select pg_advisory_unlock(4711)", "select count(*)::text from pg_locks where locktype = 'advisory'", "1", "0"},
		{"select 1", "prepare p as select 1", "select count(*)::text from pg_prepared_statements where name = 'p'", "0", "1"},
		{"select 1", "deallocate p", "select count(*)::text from pg_prepared_statements where name = 'p'", "1", "0"},
		{"select 1", "select pg_create_physical_replication_slot('sqltext')", "select count(*)::text from pg_replication_slots", "0", "1"},
		{"select 1", "select pg_drop_replication_slot('sqltext')", "select count(*)::text from pg_replication_slots", "1", "0"},
	} {
		if Analyze(c.hazard).Hazard == HazardNone {
			t.Errorf("%q is no hazard", c.hazard)
		}
		if _, err := db.Exec(c.prepare); err != nil {
			t.Fatal(err)
		}
		probe := func(want string) {
			t.Helper()
			var got string
			if err := db.QueryRow(c.probe).Scan(&got); err != nil || got != want {
				t.Errorf("%q: %s, want %s: %v", c.hazard, got, want, err)
			}
		}
		probe(c.before)
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(c.hazard); err != nil {
			t.Errorf("%q: %v", c.hazard, err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		probe(c.after)
	}
}
