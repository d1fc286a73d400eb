package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// question is what the driver asks a server about sessions and transactions.
type question string

const (
	asksOrigin     question = "origin"
	asksID         question = "id"
	asksStatus     question = "status"
	asksFence      question = "fence"
	asksPrepared   question = "prepared"
	asksStandbys   question = "standbys"
	asksReplicated question = "replicated"
	asksElsewhere  question = "elsewhere"
	asksLateID     question = "late id"
	asksForeign    question = "foreign tables"
	asksEnd        question = "end"
	asksLeft       question = "left"
)

// questions tells them apart by what no other one has in its text.
var questions = []struct {
	question
	text string
}{
	{asksOrigin, "CASE WHEN false THEN"},
	{asksID, "txid_current_if_assigned"},
	{asksFence, "'ClientRead'"},
	{asksStatus, "txid_status"},
	{asksPrepared, "pg_prepared_xacts"},
	{asksStandbys, "synchronous_standby_names"},
	{asksReplicated, "pg_logical_emit_message"},
	{asksElsewhere, "pg_extension"},
	{asksLateID, "backend_xid::text || ' '"},
	{asksForeign, "pg_foreign_table LIMIT"},
	{asksEnd, "count(pg_catalog.pg_terminate_backend(pid))"},
	{asksLeft, "count(*)::text FROM pg_catalog.pg_stat_get_activity"},
}

// ownQuestions matches them all.
var ownQuestions = regexp.MustCompile(`pg_catalog\.(pg_|txid_|count|current_setting)|pg_control_system`)

// history is that of the scripted server.
const history = "7/00000001/100.5/99.5"

// records answers questions about sessions and transactions as a server does. Each
// answer but the last is given once; NULL is "".
type records struct {
	mu      sync.Mutex
	answers map[question][]string
	errs    map[question]error
	blocks  question // that is not answered before its context is done
	asked   []question
	texts   []string
}

// keeps makes the scripted server keep records: by default of a transaction 742 that
// is committed, on a server where nothing is in the way.
func (f *fixture) keeps(changes map[question][]string) *records {
	f.ClearRules()
	r := &records{errs: map[question]error{}, answers: map[question][]string{
		asksStatus: {"committed"}, asksFence: {""}, asksPrepared: {""}, asksStandbys: {""},
		asksElsewhere: {""}, asksLateID: {""}, asksForeign: {""}, asksEnd: {"0"}, asksLeft: {"0"},
	}}
	for q, answers := range changes {
		r.answers[q] = answers
	}
	f.On(drivertest.AnyQuery).MatchingRegexp(ownQuestions).Do(func(*drivertest.Invocation) error { return nil }).
		RowsFunc(func(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) { return r.answer(inv) })
	f.likePostgres()
	return r
}

func (r *records) answer(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set := drivertest.ResultSet{Columns: drivertest.Columns("answer")}
	for _, q := range questions {
		if !strings.Contains(inv.Query, q.text) {
			continue
		}
		r.asked, r.texts = append(r.asked, q.question), append(r.texts, inv.Query)
		if err := r.errs[q.question]; err != nil {
			return nil, err
		}
		if r.blocks == q.question {
			<-inv.Context.Done()
			return nil, inv.Context.Err()
		}
		answers, known := r.answers[q.question]
		answer := ""
		if len(answers) > 0 {
			answer = answers[0]
		}
		if len(answers) > 1 {
			r.answers[q.question] = answers[1:]
		}
		origin := fmt.Sprintf("%s %d 200.5", history, 1000+inv.Conn)
		switch {
		case q.question == asksOrigin && !known:
			answer = origin
		case q.question == asksID && strings.Contains(inv.Query, "coalesce"):
			if !known {
				answer = "742"
			}
			answer += " " + origin
		case q.question == asksID && !known:
			answer = "742"
		}
		row := []driver.Value{nil}
		if answer != "" {
			row[0] = answer
		}
		set.Rows = [][]driver.Value{row}
		return []drivertest.ResultSet{set}, nil
	}
	return []drivertest.ResultSet{set}, nil
}

func (r *records) count(q question) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, asked := range r.asked {
		if asked == q {
			n++
		}
	}
	return n
}

