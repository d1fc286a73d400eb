package sqltext

import "strings"

// Hazard says what about a text a replay of its transaction could not undo or
// could not prove, judged by the text alone. The zero value is HazardNone.
type Hazard uint8

const (
	// HazardNone: nothing in the text is known to stand in the way. What views,
	// triggers, defaults and functions hide is not seen.
	HazardNone Hazard = iota
	// HazardUnreadable is a Suspicious text: the server may read it otherwise.
	HazardUnreadable
	// HazardTxControl is a text of several statements with transaction control
	// or savepoint commands among them. One statement alone is no hazard:
	// Info.TxControl and Info.Savepoint speak of it.
	HazardTxControl
	// HazardPreparedTransaction is PREPARE TRANSACTION, COMMIT PREPARED or
	// ROLLBACK PREPARED.
	HazardPreparedTransaction
	// HazardAdvisoryLock is a function that takes or releases advisory locks
	// of the session: they survive ROLLBACK, and taken again they nest.
	HazardAdvisoryLock
	// HazardAdvisoryXactLock is a function that takes advisory locks of the
	// transaction: a replay lets go of them for a moment.
	HazardAdvisoryXactLock
	// HazardSessionState is PREPARE, DEALLOCATE, LOAD, DISCARD or DECLARE …
	// WITH HOLD: what they do to the session survives ROLLBACK.
	HazardSessionState
	// HazardCopy is a COPY that reads or writes a file or a program of the
	// server's.
	HazardCopy
	// HazardOutside is a function, or ALTER SYSTEM, whose effect survives
	// ROLLBACK or reaches beyond the database.
	HazardOutside

	hazards // how many there are
)

var hazardNames = [hazards]string{
	HazardNone: "none", HazardUnreadable: "unreadable text", HazardTxControl: "transaction control among several statements",
	HazardPreparedTransaction: "prepared transaction", HazardAdvisoryLock: "session advisory lock",
	HazardAdvisoryXactLock: "transaction advisory lock", HazardSessionState: "session state",
	HazardCopy: "copy on the server", HazardOutside: "effect that survives rollback",
}

// String returns a few words in lower case, "none" for HazardNone.
func (h Hazard) String() string {
	if h >= hazards {
		return "invalid"
	}
	return hazardNames[h]
}

// HazardOfFunction returns what is hazardous about a function, given its name
// as in Info.Functions. The schema does not matter, as extensions can be
// installed into any, but for a few functions whose own name says nothing
// without it.
//
// The list is made of the functions of PostgreSQL 12 and later and of
// extensions whose effect a ROLLBACK does not take back, or not where it
// matters. What only repeats itself is absent: setseed, caches, the upkeep of
// indexes. So is what verification sees or the server undoes: nextval, random,
// large objects, pg_notify, set_config.
func HazardOfFunction(name string) Hazard {
	own, schema := name, ""
	if dot := strings.LastIndexByte(name, '.'); dot >= 0 {
		own, schema = name[dot+1:], name[:dot]
		schema = schema[strings.LastIndexByte(schema, '.')+1:]
	}
	if strings.HasSuffix(own, `"`) {
		return HazardNone // a quoted name that holds the dot itself
	}
	if hazardousNames[own] || schema != "" && (hazardousSchemas[schema] || hazardousInSchema[schema+"."+own]) {
		return HazardOutside
	}
	for _, p := range hazardousPrefixes {
		if strings.HasPrefix(own, p.prefix) {
			return p.hazard
		}
	}
	return HazardNone
}

// hazardousPrefixes begin the names of families of functions. No prefix begins
// another.
var hazardousPrefixes = []struct {
	prefix string
	hazard Hazard
}{
	{"pg_advisory_lock", HazardAdvisoryLock},
	{"pg_advisory_unlock", HazardAdvisoryLock},
	{"pg_try_advisory_lock", HazardAdvisoryLock},
	{"pg_advisory_xact_lock", HazardAdvisoryXactLock},
	{"pg_try_advisory_xact_lock", HazardAdvisoryXactLock},

	{"pg_stat_reset", HazardOutside},   // counters
	{"dblink", HazardOutside},          // other databases
	{"http_", HazardOutside},           // http: requests
	{"curl_", HazardOutside},           // pg_curl: requests
	{"run_command_on_", HazardOutside}, // Citus: other nodes, in transactions of their own
	{"pg_background_", HazardOutside},  // pg_background: workers
	{"memcache_", HazardOutside},       // pgmemcache
	{"nats_", HazardOutside},           // pgnats: messages
	{"pgv_", HazardOutside},            // pg_variables: not transactional unless asked to be
}

var hazardousNames = set(hazardousBuiltins, hazardousContrib, hazardousExtensions)

