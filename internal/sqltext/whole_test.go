package sqltext_test

import (
	"testing"

	"github.com/pgretry/pgretry/internal/sqltext"
)

func TestWhatTheServerDoesAsAWholeIsTold(t *testing.T) {
	for text, want := range map[string]bool{
		`SELECT 1`:                 true,
		`insert into t values (1)`: true,
		`WITH x AS (DELETE FROM t RETURNING *) TABLE x`: true,
		`SHOW server_version_num`:                       true,
		`truncate t cascade`:                            true,
		`CREATE TABLE IF NOT EXISTS t (a int)`:          true,
		`CREATE UNLOGGED TABLE t (a int);`:              true,
		`create temp table t (a int)`:                   true,
		`CREATE UNIQUE INDEX i ON t (a)`:                true,
		`CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'`: true,
		`CREATE OR REPLACE VIEW v AS SELECT 1`:                                            true,
		`CREATE MATERIALIZED VIEW v AS SELECT 1`:                                          true,
		`ALTER TABLE t ADD CONSTRAINT c UNIQUE (a)`:                                       true,
		`ALTER TYPE e ADD VALUE 'x'`:                                                      true,
		`DROP TABLE IF EXISTS t, u CASCADE`:                                               true,
		`DROP SCHEMA s CASCADE`:                                                           true,
		`COMMENT ON TABLE t IS 'built CONCURRENTLY'`:                                      true,
		`GRANT SELECT ON t TO u`:                                                          true,
		`CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION f()`:                         true,
		`ALTER TABLE "concurrently" ADD b int`:                                            true,

		``:                                     false,
		`CALL p()`:                             false,
		`DO $$ BEGIN END $$`:                   false,
		`VACUUM t`:                             false,
		`REINDEX TABLE t`:                      false,
		`CLUSTER t`:                            false,
		`ALTER SYSTEM SET a = 1`:               false,
		`COMMIT`:                               false,
		`SET a = 1`:                            false,
		`LOCK TABLE t`:                         false,
		`CREATE INDEX CONCURRENTLY i ON t (a)`: false,
		`CREATE UNIQUE INDEX concurrently i ON t (a)`:        false,
		`DROP INDEX CONCURRENTLY i`:                          false,
		`ALTER TABLE t DETACH PARTITION p CONCURRENTLY`:      false,
		`REFRESH MATERIALIZED VIEW CONCURRENTLY v`:           false,
		`CREATE DATABASE d`:                                  false,
		`DROP DATABASE d`:                                    false,
		`ALTER DATABASE d SET TABLESPACE s`:                  false,
		`CREATE TABLESPACE s LOCATION 'x'`:                   false,
		`CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p`: false,
		`DROP SUBSCRIPTION s`:                                false,
		`ALTER SUBSCRIPTION s REFRESH PUBLICATION`:           false,
		`IMPORT FOREIGN SCHEMA s FROM SERVER r INTO t`:       false,
		`CREATE EXTENSION x`:                                 false,
		`CREATE TABLE t (a int); CREATE TABLE u (a int)`:     false,
		`INSERT INTO t VALUES (1); VACUUM t`:                 false,
		`CREATE TABLE t (a text DEFAULT 'open`:               false,
	} {
		if got := sqltext.Analyze(text).Whole; got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
}