// last returns the text of the last question of that kind.
func (r *records) last(q question) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, asked := range slices.Backward(r.asked) {
		if asked == q {
			return r.texts[i]
		}
	}
	return ""
}

// begins counts the transactions that were begun at the server.
func (f *fixture) begins() int { return len(f.Log(drivertest.Begin)) }

// losesACommit makes the next COMMIT end without an answer.
func (f *fixture) losesACommit() {
	f.Fail(drivertest.Commit, driver.ErrBadConn).Drops().Times(1)
}

// writes is a transaction that writes.
func writes(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, "UPDATE account SET balance = 1")
	return err
}

// isDirect makes the pool's only connection one whose process is known to be its own.
func (f *fixture) isDirect() {
	f.t.Helper()
	f.db.SetMaxOpenConns(1)
	f.onConn(func(c *conn) { c.origin.direct = true })
}

// onConn shows a connection of the pool.
func (f *fixture) onConn(look func(*conn)) {
	f.t.Helper()
	c, err := f.db.Conn(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	err = c.Raw(func(dc any) error {
		own := dc.(interface{ itself() *conn }).itself()
		if err := own.learnOrigin(f.t.Context()); err != nil {
			return err
		}
		look(own)
		return nil
	})
	if err := errors.Join(err, c.Close()); err != nil {
		f.t.Fatal(err)
	}
}

// neverTells checks that code which knows database/sql's signs of a connection that
// was lost before anything happened, or of a context's end, does not see one of them.
func neverTells(t *testing.T, err error) {
	t.Helper()
	for _, other := range []error{driver.ErrBadConn, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, other) {
			t.Errorf("%v matches %v", err, other)
		}
	}
}

