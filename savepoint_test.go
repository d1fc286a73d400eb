package pgretry

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
)

// tale runs a script over one driver and writes down all that the application saw.
type tale struct {
	*script
	lines []string
}

func (s *tale) note(format string, args ...any) {
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *tale) exec(text string) {
	result, err := s.ExecContext(s.Context(), text)
	if err != nil {
		s.note("%s: %v", text, err)
		return
	}
	n, err := result.RowsAffected()
	s.note("%s: %d rows, %v", text, n, err)
}

func (s *tale) query(text string) {
	var value sql.NullString
	err := s.QueryRowContext(s.Context(), text).Scan(&value)
	s.note("%s: %v, %v", text, value, err)
}

// nested are transactions with savepoints. Each ends in a state in which account 1 is
// locked, and goes on after the conflict.
var nested = map[string]func(*tale, func()){
	"nested": func(s *tale, conflict func()) {
		s.exec(`SAVEPOINT a`)
		s.exec(`INSERT INTO trace VALUES ('a')`)
		s.exec(`SAVEPOINT b`)
		s.exec(`INSERT INTO trace VALUES ('b')`)
		conflict()
		s.exec(`ROLLBACK TO b`)
		s.exec(`INSERT INTO trace VALUES ('c')`)
		s.exec(`RELEASE a`)
	},
	"the same name twice": func(s *tale, conflict func()) {
		s.exec(`SAVEPOINT a`)
		s.exec(`INSERT INTO trace VALUES ('a')`)
		s.exec(`SAVEPOINT a`)
		s.exec(`INSERT INTO trace VALUES ('b')`)
		conflict()
		s.exec(`ROLLBACK TO a`)
		s.exec(`RELEASE a`)
		s.query(`SELECT string_agg(what, '' ORDER BY what) FROM trace`)
		s.exec(`ROLLBACK TO a`)
		s.query(`SELECT string_agg(what, '' ORDER BY what) FROM trace`)
	},
	"released": func(s *tale, conflict func()) {
		s.exec(`SAVEPOINT a`)
		s.exec(`INSERT INTO trace VALUES ('a')`)
		s.exec(`RELEASE SAVEPOINT a`)
		conflict()
		s.exec(`INSERT INTO trace VALUES ('b')`)
	},
	"quoted": func(s *tale, conflict func()) {
		s.exec(`SAVEPOINT "A ""b"" ; COMMIT"`)
		s.exec(`SAVEPOINT Upper`)
		s.exec(`INSERT INTO trace VALUES ('a')`)
		conflict()
		s.exec(`ROLLBACK TO "upper"`)
		s.exec(`INSERT INTO trace VALUES ('b')`)
		s.exec(`RELEASE "A ""b"" ; COMMIT"`)
	},
	"after a failed statement": func(s *tale, conflict func()) {
		s.exec(`INSERT INTO trace VALUES ('a')`)
		s.exec(`SAVEPOINT a`)
		s.exec(`INSERT INTO account VALUES (1, 1)`)
		s.exec(`SELECT 1`)
		s.exec(`ROLLBACK TO SAVEPOINT a`)
		s.exec(`RELEASE a`)
		conflict()
		s.exec(`INSERT INTO trace VALUES ('b')`)
	},
	"like gorm's": func(s *tale, conflict func()) {
		s.exec(`SAVEPOINT sp1`)
		s.exec(`INSERT INTO trace VALUES ('a')`)
		s.exec(`SAVEPOINT sp2`)
		s.exec(`INSERT INTO account VALUES (1, 1)`)
		s.exec(`ROLLBACK TO SAVEPOINT sp2`)
		s.exec(`INSERT INTO trace VALUES ('b')`)
		conflict()
		s.exec(`INSERT INTO trace VALUES ('c')`)
	},
}

