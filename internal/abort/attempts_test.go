package abort_test

import (
	"database/sql"
	"errors"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/abort"
)

// attempts runs transactions one after the other and says where each was aborted.
func attempts(t *testing.T, db *sql.DB, n int) (list []string) {
	t.Helper()
	for range n {
		step, err := run(t, db, func(*sql.Tx) {})
		if err == nil {
			step = "none"
		} else if !isConflict(unjoin(err)) {
			t.Fatalf("%s: %v", step, err)
		}
		list = append(list, step)
	}
	return list
}

func TestAttemptsFailAtTheirPointsAndGetThroughAfterwards(t *testing.T) {
	for name, test := range map[string]struct {
		points []abort.Option
		want   []string
	}{
		"a statement": {
			[]abort.Option{abort.WithStatementPoint(1)},
			[]string{"exec", "none", "exec", "none"},
		},
		"COMMIT": {
			[]abort.Option{abort.WithCommitPoint()},
			[]string{"commit", "none", "commit", "none"},
		},
		"one after the other": {
			[]abort.Option{abort.WithStatementPoint(2), abort.WithCommitPoint(), abort.WithStatementPoint(2)},
			[]string{"query", "commit", "query", "none", "query"},
		},
		// A prepared statement counts when it is executed.
		"the fourth of five": {
			[]abort.Option{abort.WithStatementPoint(4)},
			[]string{"stmt exec", "none"},
		},
		"none that far": {
			[]abort.Option{abort.WithStatementPoint(6), abort.WithStatementPoint(1)},
			[]string{"none", "none"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := open(t, test.points...)
			if got := attempts(t, db, len(test.want)); !slices.Equal(got, test.want) {
				t.Errorf("aborted at %q, want %q", got, test.want)
			}
		})
	}
}

func TestSavepointCommandsAreNoStatementsToCount(t *testing.T) {
	db, _ := open(t, abort.WithStatementPoint(2))
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for _, text := range []string{`SAVEPOINT a`, `INSERT INTO item VALUES (1)`, `RELEASE a`, `SAVEPOINT b`, `ROLLBACK TO b`} {
		mustExec(t, tx, text)
	}
	if _, err := tx.Exec(`INSERT INTO item VALUES (2)`); !isConflict(err) {
		t.Errorf("the second statement gives %v", err)
	}
}

func TestWhatFollowsASavepointIsTheNextAttempt(t *testing.T) {
	db, connector := open(t, abort.WithStatementPoint(1), abort.WithCommitPoint())
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, tx, `SAVEPOINT here`)
	if _, err := tx.Exec(`INSERT INTO item VALUES (1)`); !isConflict(err) {
		t.Fatal(err)
	}
	mustExec(t, tx, `ROLLBACK TO here`)
	mustExec(t, tx, `INSERT INTO item VALUES (1)`)
	if err := tx.Commit(); !isConflict(err) {
		t.Errorf("COMMIT gives %v", err)
	}
	if got := attempts(t, db, 1); got[0] != "none" {
		t.Errorf("the third attempt is aborted at %s", got[0])
	}
	if n := items(t, db, connector); n != 3 {
		t.Errorf("%d rows", n)
	}
}

// within says whether n of total is the share p, or as far from it as three in a
// thousand runs would be.
func within(n, total int, p float64) bool {
	return math.Abs(float64(n)-p*float64(total)) <= 3*math.Sqrt(p*(1-p)*float64(total))+1
}

func TestAttemptFailsWithTheProbabilityHoweverLongItIs(t *testing.T) {
	const total = 400
	for name, transaction := range map[string]func(tx *sql.Tx) error{
		"one statement": func(tx *sql.Tx) error {
			_, err := tx.Exec(`INSERT INTO item VALUES (0)`)
			return err
		},
		"forty statements": func(tx *sql.Tx) error {
			for n := range 40 {
				if _, err := tx.Exec(`INSERT INTO item VALUES ($1)`, n); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			db, connector := open(t, abort.WithAttemptProbability(0.5), abort.WithSeed(1))
			failed := 0
			for range total {
				tx, err := db.Begin()
				if err != nil {
					t.Fatal(err)
				}
				if err = transaction(tx); err == nil {
					err = tx.Commit()
				}
				if err != nil {
					_ = tx.Rollback() // it says no more than the error
					if !isConflict(err) {
						t.Fatal(err)
					}
					failed++
				}
			}
			if !within(failed, total, 0.5) || connector.Injected().Total() != int64(failed) {
				t.Errorf("%d of %d attempts failed, injected %v", failed, total, connector.Injected())
			}
		})
	}
}

