package sqltext_test

import (
	"testing"

	"github.com/pgretry/pgretry/internal/sqltext"
)

func TestWhatMayChangeTheMeaningOfPreparedStatementsIsKnown(t *testing.T) {
	for text, want := range map[string]bool{
		`SELECT balance FROM account WHERE id = $1`:                      false,
		`SELECT balance FROM account WHERE id = $1 FOR UPDATE`:           false,
		`INSERT INTO account (id) VALUES ($1) RETURNING id`:              false,
		`UPDATE account SET at = now() WHERE id = $1`:                    false,
		`WITH gone AS (DELETE FROM a RETURNING *) INSERT INTO b TABLE a`: false,
		`SELECT nextval('s')`:                                            false,
		`SELECT pg_advisory_lock($1)`:                                    false,
		`SELECT currval('s')`:                                            false,
		`SAVEPOINT a`:                                                    false,
		`LISTEN c`:                                                       false,
		`TRUNCATE account`:                                               false,
		`SELECT * INTO other FROM account`:                               true,
		`EXPLAIN ANALYZE CREATE TABLE a AS SELECT 1`:                     true,
		`CREATE TABLE a (id int)`:                                        true,
		`CREATE TEMP TABLE a (id int)`:                                   true,
		`ALTER TABLE a ADD COLUMN b int`:                                 true,
		`DROP TABLE a`:                                                   true,
		`SET search_path TO other`:                                       true,
		`SET LOCAL search_path TO other`:                                 true,
		`SELECT set_config('search_path', 'other', true)`:                true,
		`SET ROLE other`:                                                 true,
		`RESET ALL`:                                                      true,
		`DISCARD ALL`:                                                    true,
		`DEALLOCATE ALL`:                                                 true,
		`DO $$BEGIN END$$`:                                               true,
		`CALL p()`:                                                       true,
		`EXECUTE p`:                                                      true,
		`SELECT f($1)`:                                                   true,
		`INSERT INTO account (id) VALUES (f($1))`:                        true,
		`SELECT 1; DISCARD ALL`:                                          true,
		`SELECT 'unterminated`:                                           true,
	} {
		info := sqltext.Analyze(text)
		if got := info.InvalidatesPrepared(text, nil); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	text := `SELECT f($1)`
	info := sqltext.Analyze(text)
	if info.InvalidatesPrepared(text, func(name string) bool { return name == "f" }) {
		t.Error("a function that is allowed counts all the same")
	}
}
