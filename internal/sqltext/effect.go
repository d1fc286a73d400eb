package sqltext

import (
	"slices"
	"strings"
)

// effect says what a call of a function may leave behind.
type effect uint8

const (
	effectOnSession effect = 1 << iota // see Info.SessionState
	effectHidden                       // see Info.HiddenEffect
)

// LeavesSessionState reports whether SessionState is set for more than
// functions that allowed accepts. It is given names as in Functions; nil
// accepts none. CALL, though its procedure is in Functions, is a command that
// no function's permission covers.
func (i *Info) LeavesSessionState(allowed func(name string) bool) bool {
	return i.SessionState && (i.stateByCommand || allowed == nil || i.callsOther(allowed))
}

func (i *Info) callsOther(allowed func(name string) bool) bool {
	for _, name := range i.stateFunctions {
		if !allowed(name) {
			return true
		}
	}
	return false
}

var (
	// stateCommands may change the session, or hide what does. DECLARE … WITH
	// HOLD and temporary objects are told by fields of their own.
	stateCommands = KeywordsOf(Set, Reset, Discard, Listen, Unlisten, Prepare, Deallocate, Load, Do, Call, Execute)
	// hiddenCommands notify, act on another transaction, or hide what does.
	hiddenCommands = KeywordsOf(Notify, Do, Call, Execute, CommitPrepared, RollbackPrepared)
)

// noteEffects takes the statement that is over into account. What functions do
// is known already.
func (a *analysis) noteEffects(k Keyword) {
	switch {
	case k == Other && a.head[0] != wordUpsert:
		a.unknownEffects()
	case k == Copy && a.copyKind == CopyOnServer, k == DDL && a.altersSystem():
		a.info.HiddenEffect = true
	}
}

// unknownEffects assumes the worst of a command.
func (a *analysis) unknownEffects() {
	a.info.stateByCommand, a.info.HiddenEffect = true, true
}

// finishEffects weighs the text as a whole.
func (a *analysis) finishEffects() {
	i := &a.info
	if i.DataModifying && strings.Contains(strings.ToLower(a.lexer.text), "pg_settings") {
		i.stateByCommand = true // UPDATE pg_settings is SET
	}
	i.stateByCommand = i.stateByCommand || i.Suspicious || i.WithHold || i.Temporary || i.Keywords.Intersects(stateCommands)
	i.SessionState = i.stateByCommand || len(i.stateFunctions) > 0
	i.HiddenEffect = i.HiddenEffect || i.Suspicious || i.Keywords.Intersects(hiddenCommands)
}

// settingCall tells the arguments of a set_config from others. What it does to
// the session is known only when they are over: see isLocalSetting.
type settingCall uint8

const (
	settingNone settingCall = iota
	settingBare
	settingQualified
)

var settingNames = [...]string{settingBare: "set_config", settingQualified: "pg_catalog.set_config"}

// noteCall takes the function that p1 ends into account, but for what a
// set_config does, and returns whether it is one.
func (a *analysis) noteCall(name string) settingCall {
	e := effectOf(name)
	if e == 0 || !a.calls() {
		return settingNone
	}
	a.info.HiddenEffect = a.info.HiddenEffect || e&effectHidden != 0
	if e&effectOnSession == 0 {
		return settingNone
	}
	switch name {
	case settingNames[settingBare]:
		return settingBare
	case settingNames[settingQualified]:
		return settingQualified
	}
	a.info.addStateFunction(name)
	return settingNone
}

func (i *Info) addStateFunction(name string) {
	if !slices.Contains(i.stateFunctions, name) {
		i.stateFunctions = append(i.stateFunctions, name)
	}
}

// isLocalSetting reports whether the third of exactly three arguments, which
// end before the current token, is the word TRUE alone.
func (a *analysis) isLocalSetting(f *frame) bool {
	return f.commas == 2 && a.p1.isWord(wordTrue) && a.p2.is(',')
}