func TestAttemptFailsAtAnyOfItsCallsAlike(t *testing.T) {
	const total = 840
	db, connector := open(t, abort.WithAttemptProbability(0.7), abort.WithSeed(7))
	for attempts(t, db, 1)[0] != "none" {
		continue // until its length is known
	}
	before := connector.Injected()
	counts := make(map[string]int)
	failed := 0
	for _, step := range attempts(t, db, total) {
		counts[step]++
		if step != "none" {
			failed++
		}
	}
	if !within(failed, total, 0.7) {
		t.Errorf("%d of %d attempts failed", failed, total)
	}
	for _, step := range steps {
		want := 1 / float64(len(steps))
		if step.name == "next" { // there are two of this name
			want *= 2
		}
		if !within(counts[step.name], failed, want) {
			t.Errorf("%d of %d failed at %s, want the share of %.3f", counts[step.name], failed, step.name, want)
		}
	}
	if n := connector.Injected().Total() - before.Total(); n != int64(failed) {
		t.Errorf("%d aborts, %d attempts failed", n, failed)
	}
}

// inserting runs a transaction of so many statements that begins with the text, and says
// whether it was aborted, and whether at COMMIT.
func inserting(t *testing.T, db *sql.DB, first string, statements int) (aborted, atCommit bool) {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	_, err = tx.Exec(first)
	for n := 1; err == nil && n < statements; n++ {
		_, err = tx.Exec(`INSERT INTO item VALUES ($1)`, n)
	}
	if err == nil {
		atCommit = true
		err = tx.Commit()
	}
	if err != nil && !isConflict(err) {
		t.Fatal(err)
	}
	return err != nil, err != nil && atCommit
}

func TestShortTransactionsAmongLongOnesAreAbortedAtTheirStatementsToo(t *testing.T) {
	const total = 300
	db, _ := open(t, abort.WithAttemptProbability(0.5), abort.WithSeed(3))
	short, atCommit := 0, 0
	for range total {
		inserting(t, db, `SELECT 1 + 1`, 20)
		aborted, late := inserting(t, db, `INSERT INTO item VALUES (0)`, 1)
		if aborted {
			short++
		}
		if late {
			atCommit++
		}
	}
	if !within(short, total, 0.5) || !within(atCommit, short, 0.5) {
		t.Errorf("of %d transactions of one statement %d were aborted, %d at COMMIT", total, short, atCommit)
	}
}

func TestTransactionThatIsShorterThanOthersOfItsKindIsAbortedAsOften(t *testing.T) {
	const total = 200
	db, _ := open(t, abort.WithAttemptProbability(0.5), abort.WithSeed(3))
	counts := make(map[int]int)
	for range total {
		for _, statements := range []int{1, 20} {
			if aborted, _ := inserting(t, db, `INSERT INTO item VALUES (0)`, statements); aborted {
				counts[statements]++
			}
		}
	}
	for statements, n := range counts {
		if !within(n, total, 0.5) {
			t.Errorf("of %d transactions of %d statements %d were aborted", total, statements, n)
		}
	}
}

func TestCommitCanBeSpared(t *testing.T) {
	db, connector := open(t, abort.WithAttemptProbability(0.9), abort.WithProbability(0.1), abort.WithoutCommit())
	got := attempts(t, db, 200)
	if slices.Contains(got, "commit") || connector.Injected()[abort.Commit] != 0 {
		t.Errorf("COMMIT was aborted: %v", connector.Injected())
	}
	if connector.Injected()[abort.Exec] == 0 || connector.Injected()[abort.Next] == 0 {
		t.Errorf("nothing else was aborted: %v", connector.Injected())
	}
}

