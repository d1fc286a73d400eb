//go:build unix

package pgserver

import "testing"

func TestSchemasAreApart(t *testing.T) {
	server := host(t)
	a, b := must(server.NewSchema(t.Context()))(t), must(server.NewSchema(t.Context()))(t)
	execute(t, connect(t, a.DSN), "create table t as select 'a' as v")
	execute(t, connect(t, b.DSN), "create table t as select 'b' as v")
	if got := query(t, connect(t, a.DSN), "select v from t"); got != "a" {
		t.Errorf("in a there is %s", got)
	}
	check(t, a.Drop(t.Context()))
	check(t, a.Drop(t.Context()))
	if got := query(t, connect(t, b.DSN), "select v from t"); got != "b" {
		t.Errorf("in b there is %s", got)
	}
}

func TestSchemaIsDroppedDespiteSessionsThatHoldOn(t *testing.T) {
	server := host(t)
	for name, hold := range map[string]string{
		"a lock on a table":             "lock table t in access share mode",
		"a table that nobody else sees": "create table new ()",
	} {
		t.Run(name, func(t *testing.T) {
			schema := must(server.NewSchema(t.Context()))(t)
			db := connect(t, schema.DSN)
			execute(t, db, "create table t ()")
			tx := must(db.Begin())(t)
			execute(t, tx, hold)
			check(t, schema.Drop(t.Context()))
			if got := query(t, connect(t, server.DSN()), "select count(*) from pg_namespace where nspname = $1", schema.Name); got != "0" {
				t.Error("the schema is still there")
			}
			if err := tx.Commit(); err == nil {
				t.Error("the session was not terminated")
			}
		})
	}
}