// calls reports whether a name that looks like a function's, as p1, can be one
// that the statement calls. Functions holds more: the names of relations and
// types before a list in parentheses, and what definitions only mention.
func (a *analysis) calls() bool {
	if a.p2.rows {
		return false // the alias of a function or a query: f(1) x(a)
	}
	outermost := len(a.frames) == 1
	switch a.head[0] {
	case wordDrop, wordComment, wordGrant, wordRevoke, wordSecurity, wordReassign, wordImport, wordRefresh,
		wordTruncate, wordVacuum, wordAnalyze, wordCluster, wordReindex, wordLock, wordPrepare:
		return false
	case wordAlter: // new defaults, types and constraints are computed for the rows there are
		return a.head[1] == wordTable || a.head[1] == wordDomain
	case wordCreate:
		if a.head[1] == wordIndex || a.head[2] == wordIndex {
			return !outermost || a.where
		}
		return a.computes
	case wordCopy:
		return a.copyKind == CopyNone || a.where
	}
	return true
}

// makesTable reports whether a CREATE is one whose query, if it has one, is run.
func (a *analysis) makesTable() bool {
	for _, id := range a.head[1:] {
		if id == wordTable || id == wordMaterialized || id == wordTemp {
			return true
		}
	}
	return false
}

func (a *analysis) altersSystem() bool { return a.head[0] == wordAlter && a.head[1] == wordSystem }

// effectOf returns what a call of a function may leave behind, given its name
// as in Info.Functions: anything, unless the function is known.
func effectOf(name string) effect {
	if Harmless(name) {
		return 0
	}
	schema, own := "", name
	if dot := strings.LastIndexByte(name, '.'); dot >= 0 {
		schema, own = name[:dot], name[dot+1:]
	}
	if schema == "" || schema == "pg_catalog" {
		if e, ok := builtinEffects[own]; ok {
			return e
		}
	}
	if schema == "" || extensionSchemas[schema] {
		if e, ok := extensionEffects[own]; ok {
			return e
		}
	}
	return effectOnSession | effectHidden
}

func effects(neither, onSession, hidden map[string]bool) map[string]effect {
	m := make(map[string]effect, len(neither)+len(onSession)+len(hidden))
	for e, names := range map[effect]map[string]bool{0: neither, effectOnSession: onSession, effectHidden: hidden} {
		for name := range names {
			m[name] = e
		}
	}
	return m
}

// builtinEffects are those of functions in pg_catalog in some version from 12
// on that are not harmless, or not known to be. Absent on purpose are those
// that run SQL they are given: query_to_xml and its kin, ts_stat, ts_rewrite.
var builtinEffects = effects(set(builtinsWithoutEffect, syntaxLikeFunctions, typesAsFunctions), set(builtinsOnSession), set(builtinsHidden))

