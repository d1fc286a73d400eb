package histories

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what a round of [Run] does.
type Config struct {
	// Seed is what the transactions are a function of. How they interleave is not.
	Seed uint64
	// Workers is how many transactions run at a time. Zero means 8.
	Workers int
	// Duration is how long new transactions begin. Zero means a second.
	Duration time.Duration
	// Levels are the isolation levels to choose from. None means all.
	Levels []Level
	// WithoutIDs leaves out the tables with generated ids, which a driver that replays
	// blindly gets wrong at once.
	WithoutIDs bool
}

func (c Config) withDefaults() Config {
	if c.Workers == 0 {
		c.Workers = 8
	}
	if c.Duration == 0 {
		c.Duration = time.Second
	}
	if len(c.Levels) == 0 {
		c.Levels = Levels
	}
	return c
}

// timeToEnd is how long the last transactions of a round may take.
const timeToEnd = time.Minute

var errStuck = errors.New("histories: transactions did not come to an end")

// Run runs random transactions through db for a while and returns their history.
// The tables, which [CreateSchema] made, are emptied before. That and the look at
// the final state go through admin, which should be a driver beyond doubt. An error
// means that there is no history.
func Run(ctx context.Context, db, admin *sql.DB, config Config) (*History, error) {
	config = config.withDefaults()
	if err := reset(ctx, admin); err != nil {
		return nil, err
	}
	r := &round{config: config, db: db, latest: make([]atomic.Int32, config.Workers)}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, config.Duration+timeToEnd, errStuck)
	defer cancel()
	perWorker := make([][]*Tx, config.Workers)
	deadline := time.Now().Add(config.Duration)
	var workers sync.WaitGroup
	for worker := range config.Workers {
		workers.Go(func() {
			for number := 0; time.Now().Before(deadline) && ctx.Err() == nil; number++ {
				perWorker[worker] = append(perWorker[worker], r.transaction(ctx, worker, number))
			}
		})
	}
	workers.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := r.close(); err != nil {
		return nil, err
	}
	h := &History{}
	for _, txs := range perWorker {
		h.Txs = append(h.Txs, txs...)
	}
	var err error
	h.Final, err = finalState(ctx, admin)
	return h, err
}

// round is what the workers of a run share.
type round struct {
	config Config
	db     *sql.DB
	clock  atomic.Uint64
	latest []atomic.Int32 // by worker, the value that it has appended last

	// Statements prepared before any transaction.
	readStmt, appendStmt *sql.Stmt
}

func (r *round) now() uint64 { return r.clock.Add(1) }

func (r *round) prepare(ctx context.Context) (err error) {
	if r.readStmt, err = r.db.PrepareContext(ctx, readText); err != nil {
		return fmt.Errorf("histories: prepare: %w", err)
	}
	if r.appendStmt, err = r.db.PrepareContext(ctx, appendText); err != nil {
		return fmt.Errorf("histories: prepare: %w", err)
	}
	return nil
}

func (r *round) close() error {
	for _, stmt := range []*sql.Stmt{r.readStmt, r.appendStmt} {
		if err := stmt.Close(); err != nil {
			return fmt.Errorf("histories: close a prepared statement: %w", err)
		}
	}
	return nil
}

// transaction runs one transaction and returns what the application saw.
func (r *round) transaction(ctx context.Context, worker, number int) *Tx {
	p := newPlan(r.config, worker, number)
	a := &application{
		round: r, ctx: ctx, plan: p, worker: worker, on: r.db,
		memory: make(map[int32][]int32),
		tx:     &Tx{Name: p.name, Level: p.level, Lone: p.lone},
	}
	a.tx.Began = r.now()
	if p.lone {
		a.runLone()
	} else {
		a.run()
	}
	a.tx.Ended = r.now()
	return a.tx
}
