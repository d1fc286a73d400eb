package fastpath

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgretry/pgretry/bench/internal/load"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/workload"
)

// MeasureNoConflict times the transactions of a workload while nobody else is there: what it costs
// to be prepared for conflicts that do not come.
func MeasureNoConflict(ctx context.Context, server *target.Server, w workload.Workload, systems []peer.System, effort Effort) (seen result.Comparison, err error) {
	seen = result.Comparison{Name: w.Name(), Base: peer.LibPQ, Each: effort.Each}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s without conflicts: %w", w.Name(), err)
		}
	}()
	type runner struct {
		system    peer.System
		check     *peer.Database
		committed []int64
	}
	var runners []*runner
	var jobs []job
	var all databases
	var schemas []*target.Schema
	defer func() {
		err = errors.Join(err, all.close())
		for _, schema := range schemas {
			err = errors.Join(err, schema.Drop())
		}
	}()
	for _, system := range systems {
		// Each its own tables, so that equal ids mean equal work on equal data.
		schema, err := server.Schema(ctx)
		if err != nil {
			return seen, err
		}
		schemas = append(schemas, schema)
		check, err := all.open(peer.Named(peer.LibPQ)[0], schema.DSN(nil))
		if err != nil {
			return seen, err
		}
		if err := w.Setup(ctx, check.DB); err != nil {
			return seen, err
		}
		db, err := all.open(system, schema.DSN(nil))
		if err != nil {
			return seen, err
		}
		r := &runner{system: system, check: check}
		next := load.Counter(1)
		runners = append(runners, r)
		jobs = append(jobs, job{system.ID, func(ctx context.Context) error {
			id := next()
			if err := system.Transact(ctx, db.DB, peer.Work{Name: w.Name(), Options: w.TxOptions(), Body: w.Transaction(id)}); err != nil {
				return err
			}
			r.committed = append(r.committed, id)
			return nil
		}, db})
	}
	if seen.Timings, err = compare(ctx, jobs, effort); err != nil {
		return seen, err
	}
	for _, r := range runners {
		violation, err := load.Violation(w.Check(ctx, r.check.DB, r.committed))
		if err != nil {
			return seen, err
		}
		if violation != "" {
			violate(&seen, r.system.ID, violation)
		}
	}
	return seen, nil
}