func TestTheFateOfACommitWithoutAnAnswerIsTheServersToTell(t *testing.T) {
	for _, c := range []struct {
		name    string
		records map[question][]string
		errs    map[question]error
		blocks  question
		direct  bool
		options []Option
		script  func(*fixture)
		// What comes of it: "" committed, "replayed", or why it is unknown.
		want string
	}{
		{name: "committed"},
		{name: "committed, of the process's own", direct: true},
		{name: "aborted", records: map[question][]string{asksStatus: {"aborted"}}, want: "replayed"},
		{name: "in progress, then committed", records: map[question][]string{asksStatus: {"in progress", "in progress", "committed"}, asksFence: {"busy"}}},
		{name: "in progress, then aborted", records: map[question][]string{asksStatus: {"in progress", "in progress", "aborted"}, asksFence: {"busy"}}, want: "replayed"},
		{name: "ended while it waited for its client", records: map[question][]string{asksStatus: {"in progress", "aborted"}, asksFence: {"fenced"}}, want: "replayed"},
		{name: "committed in the moment of its end", records: map[question][]string{asksStatus: {"in progress", "committed"}, asksFence: {"fenced"}}},
		{name: "committed, and on the standby", records: map[question][]string{asksStandbys: {"standby"}}},
		{
			name: "committed, perhaps without the standby", records: map[question][]string{asksStandbys: {"standby"}},
			blocks: asksReplicated, options: []Option{WithResolveTimeout(10 * time.Millisecond)},
			want: "perhaps not on the synchronous standby",
		},
		{name: "the status is gone", records: map[question][]string{asksStatus: {""}}, want: "does not keep the transaction's status"},
		{name: "a status of the future", records: map[question][]string{asksStatus: {"perhaps"}}, want: "does not keep the transaction's status"},
		{
			name:    "prepared",
			records: map[question][]string{asksStatus: {"in progress"}, asksPrepared: {"prepared"}},
			want:    "prepared transaction",
		},
		{
			name:    "in progress for ever",
			records: map[question][]string{asksStatus: {"in progress"}, asksFence: {"busy"}},
			script: func(f *fixture) {
				f.onWait = func() {
					if len(f.waits) == 20 {
						f.connector.config.wait = func(context.Context, time.Duration) error { return context.DeadlineExceeded }
					}
				}
			},
			want: "still in progress",
		},
		{name: "aborted here, foreign tables", records: map[question][]string{asksStatus: {"aborted"}, asksElsewhere: {"yes"}}, want: "another server may have committed"},
		{name: "no id", records: map[question][]string{asksID: {"0"}}, want: "replayed"},
		{name: "no id, of the process's own", direct: true, records: map[question][]string{asksID: {""}}, want: "replayed"},
		{name: "no id, foreign tables", records: map[question][]string{asksID: {"0"}, asksElsewhere: {"yes"}}, want: "another server may have its part"},
		{name: "another server", records: map[question][]string{asksOrigin: {history + " 1001 5", "8/00000001/100.5/99.5 7 5"}}, want: "crashed, restarted or failed over"},
		{name: "another timeline", records: map[question][]string{asksOrigin: {history + " 1001 5", "7/00000002/100.5/99.5 7 5"}}, want: "crashed, restarted or failed over"},
		{name: "another postmaster", records: map[question][]string{asksOrigin: {history + " 1001 5", "7/00000001/100.6/99.5 7 5"}}, want: "crashed, restarted or failed over"},
		{name: "crashed since", records: map[question][]string{asksOrigin: {history + " 1001 5", "7/00000001/100.5/99.6 7 5"}}, want: "crashed, restarted or failed over"},
		{name: "a standby by now", records: map[question][]string{asksOrigin: {history + " 1001 5", ""}}, want: "crashed, restarted or failed over"},
		{
			name: "it cannot be reached", options: []Option{WithResolveTimeout(time.Millisecond)},
			script: func(f *fixture) { f.Fail(drivertest.Connect, errConnRefused).After(1) },
			want:   "no connection could be made",
		},
		{
			name:   "it does not let us in",
			script: func(f *fixture) { f.Fail(drivertest.Connect, serverErr("28P01")).After(1) },
			want:   "no connection could be made",
		},
		{name: "it does not answer: status", errs: map[question]error{asksStatus: driver.ErrBadConn}, want: "did not answer"},
		{name: "it does not answer: fence", records: map[question][]string{asksStatus: {"in progress"}}, errs: map[question]error{asksFence: driver.ErrBadConn}, want: "did not answer"},
		{name: "it does not answer: elsewhere", records: map[question][]string{asksStatus: {"aborted"}}, errs: map[question]error{asksElsewhere: driver.ErrBadConn}, want: "did not answer"},
		{
			name: "it does not answer: standbys",
			errs: map[question]error{asksStandbys: driver.ErrBadConn}, want: "did not answer",
		},
		{
			name: "it does not answer: replicated", records: map[question][]string{asksStandbys: {"standby"}},
			errs: map[question]error{asksReplicated: driver.ErrBadConn}, want: "perhaps not on the synchronous standby",
		},
		{name: "nothing was asked for", options: []Option{WithCommitOutcome(CommitReport)}, want: "was not asked for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, append([]Option{WithCommitOutcome(CommitResolve)}, c.options...)...)
			r := f.keeps(c.records)
			r.blocks = c.blocks
			for q, err := range c.errs {
				r.errs[q] = err
			}
			if c.script != nil {
				c.script(f)
			}
			if c.direct {
				f.isDirect()
			}
			f.losesACommit()
			err := inTx(t.Context(), f.db, writes)
			begins, s := 1, f.stats()
			var unknown *CommitUnknownError
			switch c.want {
			case "":
				if err != nil || s.Committed != 1 || s.ResolvedCommits["committed"] != 1 {
					t.Errorf("COMMIT gives %v, statistics %+v", err, s)
				}
			case "replayed":
				begins = 2
				if err != nil || s.Committed != 1 || s.ResolvedCommits["aborted"] != 1 || s.Reconnects != 1 || s.Hidden != 1 {
					t.Errorf("COMMIT gives %v, statistics %+v", err, s)
				}
			default:
				if !errors.As(err, &unknown) || !strings.Contains(unknown.Reason, c.want) || s.UnknownCommits != 1 || s.ResolvedCommits["unknown"] != 1 || s.Committed != 0 {
					t.Errorf("COMMIT gives %v, statistics %+v", err, s)
				}
				neverTells(t, err)
			}
			if f.begins() != begins {
				t.Errorf("%d transactions were begun, want %d", f.begins(), begins)
			}
			if s.ConnectionsLost["commit"] != 1 {
				t.Errorf("statistics are %+v", s)
			}
		})
	}
}

