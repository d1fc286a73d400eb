// Package workload holds small transactions that conflict in the ways people report from
// production: deadlocks on rows updated in crossing order, batches of upserts, deletes beside
// inserts, counters of a parent row, write skew.
//
// A workload knows nothing of retries. Whoever runs it says afterwards which transactions were
// committed, and Check compares the database with them.
package workload

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Body is the work of one transaction between BEGIN and COMMIT. It may be run any number of times:
// it touches nothing but tx and does the same each time.
type Body func(ctx context.Context, tx *sql.Tx) error

// Workload is one kind of transaction that conflicts with itself.
type Workload interface {
	// Name is the workload's name in tables and flags, such as "crossing" or "transfer/rc".
	Name() string
	// About says in one line what the transactions do.
	About() string
	// TxOptions are the options every transaction of the workload begins with.
	TxOptions() *sql.TxOptions
	// Setup creates the workload's tables in the current schema, which must be empty.
	Setup(ctx context.Context, db *sql.DB) error
	// Transaction returns the work of the logical transaction with that id. Equal ids and seeds
	// give equal work; ids must not be used twice between two calls of Setup.
	Transaction(id int64) Body
	// Check compares the database with what the transactions in committed, and no others, must
	// have left there. It returns an *InvariantError if they disagree; committed may be in any order.
	Check(ctx context.Context, db *sql.DB, committed []int64) error
}

// All returns every workload in the order in which they are shown. The seed decides what each
// transaction touches.
func All(seed uint64, options ...Option) []Workload {
	s := settings{seed: seed}
	for _, option := range options {
		option(&s)
	}
	return []Workload{
		crossing{s},
		upserts{s},
		cache{s},
		counter{s},
		share{s},
		skew{s},
		transfer{s, addInPlace},
		transfer{s, readCommitted},
		transfer{s, repeatableRead},
		transfer{s, serializable},
		ids{s},
	}
}

// Select returns the named workloads in the order of All, each once. A name before a slash stands
// for all of its variants: "transfer" for "transfer/write", "transfer/rc" and so on. No names select
// everything; a name that nothing answers to is an error that lists the right ones.
func Select(seed uint64, names []string, options ...Option) ([]Workload, error) {
	all := All(seed, options...)
	if len(names) == 0 {
		return all, nil
	}
	wanted := make([]bool, len(all))
	for _, name := range names {
		found := false
		for i, w := range all {
			if w.Name() == name || family(w) == name {
				wanted[i], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("no workload is called %q: choose from %s", name, strings.Join(Names(), ", "))
		}
	}
	var selected []Workload
	for i, w := range all {
		if wanted[i] {
			selected = append(selected, w)
		}
	}
	return selected, nil
}

// Names returns the names that Select understands, variants left out.
func Names() []string {
	var names []string
	for _, w := range All(0) {
		if name := family(w); len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return names
}

func family(w Workload) string {
	name, _, _ := strings.Cut(w.Name(), "/")
	return name
}

// draw returns the random source of one logical transaction.
func draw(seed uint64, id int64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(id)))
}

// choose draws n different numbers of 1…of in random order.
func choose(r *rand.Rand, n, of int) []int {
	chosen := r.Perm(of)[:n]
	for i := range chosen {
		chosen[i]++
	}
	return chosen
}
