package sqltext

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestHazardIsTheFirstOfSeveral(t *testing.T) {
	for text, want := range map[string]struct {
		hazard Hazard
		name   string
	}{
		"":                                  {},
		"select 1":                          {},
		"insert into t values (now())":      {},
		"select 'pg_advisory_lock(1)'":      {},
		`select 1 as "setval"`:              {},
		"select setval from t":              {},
		"select nextval('s'), currval('s')": {},
		"select pg_notify('a', 'b'), txid_current(), random(), setseed(1), set_config('a', 'b', false)": {},
		"select pg_logical_slot_peek_changes('s', null, null)":                                          {},
		"select lo_create(0), pg_sleep(1), pg_stat_get_snapshot_timestamp()":                            {},

		"select 'a": {hazard: HazardUnreadable},
		"copy t to program 'x'; commit; select setval('s', 1), 'a": {hazard: HazardUnreadable},
		`select U&"setva\006c"('s', 1)`:                            {hazard: HazardUnreadable},

		"commit":                     {},
		"begin;":                     {},
		"; rollback;;":               {},
		"rollback and chain":         {},
		"savepoint s":                {},
		"release s":                  {},
		"rollback to s":              {},
		"select 1; select 2":         {},
		"select 1; commit":           {HazardTxControl, "COMMIT"},
		"end; select 1":              {HazardTxControl, "COMMIT"},
		"begin; commit":              {HazardTxControl, "BEGIN"},
		"savepoint s; select 1":      {HazardTxControl, "SAVEPOINT"},
		"select 1; release s":        {HazardTxControl, "RELEASE"},
		"select 1; rollback to s":    {HazardTxControl, "ROLLBACK TO"},
		"select 1; abort":            {HazardTxControl, "ROLLBACK"},
		"prepare transaction 'a'; ;": {HazardPreparedTransaction, "PREPARE TRANSACTION"},
		"select setval('s', 1); load 'a'; prepare transaction 'a'": {HazardTxControl, "PREPARE TRANSACTION"},

		"PREPARE TRANSACTION 'a'": {HazardPreparedTransaction, "PREPARE TRANSACTION"},
		"commit prepared 'a'":     {HazardPreparedTransaction, "COMMIT PREPARED"},
		"rollback prepared 'a'":   {HazardPreparedTransaction, "ROLLBACK PREPARED"},

		"prepare p as select 1":                         {HazardSessionState, "PREPARE"},
		`prepare "transaction" as select setval('s',1)`: {HazardSessionState, "PREPARE"},
		"deallocate p":                                  {HazardSessionState, "DEALLOCATE"},
		"load 'a'":                                      {HazardSessionState, "LOAD"},
		"discard all":                                   {HazardSessionState, "DISCARD"},
		"declare c scroll cursor with hold for table t": {HazardSessionState, "DECLARE … WITH HOLD"},
		"declare c cursor for table t":                  {},
		"declare c cursor without hold for table t":     {},
		"select 1; discard temp; load 'a'":              {HazardSessionState, "DISCARD"},
		"execute p":                                     {},
		"set a = 1":                                     {},
		"fetch c":                                       {},

		"copy t from '/a'":                                          {HazardCopy, "COPY"},
		"copy t (a) to program 'x' (format csv)":                    {HazardCopy, "COPY"},
		"copy (select setval('s', 1)) to '/a'":                      {HazardCopy, "COPY"},
		"copy t to stdout; copy t to '/a'; load 'a'":                {HazardCopy, "COPY"},
		"copy t from stdin":                                         {},
		"copy t to stdout":                                          {},
		"copy t from stdin where a is distinct from b":              {},
		"copy t to stdout; copy t from stdin":                       {},
		"copy (select a is distinct from setval('s', 1)) to stdout": {HazardOutside, "setval"},

		"alter system set a = 1":                                 {HazardOutside, "ALTER SYSTEM"},
		"load 'a'; alter system reset all":                       {HazardOutside, "ALTER SYSTEM"},
		"alter table system add a int":                           {},
		`alter "system" set a = 1`:                               {},
		"select SETVAL('s', 1)":                                  {HazardOutside, "setval"},
		"update t set a = pg_catalog.setval('s', 1) returning a": {HazardOutside, "pg_catalog.setval"},
		"select pg_advisory_lock(1), setval('s', 1)":             {HazardAdvisoryLock, "pg_advisory_lock"},
		"select setval('s', 1), pg_advisory_lock(1)":             {HazardOutside, "setval"},
		"select now(), pg_advisory_xact_lock(1), dblink('a')":    {HazardAdvisoryXactLock, "pg_advisory_xact_lock"},
		"load 'a'; select pg_advisory_xact_lock(1)":              {HazardSessionState, "LOAD"},
		"select x.pg_try_advisory_xact_lock_shared(1)":           {HazardAdvisoryXactLock, "x.pg_try_advisory_xact_lock_shared"},
	} {
		info := Analyze(text)
		if info.Hazard != want.hazard || info.HazardName != want.name {
			t.Errorf("%q: %v in %q, want %v in %q", text, info.Hazard, info.HazardName, want.hazard, want.name)
		}
	}
}