func TestWhatHasNoIDAndHiddenEffectsIsUnknown(t *testing.T) {
	for _, statement := range []string{"NOTIFY somebody", "SELECT transfer(1, 2)", "SELECT pg_notify('a', 'b')"} {
		t.Run(statement, func(t *testing.T) {
			f := newFixture(t, WithCommitOutcome(CommitResolve))
			r := f.keeps(map[question][]string{asksID: {"0"}})
			f.losesACommit()
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, statement)
				return err
			})
			var unknown *CommitUnknownError
			if !errors.As(err, &unknown) || !strings.Contains(unknown.Reason, "effects without one") || r.count(asksStatus) != 0 || f.begins() != 1 {
				t.Errorf("COMMIT gives %v after %v", err, r.asked)
			}
		})
	}
}

func TestTheErrorOfAnUnknownCommitHelpsAPersonToFindOut(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	f.keeps(map[question][]string{asksStatus: {""}})
	f.losesACommit()
	err := inTx(t.Context(), f.db, writes)
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) {
		t.Fatalf("COMMIT gives %v", err)
	}
	if unknown.XID != 742 || unknown.Server != history || unknown.Attempts != 1 || !unknown.At.Equal(f.now) || unknown.Cause != driver.ErrBadConn { //nolint:errorlint // the very same
		t.Errorf("the error is %+v", unknown)
	}
	if text := err.Error(); !strings.Contains(text, "742") || !strings.Contains(text, unknown.Reason) {
		t.Errorf("it says %s", text)
	}
}

func TestTheIDIsAskedForAsTheOptionsSay(t *testing.T) {
	const askCosts = 10 * time.Millisecond
	for _, c := range []struct {
		name     string
		outcome  CommitOutcome
		takes    time.Duration // of the transaction's own
		lostAgo  time.Duration // 0: never
		origin   string
		readOnly bool
		want     int
	}{
		{name: "resolve", outcome: CommitResolve, want: 1},
		{name: "resolve, but nothing is written", outcome: CommitResolve, readOnly: true, lostAgo: time.Second},
		{name: "report", outcome: CommitReport, takes: time.Hour, lostAgo: time.Second},
		{name: "resolve, where the server has no history", outcome: CommitResolve, origin: "none"},
		{name: "auto, the transaction is quick", takes: 333 * time.Millisecond},
		{name: "auto, the transaction is slow", takes: 334 * time.Millisecond, want: 1},
		{name: "auto, lost a connection recently", lostAgo: time.Minute - 1, want: 1},
		{name: "auto, lost a connection long ago", lostAgo: time.Minute},
		{name: "auto, slow but nothing is written", takes: time.Hour, readOnly: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, WithCommitOutcome(CommitResolve)) // so that the scripted driver is asked at all
			var changes map[question][]string
			if c.origin != "" {
				changes = map[question][]string{asksOrigin: {""}}
			}
			r := f.keeps(changes)
			f.now = time.Unix(1000, 0)
			if err := inTx(t.Context(), f.db, func(context.Context, *sql.Tx) error { return nil }); err != nil {
				t.Fatal(err)
			}
			f.connector.config.commitOutcome = c.outcome
			f.connector.askCost.Store(int64(askCosts))
			if c.lostAgo != 0 {
				f.connector.lastLoss.Store(f.now.Add(-c.lostAgo).UnixNano())
			}
			f.ClearLog()
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				f.now = f.now.Add(c.takes)
				if c.readOnly {
					var n int
					return tx.QueryRowContext(ctx, "SELECT 1").Scan(&n)
				}
				return writes(ctx, tx)
			})
			if err != nil || r.count(asksID) != c.want {
				t.Errorf("COMMIT gives %v, asked were %v", err, r.asked)
			}
			if got, want := len(f.Log(drivertest.AnyStatement)), 1+c.want; got != want {
				t.Errorf("%d statements reached the server, want %d: %q", got, want, f.Log(drivertest.AnyStatement))
			}
		})
	}
}

