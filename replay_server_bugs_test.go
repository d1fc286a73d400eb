package pgretry

import "testing"

// What a statement prepared by PREPARE does, no EXECUTE of it tells, wherever it stands
// in the text.
func TestAnExecuteInsideAnotherStatementIsRefusedAsWell(t *testing.T) {
	for _, text := range []string{
		`EXPLAIN ANALYZE EXECUTE p`, `EXPLAIN (ANALYZE, TIMING off) EXECUTE p`, `CREATE TABLE made AS EXECUTE p`,
		`CREATE TEMPORARY TABLE made AS EXECUTE p WITH NO DATA`, `EXPLAIN ANALYZE CREATE TABLE made AS EXECUTE p`,
	} {
		t.Run(text, func(t *testing.T) {
			if reason, _ := (&config{}).refuses(callExec, analyze(text)); reason != RefusedSessionState {
				t.Errorf("the reason is %q", reason)
			}
		})
	}
	for name, test := range map[string]struct{ execute string }{
		"EXPLAIN ANALYZE": {execute: `EXPLAIN ANALYZE EXECUTE p`},
		"CREATE TABLE":    {execute: `CREATE TABLE made AS EXECUTE p`},
	} {
		t.Run(name+" takes no advisory lock twice", func(t *testing.T) {
			a := enter(t, nil, conflicts)
			c := a.session(a.db)
			if _, err := c.ExecContext(t.Context(), `PREPARE p AS SELECT 1 AS n WHERE pg_try_advisory_lock(7355622)`); err != nil {
				t.Fatal(err)
			}
			tx := a.beginOnConn(c)
			tx.does(test.execute)
			_, _ = tx.Exec(`SELECT conflict()`)
			_ = tx.Rollback()
			if _, err := c.ExecContext(t.Context(), `SELECT pg_advisory_unlock(7355622)`); err != nil {
				t.Fatal(err)
			}
			a.is("0", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7355622`)
		})
	}
}