// hazardous holds a function for every entry of the lists, and what it is.
func hazardous() map[string]Hazard {
	all := map[string]Hazard{}
	for name := range hazardousNames {
		all[name] = HazardOutside
	}
	for _, p := range hazardousPrefixes {
		all[p.prefix] = p.hazard
		all[p.prefix+"x"] = p.hazard
	}
	for schema := range hazardousSchemas {
		all[schema+".anything"] = HazardOutside
	}
	for name := range hazardousInSchema {
		all[name] = HazardOutside
	}
	return all
}

func TestEveryHazardousFunctionIsFoundHoweverItIsWritten(t *testing.T) {
	all := hazardous()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		quoted := `"` + strings.ReplaceAll(name, ".", `"."`) + `"`
		for _, spelled := range []string{
			name, strings.ToUpper(name), quoted, "db.S." + name, `"a.b"."c""d".` + quoted,
			strings.ReplaceAll(name, ".", " /* c */ .\n"), strings.ToUpper(name[:1]) + name[1:] + " -- c\n ",
		} {
			for _, before := range []string{"select ", "select 1 from t where now() < ", "call ", "insert into t values ("} {
				text := before + spelled + "(1)" + strings.Repeat(")", strings.Count(before, "values ("))
				info := Analyze(text)
				if info.Hazard != all[name] || info.HazardName == "" || info.ProvenRead || info.OwnRows {
					t.Errorf("%q: %v in %q, want %v", text, info.Hazard, info.HazardName, all[name])
				}
				if h := HazardOfFunction(info.HazardName); h != info.Hazard {
					t.Errorf("%q alone: %v, want %v", info.HazardName, h, info.Hazard)
				}
			}
		}
	}
}

func TestNamesThatOnlyLookHazardousAreNot(t *testing.T) {
	for _, text := range []string{
		`select "SETVAL"('s', 1)`,
		`select "x.setval"('s', 1)`,
		`select "x.dblink_exec"('s')`,
		`select "pg_catalog.setval"('s', 1)`,
		`select "x.amqp".publish('s')`,
		`select "x"."amqp.publish"('s')`,
		"select amqp(1), invoke(1), produce(1), aws_s3(1)",
		"select aws_commons.create_s3_uri('a', 'b', 'c')",
		"select setval.f(1), dblink.f(1)",
		"select my_setval(1), pg_advisory(1), mydblink(1), https(1), httpx_get(1)",
		"select pg_file_read('a', 0, 1), pg_stat_file('a'), pg_read_file('a')",
		"insert into setval (a) values (1)",
		"with dblink(a) as (select 1) table dblink",
	} {
		if info := Analyze(text); info.Hazard != HazardNone {
			t.Errorf("%q: %v in %q", text, info.Hazard, info.HazardName)
		}
	}
}

func TestNoHazardousFunctionIsHarmless(t *testing.T) {
	for name := range harmless {
		if h := HazardOfFunction(name); h != HazardNone {
			t.Errorf("%s: %v", name, h)
		}
	}
	for name := range ownFunctions {
		if h := HazardOfFunction(name); h != HazardNone {
			t.Errorf("%s: %v", name, h)
		}
	}
	for name := range catalogFunctions {
		if !Harmless(name) {
			t.Errorf("%s need not be told apart", name)
		}
	}
}

func TestEveryHazardHasAName(t *testing.T) {
	seen := map[string]bool{}
	for h := range hazards {
		if name := h.String(); name == "" || seen[name] {
			t.Errorf("hazard %d is called %q", h, name)
		}
		seen[h.String()] = true
	}
	if got := Hazard(255).String(); got != "invalid" {
		t.Errorf("%q", got)
	}
	var none Hazard
	if none != HazardNone || none.String() != "none" {
		t.Errorf("the zero value is %v", none)
	}
}