func TestAnOutcomeThatCannotBeHadIsNeverAskedForInsideATransaction(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	r := f.keeps(nil)
	r.errs[asksOrigin] = serverErr("42883")
	f.db.SetMaxIdleConns(0)
	for range 3 {
		if err := inTx(t.Context(), f.db, writes); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(r.asked); got != "[origin]" {
		t.Errorf("a server without the functions was asked for %s", got)
	}
	f.losesACommit()
	err := inTx(t.Context(), f.db, writes)
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || unknown.XID != 0 || unknown.Reason == "" {
		t.Errorf("COMMIT gives %v", err)
	}
}

func TestASessionThatIsLostAtItsFirstQuestionIsNotUsed(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	r := f.keeps(nil)
	r.errs[asksOrigin] = driver.ErrBadConn
	_, err := f.db.BeginTx(t.Context(), nil)
	if !errors.Is(err, driver.ErrBadConn) || f.OpenConns() != 0 {
		t.Errorf("BEGIN gives %v, %d connections are open", err, f.OpenConns())
	}
}

func TestTheQuestionForTheIDIsLostLikeAStatement(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	r := f.keeps(nil)
	lost := false
	f.onConn(func(*conn) {})
	f.ClearRules()
	f.On(drivertest.AnyQuery).Matching("txid_current_if_assigned()").Do(func(inv *drivertest.Invocation) error {
		if !lost && !strings.Contains(inv.Query, "CASE WHEN false") {
			lost = true
			return driver.ErrBadConn
		}
		return nil
	}).RowsFunc(r.answer)
	f.likePostgres()
	if err := inTx(t.Context(), f.db, writes); err != nil {
		t.Fatal(err)
	}
	if s := f.stats(); f.begins() != 2 || len(f.Log(drivertest.Commit)) != 1 || s.ConnectionsLost["transaction"] != 1 || s.ResolvedCommits != nil {
		t.Errorf("%d transactions, COMMITs %q, statistics %+v", f.begins(), f.Log(drivertest.Commit), s)
	}
}

func TestAnUnansweredCommitOfReadsIsReplayed(t *testing.T) {
	for _, outcome := range []CommitOutcome{CommitAuto, CommitResolve, CommitReport} {
		t.Run(outcome.String(), func(t *testing.T) {
			f := newFixture(t, WithCommitOutcome(outcome))
			r := f.keeps(nil)
			f.losesACommit()
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				var n int
				return tx.QueryRowContext(ctx, "SELECT 1").Scan(&n)
			})
			if err != nil || f.begins() != 2 || r.count(asksID)+r.count(asksStatus) != 0 {
				t.Errorf("COMMIT gives %v after %d transactions, asked were %v", err, f.begins(), r.asked)
			}
		})
	}
}

func TestACommitThatIsAnsweredIsNotAskedAbout(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	r := f.keeps(nil)
	f.Fail(drivertest.Commit, serverErr("23505")).Times(1)
	if err := inTx(t.Context(), f.db, writes); sqlState(err) != "23505" || r.count(asksStatus) != 0 {
		t.Errorf("COMMIT gives %v, asked were %v", err, r.asked)
	}
}

func TestACommitTheServerIsNotSureOfIsResolved(t *testing.T) {
	for _, code := range []string{"40003", "08007"} {
		for want, status := range map[string]string{"committed": "committed", "unknown": ""} {
			t.Run(code+"/"+want, func(t *testing.T) {
				f := newFixture(t, WithCommitOutcome(CommitResolve))
				f.keeps(map[question][]string{asksStatus: {status}})
				f.Fail(drivertest.Commit, serverErr(code)).Times(1)
				err := inTx(t.Context(), f.db, writes)
				if want == "committed" {
					if err != nil {
						t.Errorf("COMMIT gives %v", err)
					}
					return
				}
				var unknown *CommitUnknownError
				if !errors.As(err, &unknown) || sqlState(err) != code {
					t.Errorf("COMMIT gives %v", err)
				}
			})
		}
	}
}

