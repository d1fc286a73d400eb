package sqltext

import "strings"

// Harmless reports whether a name, as it appears in Info.Functions, is that of
// a built-in function that may be called any number of times: it changes no
// data and no state of the session, waits for nothing, runs no SQL it is given
// and reaches nothing outside the server. Unqualified names count, though a
// user's function may share one; of the schemas only pg_catalog does.
//
// The list holds functions that exist in PostgreSQL 12 and later. Absent on
// purpose, among others: nextval, currval and their kin, set_config,
// advisory locks, dblink, pg_notify, txid_current and pg_current_xact_id (they
// assign an id), large objects, pg_sleep, query_to_xml and ts_stat (they run
// SQL), json_populate_record and its kin (they convert to types of the user's).
func Harmless(name string) bool {
	if rest, ok := strings.CutPrefix(name, "pg_catalog."); ok {
		name = rest
	}
	return harmless[name]
}

var harmless = set(
	// aggregates
	`array_agg avg bit_and bit_or bool_and bool_or corr count covar_pop covar_samp every json_agg json_object_agg
	jsonb_agg jsonb_object_agg max min mode percentile_cont percentile_disc regr_avgx regr_avgy regr_count
	regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp string_agg sum var_pop
	var_samp variance`,
	// windows
	`cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number`,
	// numbers
	`abs acos acosd asin asind atan atan2 atan2d atand cbrt ceil ceiling cos cosd cot cotd degrees div exp floor ln log
	log10 mod pi power pow radians round scale sign sin sind sqrt tan tand trunc width_bucket acosh asinh atanh cosh
	sinh tanh`,
	// strings and bytes
	`ascii bit_length btrim char_length character_length chr concat concat_ws convert convert_from convert_to decode
	encode format get_bit get_byte initcap left length like lower lpad ltrim md5 notlike octet_length overlay
	parse_ident position quote_ident quote_literal quote_nullable regexp_match regexp_matches regexp_replace
	regexp_split_to_array regexp_split_to_table repeat replace reverse right rpad rtrim set_bit set_byte sha224 sha256
	sha384 sha512 split_part starts_with string_to_array strpos substr substring to_ascii to_hex translate upper`,
	// dates and times
	`age date_part date_trunc isfinite justify_days justify_hours justify_interval make_date make_interval make_time
	make_timestamp make_timestamptz now overlaps statement_timestamp timezone to_char to_date to_number to_timestamp
	transaction_timestamp`,
	// JSON
	`json_array_elements json_array_elements_text json_array_length json_build_array json_build_object json_each
	json_each_text json_extract_path json_extract_path_text json_object json_object_keys json_strip_nulls json_typeof
	jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object
	jsonb_contained jsonb_contains jsonb_each jsonb_each_text jsonb_exists jsonb_exists_all jsonb_exists_any
	jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_keys jsonb_path_exists
	jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty jsonb_set
	jsonb_strip_nulls jsonb_typeof row_to_json to_json to_jsonb array_to_json`,
	// arrays, ranges, sets, enumerations
	`array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position array_positions
	array_prepend array_remove array_replace array_to_string array_upper cardinality enum_first enum_last enum_range
	generate_series generate_subscripts isempty lower_inc lower_inf num_nonnulls num_nulls range_merge unnest upper_inc
	upper_inf int4range int8range numrange daterange tsrange tstzrange`,
	// text search
	`get_current_ts_config numnode phraseto_tsquery plainto_tsquery querytree setweight strip to_tsquery to_tsvector
	ts_delete ts_filter ts_headline ts_rank ts_rank_cd tsquery_phrase tsvector_to_array websearch_to_tsquery`,
	// network addresses
	`abbrev broadcast family host hostmask inet_merge inet_same_family masklen netmask network`,
	// the session and the catalog
	`col_description current_database current_schema current_schemas current_setting format_type
	has_any_column_privilege has_column_privilege has_database_privilege has_function_privilege has_schema_privilege
	has_sequence_privilege has_table_privilege inet_client_addr inet_client_port inet_server_addr inet_server_port
	obj_description pg_backend_pid pg_client_encoding pg_column_size pg_encoding_to_char pg_function_is_visible
	pg_get_constraintdef pg_get_expr pg_get_functiondef pg_get_indexdef pg_get_keywords pg_get_ruledef
	pg_get_serial_sequence pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role pg_my_temp_schema
	pg_postmaster_start_time pg_size_pretty pg_table_is_visible pg_type_is_visible pg_typeof shobj_description
	to_regclass to_regnamespace to_regproc to_regprocedure to_regrole to_regtype version`,
	// volatile, yet without any effect
	harmlessVolatile,
)

// harmlessVolatile functions give another answer each time and leave nothing
// behind but, for random, the next number of the session.
const harmlessVolatile = `clock_timestamp gen_random_uuid pg_is_in_recovery random timeofday`

// builtinTypes are the types that a value may be cast to without calling what
// a user may have written, and words that end the names of some.
var builtinTypes = set(
	`bigint bit bool boolean box bpchar bytea char character cid cidr circle date daterange dec decimal double float
	float4 float8 inet int int2 int4 int4range int8 int8range integer interval json jsonb jsonpath line lseg macaddr
	macaddr8 money name national nchar numeric numrange oid path pg_lsn point polygon precision real regclass regconfig
	regdictionary regnamespace regoper regoperator regproc regprocedure regrole regtype smallint text tid time
	timestamp timestamptz timetz tsquery tsrange tstzrange tsvector txid_snapshot uuid varbit varchar varying xid xml`,
)

func set(lists ...string) map[string]bool {
	m := make(map[string]bool)
	for _, list := range lists {
		for name := range strings.FieldsSeq(list) {
			m[name] = true
		}
	}
	return m
}