const builtinsWithoutEffect = `
	nextval setval pg_nextoid pg_sequence_last_value pg_sequence_parameters
	pg_sleep pg_sleep_for pg_sleep_until
	txid_current txid_current_if_assigned txid_current_snapshot txid_snapshot_xip txid_snapshot_xmax txid_snapshot_xmin
	txid_status txid_visible_in_snapshot pg_current_xact_id pg_current_xact_id_if_assigned pg_current_snapshot
	pg_snapshot_xip pg_snapshot_xmax pg_snapshot_xmin pg_visible_in_snapshot pg_xact_status pg_xact_commit_timestamp
	pg_xact_commit_timestamp_origin pg_last_committed_xact mxid_age
	pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
	lo_close lo_creat lo_create lo_from_bytea lo_get lo_lseek lo_lseek64 lo_open lo_put lo_tell lo_tell64 lo_truncate
	lo_truncate64 lo_unlink loread lowrite
	json_populate_record json_populate_recordset json_to_record json_to_recordset jsonb_populate_record
	jsonb_populate_recordset jsonb_to_record jsonb_to_recordset
	json_to_tsvector jsonb_to_tsvector jsonb_path_exists_tz jsonb_path_match_tz jsonb_path_query_array_tz
	jsonb_path_query_first_tz jsonb_path_query_tz jsonb_set_lax json_array json_arrayagg json_exists json_objectagg
	json_query json_scalar json_serialize json_table json_value
	area array_to_tsvector any_value bit_count bit_xor center date_add date_bin date_subtract diagonal diameter erf erfc
	factorial gamma gcd height isclosed isopen is_normalized lcm lgamma like_escape min_scale normalize npoints pclose
	popen radius random_normal regexp_count regexp_instr regexp_like regexp_substr set_masklen similar_to_escape slope
	string_to_table trim_array trim_scale unistr width array_sample array_shuffle array_reverse array_sort casefold crc32
	crc32c to_bin to_oct uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7
	multirange range_agg range_intersect_agg datemultirange int4multirange int8multirange nummultirange tsmultirange
	tstzmultirange ts_debug ts_lexize ts_parse ts_token_type
	xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlagg xmlcomment xmlvalidate xpath
	xpath_exists
	aclexplode acldefault makeaclitem current_query getdatabaseencoding has_foreign_data_wrapper_privilege
	has_language_privilege has_parameter_privilege has_server_privilege has_tablespace_privilege has_type_privilege
	pg_available_extension_versions pg_available_extensions pg_blocking_pids pg_char_to_encoding
	pg_collation_actual_version pg_collation_for pg_collation_is_visible pg_column_compression pg_column_is_updatable
	pg_conf_load_time pg_config pg_conversion_is_visible pg_current_logfile pg_current_wal_flush_lsn
	pg_current_wal_insert_lsn pg_current_wal_lsn pg_cursor pg_database_collation_actual_version pg_database_size
	pg_describe_object pg_encoding_max_length pg_filenode_relation pg_get_catalog_foreign_keys
	pg_get_function_arg_default pg_get_function_arguments pg_get_function_identity_arguments pg_get_function_result
	pg_get_function_sqlbody pg_get_multixact_members pg_get_object_address pg_get_partition_constraintdef
	pg_get_partkeydef pg_get_publication_tables pg_get_replica_identity_index pg_get_replication_slots
	pg_get_statisticsobjdef pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_identify_object
	pg_identify_object_as_address pg_index_column_has_property pg_index_has_property pg_indexam_has_property
	pg_indexes_size pg_is_other_temp_schema pg_is_wal_replay_paused pg_jit_available pg_last_wal_receive_lsn
	pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_listening_channels pg_lock_status pg_ls_archive_statusdir
	pg_ls_dir pg_ls_logdir pg_ls_tmpdir pg_ls_waldir pg_notification_queue_usage pg_opclass_is_visible
	pg_operator_is_visible pg_opfamily_is_visible pg_options_to_table pg_partition_ancestors pg_partition_root
	pg_partition_tree pg_prepared_statement pg_prepared_xact pg_read_binary_file pg_read_file pg_relation_filenode
	pg_relation_filepath pg_relation_is_publishable pg_relation_is_updatable pg_relation_size
	pg_safe_snapshot_blocking_pids pg_settings_get_flags pg_show_all_file_settings pg_show_all_settings pg_size_bytes
	pg_stat_clear_snapshot pg_stat_file pg_stat_get_activity pg_statistics_obj_is_visible pg_table_size
	pg_tablespace_databases pg_tablespace_location pg_tablespace_size pg_timezone_abbrevs pg_timezone_names
	pg_total_relation_size pg_trigger_depth pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible
	pg_ts_template_is_visible pg_wal_lsn_diff pg_walfile_name pg_walfile_name_offset row_security_active
	to_regcollation to_regoper to_regoperator`

// syntaxLikeFunctions are no functions, and nobody's own is called so without
// quotes but by accident: the special forms of XML, grouping sets, the sampling
// methods of TABLESAMPLE.
const syntaxLikeFunctions = `
	xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable
	rollup cube bernoulli system merge_action`

// typesAsFunctions stand before parentheses where they cast or take a modifier.
const typesAsFunctions = `
	bool box bpchar bytea cidr circle date float4 float8 inet int2 int4 int8 json jsonb line lseg macaddr
	macaddr8 money name oid path point polygon regclass text timestamptz timetz uuid varbit xml`