func TestTheIDOfAProcessThatHasNotNoticedIsAskedForAfterwards(t *testing.T) {
	for _, c := range []struct {
		name, late string
		want       uint64
		direct     bool
	}{
		{"of this epoch", "742 4294968296", 1<<32 + 742, true},
		{"of the epoch before", "4294967290 4294967300", 1<<32 - 6, true},
		{"of the first epoch", "742 1000", 742, true},
		{"of a process that is gone", "", 0, true},
		{"behind a pooler", "742 1000", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, WithCommitOutcome(CommitResolve))
			r := f.keeps(map[question][]string{asksLateID: {c.late}})
			f.isDirect()
			if !c.direct {
				f.onConn(func(own *conn) { own.origin.direct = false })
			}
			f.connector.config.commitOutcome = CommitAuto // the id is not worth it
			f.connector.askCost.Store(int64(time.Hour))
			f.On(drivertest.Commit).Do(func(*drivertest.Invocation) error {
				f.connector.config.commitOutcome = CommitResolve // so that the scripted driver is asked where it comes from
				return driver.ErrBadConn
			}).Times(1)
			err := inTx(t.Context(), f.db, writes)
			if r.count(asksID) != 0 {
				t.Errorf("asked were %v", r.asked)
			}
			if c.want == 0 {
				var unknown *CommitUnknownError
				if !errors.As(err, &unknown) || unknown.XID != 0 || !strings.Contains(unknown.Reason, "not known") || r.count(asksStatus) != 0 {
					t.Errorf("COMMIT gives %v, asked were %v", err, r.asked)
				}
				return
			}
			if want := fmt.Sprintf("txid_status(%d)", c.want); err != nil || !strings.Contains(r.last(asksStatus), want) {
				t.Errorf("COMMIT gives %v, the last question was %s", err, r.last(asksStatus))
			}
		})
	}
}

func TestOnlyTheProcessOfTheTransactionIsEnded(t *testing.T) {
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprint("direct ", direct), func(t *testing.T) {
			f := newFixture(t, WithCommitOutcome(CommitResolve))
			r := f.keeps(map[question][]string{asksID: {fmt.Sprint(uint64(3)<<32 + 742)}, asksStatus: {"in progress", "committed"}, asksFence: {"busy"}})
			if direct {
				f.isDirect()
			}
			f.losesACommit()
			if err := inTx(t.Context(), f.db, writes); err != nil {
				t.Fatal(err)
			}
			fence := r.last(asksFence)
			if !strings.Contains(fence, "backend_xid::text = '742'") {
				t.Errorf("the process is looked for by %s", fence)
			}
			if own := strings.Contains(fence, "pid = 1001 AND extract(epoch FROM backend_start)::text = '200.5'"); own != direct {
				t.Errorf("the process is looked for by %s", fence)
			}
		})
	}
}

func TestAClosureWhoseCommitIsLostRunsAgainOnlyIfItWasAborted(t *testing.T) {
	for status, runs := range map[string]int{"committed": 1, "aborted": 2, "": 1} {
		for name, run := range map[string]func(*fixture, func(context.Context, *sql.Tx) error) error{
			"RunInTx": func(f *fixture, fn func(context.Context, *sql.Tx) error) error {
				return RunInTx(f.t.Context(), f.db, nil, fn)
			},
			"Retry": func(f *fixture, fn func(context.Context, *sql.Tx) error) error {
				return Retry(f.t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, fn) })
			},
		} {
			t.Run(name+"/"+status, func(t *testing.T) {
				f := newFixture(t, WithCommitOutcome(CommitResolve))
				f.keeps(map[question][]string{asksStatus: {status}})
				f.losesACommit()
				ran := 0
				err := run(f, func(ctx context.Context, tx *sql.Tx) error {
					ran++
					return writes(ctx, tx)
				})
				if ran != runs || f.begins() != runs {
					t.Errorf("the closure ran %d times in %d transactions, want %d", ran, f.begins(), runs)
				}
				var unknown *CommitUnknownError
				if (err != nil) != (status == "") || err != nil && (!errors.As(err, &unknown) || unknown.Attempts != 1 || unknown.XID != 742) {
					t.Errorf("it gives %v", err)
				}
				neverTells(t, err)
			})
		}
	}
}

func TestACommitThatMayHaveHappenedIsNotRunAgainByTheClosureAroundIt(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	f.keeps(map[question][]string{asksStatus: {""}})
	f.losesACommit()
	ran := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		ran++
		_ = inTx(ctx, f.db, writes) // swallowed
		f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
		return inTx(ctx, f.db, writes)
	})
	if ran != 1 || !errors.Is(err, ErrAlreadyCommitted) {
		t.Errorf("it ran %d times and gives %v", ran, err)
	}
}

