package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/faultproxy"
)

const (
	// commitLimit is how long a transaction may take, whatever it meets.
	commitLimit = time.Minute
	// commitSilence is how long an application that has given up waits for the driver to
	// notice, where nothing else would end the wait.
	commitSilence = 2 * time.Second
)

// commitLane is a way to the server that carries one transaction at a time.
type commitLane struct {
	run    *commitRun
	proxy  *faultproxy.Proxy
	chance *commitChance
}

// lanes opens n lanes to an address.
func (r *commitRun) lanes(n int, address string) (_ []*commitLane, err error) {
	var lanes []*commitLane
	for i := range n {
		proxy, err := faultproxy.Start("tcp", address, nil)
		if err != nil {
			return nil, errors.Join(err, closeCommitLanes(lanes))
		}
		stream := uint64(r.serial.Load())<<16 | uint64(i)
		lanes = append(lanes, &commitLane{run: r, proxy: proxy, chance: newCommitChance(r.config.Seed, stream)})
	}
	return lanes, nil
}

func closeCommitLanes(lanes []*commitLane) error {
	var failures []error
	for _, l := range lanes {
		failures = append(failures, l.proxy.Close())
	}
	return errors.Join(failures...)
}

// commitFault says what happens to a transaction's COMMIT.
type commitFault struct {
	// request decides about the COMMIT itself, answer about what the server says to
	// that connection from then on. Nil forwards.
	request func(*commitTrial, faultproxy.Message) faultproxy.Action
	answer  func(*commitTrial, faultproxy.Message) faultproxy.Action
}

// commitWork is a transaction, written by an application.
type commitWork struct {
	// do runs the transaction and returns what the application is told.
	do func(context.Context, *sql.DB, *commitTrial) error
	// verb begins the statement that commits. The zero value means COMMIT.
	verb string
	// before prepares the database, past the faults. Nil prepares nothing.
	before func(context.Context, *commitTrial) error
	// truth looks whether the transaction's work is there, when nothing can change it
	// any more, and removes what would be in the way. Nil counts the markers.
	truth func(context.Context, *commitTrial) (commitTruth, error)
	// lingers are names of sessions, beside the application's own, that may still do
	// something for it.
	lingers []string
}

// commitTrial is one transaction that meets a fault.
type commitTrial struct {
	id      string // of its marker, and the name of its sessions
	number  int
	closure bool
	strikes int  // how many of its COMMITs the fault meets
	nag     bool // the driver's question for the outcome is cut off once, too
	work    commitWork
	fault   commitFault
	lane    *commitLane

	// settled is closed when the server that has the truth is in place. Nil means that
	// it always is.
	settled <-chan struct{}
	// patience is how long the transaction may take before its connections are cut.
	patience time.Duration
	// told is called as soon as the application has its verdict, and returns whether
	// that came before the standby had the marker. Nil means that there is no standby.
	told func(context.Context, commitClaim) (early bool, err error)
	// abandon ends the application's context.
	abandon context.CancelFunc
	// bystanders are the fault's goroutines.
	bystanders sync.WaitGroup

	mu     sync.Mutex
	met    map[int]bool // connections whose COMMIT the fault has met
	nagged bool
	struck time.Time
	failed error // what kept the fault from happening
}

// newTrial makes a transaction for the lane.
func (l *commitLane) newTrial(work commitWork, fault commitFault) *commitTrial {
	number := int(l.run.serial.Add(1))
	t := &commitTrial{
		id: fmt.Sprintf("%s-%d", l.run.prefix, number), number: number,
		closure: l.chance.under(2) == 0, strikes: 1, nag: number%7 == 3, patience: commitLimit,
		work: work, fault: fault, lane: l, met: make(map[int]bool),
	}
	if number%5 == 2 {
		t.strikes = 2
	}
	switch l.run.config.Style {
	case CommitPlain:
		t.closure = false
	case CommitClosure:
		t.closure = true
	}
	if t.work.verb == "" {
		t.work.verb = "COMMIT"
	}
	if t.work.truth == nil {
		t.work.truth = commitMarkers
	}
	return t
}

// rule is the lane's while the trial lasts.
func (t *commitTrial) rule(m faultproxy.Message) faultproxy.Action {
	if m.Direction == faultproxy.ToClient {
		if t.fault.answer != nil && t.awaits(m.Conn) {
			return t.fault.answer(t, m)
		}
		return faultproxy.Action{}
	}
	text := strings.ToUpper(strings.TrimSpace(m.SQL()))
	switch {
	case text == "":
	case strings.HasPrefix(text, t.work.verb):
		if t.meet(m.Conn) && t.fault.request != nil {
			return t.fault.request(t, m)
		}
	case (strings.Contains(text, "TXID_STATUS") || strings.Contains(text, "PG_XACT_STATUS")) && t.nags():
		return faultproxy.Action{Kind: faultproxy.Cut, After: t.number%2 == 0}
	}
	return faultproxy.Action{}
}