func TestWhatFollowsASavepointIsDrawnAnew(t *testing.T) {
	db, connector := open(t, abort.WithAttemptProbability(0.5))
	most := int64(0)
	for range 50 {
		before := connector.Injected()
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		mustExecUndisturbed := func(text string) {
			connector.Inject(false)
			mustExec(t, tx, text)
			connector.Inject(true)
		}
		mustExecUndisturbed(`SAVEPOINT here`)
		for {
			_, err := tx.Exec(`INSERT INTO item VALUES (1)`)
			if err == nil {
				break
			}
			if !isConflict(err) {
				t.Fatal(err)
			}
			mustExecUndisturbed(`ROLLBACK TO here`)
		}
		if err := tx.Commit(); err != nil && !isConflict(err) {
			t.Fatal(err)
		}
		most = max(most, connector.Injected().Total()-before.Total())
	}
	if most < 3 {
		t.Errorf("no transaction was aborted more than %d times", most)
	}
}

func TestSQLStatesAreThoseAskedFor(t *testing.T) {
	db, _ := open(t, abort.WithAttemptProbability(1), abort.WithSQLStates("55P03", "40001"))
	seen := make(map[string]int)
	for range 30 {
		_, err := run(t, db, func(*sql.Tx) {})
		serverError, ok := errors.AsType[*pq.Error](err)
		if !ok {
			t.Fatal(err)
		}
		seen[string(serverError.Code)]++
	}
	if len(seen) != 2 || seen["55P03"] == 0 || seen["40001"] == 0 {
		t.Errorf("the SQLSTATEs are %v", seen)
	}
}

func TestChoicesOfAttemptsAreAFunctionOfTheSeed(t *testing.T) {
	var lists [3][]string
	for i, seed := range []uint64{1, 1, 2} {
		db, _ := open(t, abort.WithAttemptProbability(0.5), abort.WithSeed(seed))
		lists[i] = attempts(t, db, 40)
	}
	if !slices.Equal(lists[0], lists[1]) {
		t.Errorf("the same seed gave\n%v and\n%v", lists[0], lists[1])
	}
	if slices.Equal(lists[0], lists[2]) {
		t.Error("another seed gave the same")
	}
}

func TestConnectorsUnderOneControlAreSwitchedAndCountedTogether(t *testing.T) {
	control := new(abort.Control)
	var dbs []*sql.DB
	for range 2 {
		db, _ := open(t, abort.WithCommitPoint(), abort.WithControl(control))
		dbs = append(dbs, db)
	}
	want := []string{"commit", "none"}
	for _, db := range dbs {
		if got := attempts(t, db, 2); !slices.Equal(got, want) {
			t.Errorf("aborted at %q", got)
		}
	}
	control.Inject(false)
	for _, db := range dbs {
		if got := attempts(t, db, 1); got[0] != "none" {
			t.Errorf("aborted at %q while switched off", got)
		}
	}
	if got := control.Injected(); !maps.Equal(got, abort.Counts{abort.Commit: 2}) {
		t.Errorf("injected %v", got)
	}
}

// brokenByCopy begins a transaction and has a COPY fail in it, which the connector does not
// look at.
func brokenByCopy(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	stmt, err := tx.Prepare(`COPY item (n) FROM STDIN`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stmt.Exec("no number"); err != nil {
		t.Fatal(err)
	}
	if _, err := stmt.Exec(); err == nil {
		t.Fatal("COPY took what is no number")
	}
	return tx
}

func TestBlockThatAnythingElseAbortedFailsAsItWould(t *testing.T) {
	undisturbed, _ := open(t)
	want := brokenByCopy(t, undisturbed).Commit()

	db, connector := open(t, abort.WithStatementPoint(1), abort.WithCommitPoint())
	tx := brokenByCopy(t, db)
	for range 2 {
		if _, err := tx.Exec(`SELECT 1`); !isAborted(err) {
			t.Errorf("a statement gives %v", err)
		}
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	// Its points are still those of a first attempt.
	if got := attempts(t, db, 1); got[0] != "exec" {
		t.Errorf("the next transaction is aborted at %s", got[0])
	}
	if err := brokenByCopy(t, db).Commit(); err == nil || err.Error() != want.Error() {
		t.Errorf("COMMIT gives %v, without the connector %v", err, want)
	}
	if got := connector.Injected(); got.Total() != 1 {
		t.Errorf("injected %v", got)
	}
}