// builtinsOnSession change or show what a new session has otherwise. The
// sequences' last values are state only for who asks for them.
const builtinsOnSession = `
	set_config setseed currval lastval
	pg_advisory_lock pg_advisory_lock_shared pg_try_advisory_lock pg_try_advisory_lock_shared
	pg_advisory_unlock pg_advisory_unlock_shared pg_advisory_unlock_all`

// builtinsHidden leave nothing in the session and yet something elsewhere.
const builtinsHidden = `
	pg_notify
	lo_import lo_export
	pg_terminate_backend pg_cancel_backend pg_log_backend_memory_contexts
	pg_reload_conf pg_rotate_logfile
	pg_logical_emit_message pg_export_snapshot`

// extensionSchemas are those that extensions are commonly installed into. A
// known name in another schema is a user's function.
var extensionSchemas = set(`public extensions`)

var extensionEffects = effects(set(extensionsWithoutEffect), set(extensionsOnSession), nil)

// extensionsWithoutEffect are pgcrypto, uuid-ossp, pg_trgm, unaccent,
// fuzzystrmatch, hstore, ltree, intarray, citext, earthdistance, pgvector, and
// the best known of PostGIS and TimescaleDB. Names that anyone might choose,
// such as hstore's delete and TimescaleDB's first, are left out.
const extensionsWithoutEffect = `
	crypt gen_salt digest hmac gen_random_bytes encrypt decrypt encrypt_iv decrypt_iv armor dearmor pgp_armor_headers
	pgp_key_id pgp_sym_encrypt pgp_sym_encrypt_bytea pgp_sym_decrypt pgp_sym_decrypt_bytea pgp_pub_encrypt
	pgp_pub_encrypt_bytea pgp_pub_decrypt pgp_pub_decrypt_bytea
	uuid_generate_v1 uuid_generate_v1mc uuid_generate_v3 uuid_generate_v4 uuid_generate_v5 uuid_nil uuid_ns_dns
	uuid_ns_oid uuid_ns_url uuid_ns_x500
	similarity word_similarity strict_word_similarity show_trgm
	unaccent
	levenshtein levenshtein_less_equal soundex difference text_soundex metaphone dmetaphone dmetaphone_alt
	daitch_mokotoff
	hstore akeys avals skeys svals hstore_to_array hstore_to_json hstore_to_json_loose hstore_to_jsonb
	hstore_to_jsonb_loose hstore_to_matrix
	nlevel subltree subpath text2ltree ltree2text lca
	icount sort_asc sort_desc intset
	citext
	earth earth_box earth_distance ll_to_earth latitude longitude
	vector halfvec sparsevec cosine_distance inner_product l1_distance l2_distance l2_normalize l2_norm
	vector_dims vector_norm binary_quantize subvector hamming_distance jaccard_distance
	geometry geography box2d box3d postgis_version
	st_area st_asbinary st_asewkb st_asewkt st_asgeojson st_asmvt st_asmvtgeom st_astext st_azimuth st_boundary
	st_buffer st_centroid st_closestpoint st_clusterdbscan st_clusterkmeans st_collect st_contains st_convexhull
	st_coveredby st_covers st_crosses st_difference st_disjoint st_distance st_distancesphere st_dump st_dwithin
	st_endpoint st_envelope st_equals st_expand st_extent st_force2d st_geogfromtext st_geohash st_geometrytype
	st_geomfromewkb st_geomfromewkt st_geomfromgeojson st_geomfromtext st_geomfromwkb st_intersection st_intersects
	st_isvalid st_length st_linefromtext st_lineinterpolatepoint st_linelocatepoint st_m st_makeenvelope st_makeline
	st_makepoint st_makepolygon st_makevalid st_multi st_npoints st_numpoints st_overlaps st_perimeter st_point
	st_pointfromtext st_pointonsurface st_polygonfromtext st_project st_rotate st_scale st_setsrid st_simplify
	st_snaptogrid st_srid st_startpoint st_subdivide st_tileenvelope st_touches st_transform st_translate st_union
	st_within st_x st_xmax st_xmin st_y st_ymax st_ymin st_z
	time_bucket time_bucket_gapfill`

// extensionsOnSession is pg_trgm's threshold.
const extensionsOnSession = `set_limit`