func TestResolvingEndsAMomentAfterTheContext(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve), WithResolveTimeout(time.Hour))
	f.keeps(map[question][]string{asksStatus: {"in progress"}, asksFence: {"busy"}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // it is lost
	tx, err := c.BeginTx(context.WithoutCancel(t.Context()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := writes(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	f.losesACommit()
	// database/sql would answer the end of BEGIN's context with a rollback, if it came
	// before COMMIT.
	if err := c.Raw(func(dc any) error {
		dc.(interface{ itself() *conn }).itself().tx.began = ctx
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var bound context.Context
	f.connector.config.wait = func(ctx context.Context, _ time.Duration) error {
		cancel()
		if ctx.Err() != nil {
			t.Error("it ends with the context")
		}
		bound = ctx
		<-ctx.Done()
		return ctx.Err()
	}
	err = tx.Commit()
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || !strings.Contains(unknown.Reason, "in progress") || bound == nil {
		t.Errorf("COMMIT gives %v", err)
	}
	neverTells(t, err)
}

func TestResolvingIsBoundedByItsTimeout(t *testing.T) {
	f := newFixture(t, WithCommitOutcome(CommitResolve), WithResolveTimeout(time.Millisecond))
	f.keeps(map[question][]string{asksStatus: {"in progress"}, asksFence: {"busy"}})
	f.losesACommit()
	f.connector.config.wait = func(ctx context.Context, _ time.Duration) error {
		<-ctx.Done()
		return ctx.Err()
	}
	err := inTx(t.Context(), f.db, writes)
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || !strings.Contains(unknown.Reason, "in progress") {
		t.Errorf("COMMIT gives %v", err)
	}
}

func TestResolvingIsTold(t *testing.T) {
	for status, want := range map[string]string{"committed": "committed", "aborted": "aborted", "": "unknown"} {
		t.Run(want, func(t *testing.T) {
			o := newObservatory(t)
			var told []Event
			f := newFixture(t, append(o.options(), WithCommitOutcome(CommitResolve), WithOnRetry(func(_ context.Context, e Event) {
				told = append(told, e)
			}))...)
			f.keeps(map[question][]string{asksStatus: {status}})
			f.losesACommit()
			_ = inTx(t.Context(), f.db, writes)

			if tree := o.tree(); strings.Count(tree, "event:pgretry.commit.resolved") != 1 {
				t.Errorf("the spans are\n%s", tree)
			}
			for _, span := range o.spans.GetSpans() {
				for _, e := range span.Events {
					if e.Name != "pgretry.commit.resolved" {
						continue
					}
					if len(e.Attributes) != 2 || e.Attributes[0].Value.AsString() != want {
						t.Errorf("the event has %v", e.Attributes)
					}
				}
			}
			got := o.metrics(t)
			if m := got["pgretry.commit.resolve.duration"]; !strings.Contains(m, "fate="+want) {
				t.Errorf("resolving took %s", m)
			}
			if m := got["pgretry.connection.lost"]; m != "{connection.place=commit:1}" {
				t.Errorf("connections were lost: %s", m)
			}
			if m, is := got["pgretry.commit.unknown"]; is != (want == "unknown") {
				t.Errorf("unknown commits: %s", m)
			}
			if _, is := got["pgretry.connection.replaced"]; is != (want == "aborted") {
				t.Errorf("the metrics are %v", got)
			}
			decisions := map[string][]Decision{"aborted": {DecisionRetried}, "unknown": {DecisionUnknown}}[want]
			var got2 []Decision
			for _, e := range told {
				got2 = append(got2, e.Decision)
			}
			if !slices.Equal(got2, decisions) {
				t.Errorf("the hook was told %v, want %v", got2, decisions)
			}
		})
	}
}

// metrics returns those of this package, printed.
func (o *observatory) metrics(t *testing.T) map[string]string {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			if strings.HasPrefix(m.Name, "pgretry.") {
				got[m.Name] = points(t, m)
			}
		}
	}
	return got
}