// Without the conflict, lib/pq tells the same.
func TestADeadlockInsideASavepointIsInvisible(t *testing.T) {
	for name, run := range nested {
		t.Run(name, func(t *testing.T) {
			var tales, ends [2]string
			for i := range tales {
				a := enter(t, nil, bank, traces)
				db := a.db
				if i == 1 {
					db = a.plain
				}
				s := &tale{script: a.beginOn(db, sql.LevelReadCommitted)}
				run(s, func() {
					s.exec(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
					if i == 0 {
						over := a.meets(crossing)
						defer over()
					}
					s.exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
				})
				s.note("%v", s.Commit())
				tales[i], ends[i] = strings.Join(s.lines, "\n"), a.read(`SELECT string_agg(what, '' ORDER BY what) FROM trace`)
				if i == 0 {
					a.hid("40P01")
				}
			}
			if tales[0] != tales[1] || ends[0] != ends[1] {
				t.Errorf("we tell\n%s\nand leave %s, lib/pq tells\n%s\nand leaves %s", tales[0], ends[0], tales[1], ends[1])
			}
		})
	}
}

// Where the conflict cannot be hidden, it comes as it does with lib/pq, and the
// application's own ROLLBACK TO works as it does there.
func TestAConflictInsideASavepointThatSurfacesLeavesItToTheApplication(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			comparesSurfacing(t, level, []string{`SAVEPOINT a`, `SELECT balance FROM account WHERE id = 3`})
		})
	}
}

// What was read before the savepoint was never undone: the application can go on.
func TestAReadFromBeforeASavepointThatChangedLeavesItToTheApplication(t *testing.T) {
	comparesSurfacing(t, sql.LevelReadCommitted, []string{`SELECT balance FROM account WHERE id = 3`, `SAVEPOINT a`})
}

// comparesSurfacing runs the same transaction over both drivers. A deadlock comes
// inside its savepoint, after what was read has changed.
func comparesSurfacing(t *testing.T, level sql.IsolationLevel, begins []string) {
	t.Helper()
	var tales, ends [2]string
	for i := range tales {
		a := enter(t, nil, bank, traces)
		db := a.db
		if i == 1 {
			db = a.plain
		}
		s := &tale{script: a.beginOn(db, level)}
		s.exec(`INSERT INTO trace VALUES ('a')`)
		for _, text := range begins {
			if strings.HasPrefix(text, "SELECT") {
				s.query(text)
			} else {
				s.exec(text)
			}
		}
		s.exec(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
		over := a.meets(crossing)
		if _, err := a.plain.Exec(`UPDATE account SET balance = 55 WHERE id = 3`); err != nil {
			t.Fatal(err)
		}
		s.exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
		s.exec(`SELECT 1`)
		s.exec(`ROLLBACK TO a`)
		over()
		s.exec(`INSERT INTO trace VALUES ('b')`)
		s.exec(`RELEASE a`)
		s.query(`SELECT count(*) FROM trace`)
		s.note("%v", s.Commit())
		tales[i], ends[i] = strings.Join(s.lines, "\n"), a.read(`SELECT string_agg(what, '' ORDER BY what) FROM trace`)
		if s := a.stats(); i == 0 && (s.PlainConflicts != 1 || s.Hidden != 0 || s.Unprotected[RefusedSavepoint] != 1) {
			t.Errorf("the statistics are %+v", s)
		}
	}
	if tales[0] != tales[1] || ends[0] != ends[1] {
		t.Errorf("we tell\n%s\nand leave %s, lib/pq tells\n%s\nand leaves %s", tales[0], ends[0], tales[1], ends[1])
	}
	if !strings.Contains(tales[1], "40P01") || ends[1] != "ab" {
		t.Errorf("this test proves nothing: lib/pq tells\n%s", tales[1])
	}
}

func TestACursorFromBeforeASavepointIsNotMovedByAReplay(t *testing.T) {
	a := enter(t, nil, bank, traces)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`DECLARE c SCROLL CURSOR FOR SELECT balance FROM account WHERE id > 2 ORDER BY id`)
	tx.does(`SAVEPOINT a`)
	if got := tx.sees(`FETCH c`); got != "100" {
		t.Fatal(got)
	}
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	over := a.meets(crossing)
	tx.fails("40P01", `UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	tx.does(`ROLLBACK TO a`)
	tx.does(`UPDATE account SET balance = 1 WHERE id = 3`)
	if got := tx.sees(`FETCH RELATIVE 0 FROM c`); got != "100" {
		t.Errorf("the cursor stands at %s", got)
	}
	tx.commits()
	a.is("1 100", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id > 2`)
}