// meet says whether the fault meets the COMMIT that a connection sends.
func (t *commitTrial) meet(conn int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.met) == t.strikes || t.met[conn] {
		return false
	}
	t.met[conn] = true
	return true
}

func (t *commitTrial) awaits(conn int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.met[conn]
}

func (t *commitTrial) nags() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.nag && !t.nagged && len(t.met) > 0
	t.nagged = t.nagged || first
	return first
}

// strike notes when the fault happened first.
func (t *commitTrial) strike() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.struck.IsZero() {
		t.struck = time.Now()
	}
}

// with strikes with an action.
func (t *commitTrial) with(action faultproxy.Action) faultproxy.Action {
	t.strike()
	return action
}

// fail notes that the fault could not be made to happen.
func (t *commitTrial) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = errors.Join(t.failed, err)
}

// try runs the transaction and finds out what became of it.
func (t *commitTrial) try(ctx context.Context) (_ commitFinding, err error) {
	r := t.lane.run
	none := commitFinding{}
	if t.work.before != nil {
		if err := t.work.before(ctx, t); err != nil {
			return none, err
		}
	}
	db, err := t.open()
	if err != nil {
		return none, err
	}
	t.lane.proxy.SetRule(t.rule)
	application, cancel := context.WithTimeout(ctx, commitLimit)
	t.abandon = cancel
	stuck := make(chan struct{})
	watch := time.AfterFunc(t.patience, func() {
		defer close(stuck)
		t.lane.proxy.CutAll(false)
	})
	told := t.work.do(application, db, t)
	verdict := time.Now()

	f := commitFinding{id: t.id, err: told, claim: commitClaimed(told)}
	if f.stuck = !watch.Stop(); f.stuck {
		<-stuck
	}
	if t.told != nil {
		if f.early, err = t.told(ctx, f.claim); err != nil {
			cancel()
			return none, errors.Join(err, db.Close())
		}
	}
	cancel()
	t.bystanders.Wait()
	_ = db.Close() // broken connections say so
	t.lane.proxy.SetRule(nil)
	t.lane.proxy.Release()
	if t.failed != nil {
		return none, t.failed
	}
	if t.settled != nil {
		select {
		case <-t.settled:
		case <-ctx.Done():
			return none, context.Cause(ctx)
		}
	}
	if err := r.gone(ctx, append([]string{t.id}, t.work.lingers...)...); err != nil {
		return none, err
	}
	if f.truth, err = t.work.truth(ctx, t); err != nil {
		return none, fmt.Errorf("look for the truth: %w", err)
	}
	if f.struck = !t.struck.IsZero(); f.struck {
		f.waited = verdict.Sub(t.struck)
	}
	return f, nil
}

// open opens the database as the application does.
func (t *commitTrial) open() (*sql.DB, error) {
	r := t.lane.run
	dsn, err := t.lane.proxy.DSN(r.server.DSN())
	if err != nil {
		return nil, err
	}
	if dsn, err = commitDSN(dsn, map[string]string{
		"application_name": t.id, "pgretry_commit_outcome": r.config.Outcome,
	}); err != nil {
		return nil, err
	}
	db, err := r.config.Open(dsn)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return db, nil
}

// each runs as many trials as asked for, over all lanes at once.
func (r *commitRun) each(ctx context.Context, lanes []*commitLane, trials int, result *CommitResult, next func(*commitLane) *commitTrial) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	left := make(chan struct{}, trials)
	for range trials {
		left <- struct{}{}
	}
	close(left)
	var all sync.WaitGroup
	for _, lane := range lanes {
		all.Go(func() {
			for range left {
				t := next(lane)
				finding, err := t.try(ctx)
				if err != nil {
					cancel(fmt.Errorf("%s: %w", t.id, err))
					return
				}
				result.add(finding)
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// commitMarkers counts a transaction's markers.
func commitMarkers(ctx context.Context, t *commitTrial) (commitTruth, error) {
	var n int
	err := t.lane.run.ask(ctx, `SELECT count(*) FROM marker WHERE id = $1`, []any{t.id}, &n)
	return commitTruth{n, n}, err
}

// inTransaction writes and commits, plainly or in a closure.
func inTransaction(ctx context.Context, db *sql.DB, t *commitTrial, write func(context.Context, *sql.Tx) error) error {
	if t.closure {
		return pgretry.RunInTx(ctx, db, nil, write)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := write(ctx, tx); err != nil {
		// The first error is what an application goes by.
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}
