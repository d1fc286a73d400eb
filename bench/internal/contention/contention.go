// Package contention measures systems while many transactions fight for the same rows.
package contention

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/pgretry/pgretry/bench/internal/load"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/workload"
)

// Plan says what to measure.
type Plan struct {
	result.Conditions
	Systems []peer.System
	// Rounds is how often each system has its turn, Warmup how long it runs then before it is
	// measured, and Window how long it is.
	Rounds         int
	Warmup, Window time.Duration
	// Patience is how long transactions under way may take afterwards, OurPatience the same for
	// pgretry, of which more is expected. Others would only keep everybody waiting.
	Patience, OurPatience time.Duration
	Seed                  uint64
}

// Estimate is about how long the measurement takes: where the server looks for deadlocks late, all
// but the limits use the patience up.
func (p Plan) Estimate() time.Duration {
	const beside = 200 * time.Millisecond // connections, schema, check
	var sum time.Duration
	for _, system := range p.Systems {
		sum += p.Warmup + p.Window + beside
		if !system.Limit() {
			sum += min(p.Patience, 2*p.DeadlockTimeout)
		}
	}
	return time.Duration(p.Rounds) * sum
}

// load is what a system has to bear in its turn.
func (p Plan) load(system peer.System) load.Load {
	l := load.Load{Workers: p.Workers, Warmup: p.Warmup, Window: p.Window, Patience: p.Patience}
	if system.Ours {
		l.Patience = max(p.Patience, p.OurPatience)
	}
	return l
}

// workload returns the plan's workload as a system runs it.
func (p Plan) workload(system peer.System) (workload.Workload, error) {
	var options []workload.Option
	if system.Ordered {
		options = append(options, workload.Ordered())
	}
	if p.Think > 0 {
		options = append(options, workload.Pausing(load.Think(p.Think)))
	}
	return named(p.Seed, p.Workload, options...)
}

func named(seed uint64, name string, options ...workload.Option) (workload.Workload, error) {
	selected, err := workload.Select(seed, []string{name}, options...)
	if err != nil {
		return nil, err
	}
	if len(selected) != 1 {
		return nil, fmt.Errorf("%q names %d workloads", name, len(selected))
	}
	return selected[0], nil
}

// contender is a system with a database and a schema of its own, which it keeps over all rounds:
// what it has learned of the workload, it may use.
type contender struct {
	load.Subject
	schema    *target.Schema
	check     *peer.Database // lib/pq's
	committed []int64
	seen      result.Contender
}

// Measure runs every system in every round, in an order that changes. It calls observe after each
// turn.
func Measure(ctx context.Context, server *target.Server, p Plan, observe func(system string, run result.Run)) (cell result.Cell, err error) {
	cell.Conditions = p.Conditions
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", p.Conditions, err)
		}
	}()
	var contenders []*contender
	defer func() {
		for _, c := range contenders {
			err = errors.Join(err, c.close())
		}
	}()
	for _, system := range p.Systems {
		c, err := enter(ctx, server, p, system)
		if err != nil {
			return cell, fmt.Errorf("%s: %w", system.ID, err)
		}
		contenders = append(contenders, c)
	}
	for range p.Rounds {
		for _, i := range rand.Perm(len(contenders)) {
			c := contenders[i]
			if err := c.turn(ctx, p.load(c.System)); err != nil {
				return cell, fmt.Errorf("%s: %w", c.System.ID, err)
			}
			observe(c.System.ID, c.seen.Rounds[len(c.seen.Rounds)-1])
		}
	}
	for _, c := range contenders {
		cell.Contenders = append(cell.Contenders, c.seen)
	}
	return cell, nil
}

func enter(ctx context.Context, server *target.Server, p Plan, system peer.System) (_ *contender, err error) {
	w, err := p.workload(system)
	if err != nil {
		return nil, err
	}
	c := &contender{seen: result.Contender{System: system.ID}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	c.Subject = load.Subject{System: system, Workload: w, NextID: load.Counter(1)}
	if c.schema, err = server.Schema(ctx); err != nil {
		return nil, err
	}
	if c.check, err = peer.Named(peer.LibPQ)[0].Open(c.schema.DSN(nil)); err != nil {
		return nil, err
	}
	c.check.SetMaxIdleConns(0)
	if err := w.Setup(ctx, c.check.DB); err != nil {
		return nil, err
	}
	if c.Database, err = system.Open(c.schema.DSN(target.DeadlockTimeout(p.DeadlockTimeout))); err != nil {
		return nil, err
	}
	return c, nil
}

// close releases what the contender has. It may be called of one that was not made to its end.
func (c *contender) close() error {
	var err error
	if c.Database != nil {
		err = errors.Join(err, c.Database.Close())
	}
	if c.check != nil {
		err = errors.Join(err, c.check.Close())
	}
	if c.schema != nil {
		err = errors.Join(err, c.schema.Drop())
	}
	return err
}

// turn runs the system once and checks the workload's invariant.
func (c *contender) turn(ctx context.Context, l load.Load) error {
	runtime.GC() // of what the one before has left
	outcome, err := load.Run(ctx, c.Subject, l)
	if err != nil {
		return err
	}
	c.seen.Rounds = append(c.seen.Rounds, outcome.Run)
	c.committed = append(c.committed, outcome.IDs...)
	if outcome.Unknown > 0 {
		c.seen.Unchecked = fmt.Sprintf("%d transactions were cancelled in their COMMIT", outcome.Unknown)
	}
	if c.seen.Unchecked != "" || c.seen.Violation != "" {
		return nil
	}
	c.seen.Violation, err = load.Violation(c.Workload.Check(ctx, c.check.DB, c.committed))
	return err
}