// hazardousBuiltins are in pg_catalog in some version from 12 on.
const hazardousBuiltins = `
	setval
	lo_import lo_export
	pg_logical_emit_message
	pg_export_snapshot
	pg_terminate_backend pg_cancel_backend pg_log_backend_memory_contexts
	pg_reload_conf pg_rotate_logfile pg_rotate_logfile_old
	pg_switch_wal pg_create_restore_point pg_log_standby_snapshot pg_promote pg_wal_replay_pause pg_wal_replay_resume
	pg_start_backup pg_stop_backup pg_backup_start pg_backup_stop
	pg_create_physical_replication_slot pg_create_logical_replication_slot pg_copy_physical_replication_slot
	pg_copy_logical_replication_slot pg_drop_replication_slot pg_replication_slot_advance pg_sync_replication_slots
	pg_logical_slot_get_changes pg_logical_slot_get_binary_changes
	pg_replication_origin_create pg_replication_origin_drop pg_replication_origin_advance
	pg_replication_origin_session_setup pg_replication_origin_session_reset pg_replication_origin_xact_setup
	pg_replication_origin_xact_reset`

// hazardousContrib come with PostgreSQL as extensions: adminpack,
// pg_stat_statements, pg_surgery, pg_visibility, pg_prewarm, postgres_fdw.
const hazardousContrib = `
	pg_file_write pg_file_rename pg_file_unlink pg_file_sync
	pg_stat_statements_reset
	heap_force_kill heap_force_freeze
	pg_truncate_visibility_map
	autoprewarm_start_worker autoprewarm_dump_now
	postgres_fdw_disconnect postgres_fdw_disconnect_all`

// hazardousExtensions are others': http, Citus, oracle_fdw, jdbc_fdw, pgmail,
// TimescaleDB, YugabyteDB, an old adminpack, and the counters of monitoring
// extensions.
const hazardousExtensions = `
	http
	master_run_on_worker recover_prepared_transactions citus_move_shard_placement citus_copy_shard_placement
	rebalance_table_shards citus_drain_node citus_split_shard_by_split_points isolate_tenant_to_new_shard
	citus_cleanup_orphaned_resources citus_cleanup_orphaned_shards
	oracle_execute oracle_close_connections
	jdbc_exec
	pgmail
	start_background_workers stop_background_workers restart_background_workers
	yb_cancel_transaction
	pg_logfile_rotate
	pg_stat_monitor_reset pg_stat_kcache_reset pg_qualstats_reset pg_wait_sampling_reset_profile`

// hazardousSchemas belong to extensions that do nothing but reach outside:
// aws_s3, pg_amqp, azure_storage, pgsmtp, and the packages of orafce.
var hazardousSchemas = set(`aws_s3 amqp azure_storage pgsmtp utl_file dbms_pipe dbms_alert dbms_output`)

// hazardousInSchema are functions that their own name does not tell.
var hazardousInSchema = set(`aws_lambda.invoke kafka.produce`)

// transactionCommands are those that must stand alone in their text.
var transactionCommands = KeywordsOf(Begin, Commit, Rollback, Savepoint, Release, RollbackTo,
	PrepareTransaction, CommitPrepared, RollbackPrepared)

// hazardOfCommand judges a statement by its first words.
func (a *analysis) hazardOfCommand(k Keyword) (h Hazard, name string) {
	switch k {
	case PrepareTransaction, CommitPrepared, RollbackPrepared:
		return HazardPreparedTransaction, k.String()
	case DDL:
		if a.altersSystem() {
			return HazardOutside, "ALTER SYSTEM"
		}
	case Copy:
		if a.copyKind == CopyOnServer {
			return HazardCopy, k.String()
		}
	case Prepare, Deallocate, Load, Discard:
		return HazardSessionState, k.String()
	case Declare:
		if a.holds {
			return HazardSessionState, "DECLARE … WITH HOLD"
		}
	}
	return HazardNone, ""
}

// commandHazardOrder puts the gravest first.
var commandHazardOrder = [hazards]uint8{
	HazardPreparedTransaction: 1, HazardOutside: 2, HazardCopy: 3, HazardSessionState: 4, HazardNone: 5,
}

// noteHazard takes the statement that is over into account.
func (a *analysis) noteHazard(k Keyword) {
	if a.transactionCommand == None && transactionCommands.Has(k) {
		a.transactionCommand = k
	}
	h, name := a.hazardOfCommand(k)
	if commandHazardOrder[h] < commandHazardOrder[a.info.Hazard] {
		a.info.Hazard, a.info.HazardName = h, name
	}
}

// finishHazard weighs what the statements' commands gave against the text as a
// whole and the functions. Functions come last, so that one who allows a
// function knows that nothing but other functions can stand in the way still.
func (a *analysis) finishHazard() {
	i := &a.info
	switch {
	case i.Suspicious:
		i.Hazard, i.HazardName = HazardUnreadable, ""
	case i.Statements > 1 && a.transactionCommand != None:
		i.Hazard, i.HazardName = HazardTxControl, a.transactionCommand.String()
	case i.Hazard == HazardNone:
		for _, name := range i.Functions {
			if h := HazardOfFunction(name); h != HazardNone {
				i.Hazard, i.HazardName = h, name
				return
			}
		}
	}
}
