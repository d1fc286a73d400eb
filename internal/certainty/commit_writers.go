package certainty

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// commitWriters are others who take transaction ids. Without them nobody else gets an
// id that a crash made free, and a driver that believes in it is never found out.
type commitWriters struct {
	cancel context.CancelFunc
	all    sync.WaitGroup
	db     atomic.Pointer[sql.DB]
	taken  atomic.Int64

	mu      sync.RWMutex // held for writing while they rest
	resting bool         // known to whoever makes them rest
}

func startCommitWriters(ctx context.Context, dsn string) (*commitWriters, error) {
	w := &commitWriters{}
	if err := w.turnTo(dsn); err != nil {
		return nil, err
	}
	ctx, w.cancel = context.WithCancel(ctx)
	for range 2 {
		w.all.Go(func() {
			for commitPause(ctx, time.Millisecond) == nil {
				w.take(ctx)
			}
		})
	}
	return w, nil
}

// take takes an id, if the server is there.
func (w *commitWriters) take(ctx context.Context) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if _, err := w.db.Load().ExecContext(ctx, `INSERT INTO others VALUES (txid_current())`); err == nil {
		w.taken.Add(1)
	}
}

// turnTo lets them write to another server from now on.
func (w *commitWriters) turnTo(dsn string) error {
	dsn, err := commitDSN(dsn, map[string]string{"synchronous_commit": "local"})
	if err != nil {
		return err
	}
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	if former := w.db.Swap(db); former != nil {
		return former.Close()
	}
	return nil
}

// rest returns when none of them writes, and until goOn none does.
func (w *commitWriters) rest() {
	w.mu.Lock()
	w.resting = true
}

// goOn ends a rest, if there is one.
func (w *commitWriters) goOn() {
	if w.resting {
		w.resting = false
		w.mu.Unlock()
	}
}

// awaitMore waits until they have taken n more ids.
func (w *commitWriters) awaitMore(ctx context.Context, n int) error {
	goal := w.taken.Load() + int64(n)
	if err := commitAwait(ctx, func() (bool, error) { return w.taken.Load() >= goal, nil }); err != nil {
		return fmt.Errorf("wait until others have written: %w", err)
	}
	return nil
}

func (w *commitWriters) close() error {
	w.goOn()
	w.cancel()
	w.all.Wait()
	return w.db.Load().Close()
}
