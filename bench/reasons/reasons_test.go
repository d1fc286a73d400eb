package reasons

import (
	"cmp"
	"context"
	"database/sql"
	"os"
	"slices"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// session opens one session of a database with lib/pq.
func session(b *testing.B, dsn string) *sql.DB {
	b.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}

func execute(b *testing.B, db *sql.DB, texts ...string) {
	b.Helper()
	for _, text := range texts {
		if _, err := db.ExecContext(b.Context(), text); err != nil {
			b.Fatal(err)
		}
	}
}

// duel is two ways of doing the same, which take turns.
type duel struct {
	first, second func(context.Context) error
	each          int // how often one does it in a turn
}

// fight reports the median of what the second takes in a turn as a multiple of what the
// first takes.
func (d duel) fight(b *testing.B, unit string) {
	b.Helper()
	turn := func(do func(context.Context) error) time.Duration {
		start := time.Now()
		for range d.each {
			if err := do(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start)
	}
	turn(d.first)
	turn(d.second)
	var ratios []float64
	for b.Loop() {
		// Whoever comes second would find a machine that is warm.
		if len(ratios)%2 == 0 {
			first := turn(d.first)
			ratios = append(ratios, float64(turn(d.second))/float64(first))
		} else {
			second := turn(d.second)
			ratios = append(ratios, float64(second)/float64(turn(d.first)))
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ratios), unit)
}

func median[T cmp.Ordered](values []T) T {
	values = slices.Clone(values)
	slices.Sort(values)
	return values[len(values)/2]
}
