package parity

import "strings"

// The scripts are split at the lines that are empty.

const dropSchema = `
DROP TABLE IF EXISTS parity_types, parity_item, parity_slow, parity_copy

DROP DOMAIN IF EXISTS parity_short

DROP TYPE IF EXISTS parity_mood

DROP FUNCTION IF EXISTS parity_sleep(), parity_raise(text)
`

const createSchema = `
CREATE TYPE parity_mood AS ENUM ('sad', 'happy')

CREATE DOMAIN parity_short AS varchar(5) CHECK (VALUE <> 'no')

CREATE TABLE parity_item (id int PRIMARY KEY, name text NOT NULL, amount int CHECK (amount >= 0))

CREATE TABLE parity_copy (a int, b text)

CREATE TABLE parity_types (
	i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, n102 numeric(10,2), b bool,
	t text, v varchar, v20 varchar(20), c3 char(3), nm name, by bytea,
	d date, tm time, tmtz timetz, ts timestamp, tstz timestamptz, ts0 timestamptz(0), iv interval,
	j json, jb jsonb, u uuid, x xml, ip inet, mac macaddr, bits bit(3), vbits varbit(5), pt point, r int4range,
	ai int4[], at text[], an numeric(6,1)[], au uuid[], o oid, m money, mood parity_mood, short parity_short, amood parity_mood[])

CREATE FUNCTION parity_sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(20); RETURN NULL; END'

CREATE TABLE parity_slow (id int)

CREATE CONSTRAINT TRIGGER parity_slow_commit AFTER INSERT ON parity_slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION parity_sleep()

CREATE FUNCTION parity_raise(code text) RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''raised %'', code USING ERRCODE = code, DETAIL = ''the detail'', HINT = ''the hint'', SCHEMA = ''a_schema'', TABLE = ''a_table'', COLUMN = ''a_column'', DATATYPE = ''a_type'', CONSTRAINT = ''a_constraint''; END'
`

const emptyTables = `TRUNCATE parity_types, parity_item, parity_slow, parity_copy`

func splitScript(script string) []string {
	return strings.Split(strings.TrimSpace(script), "\n\n")
}
