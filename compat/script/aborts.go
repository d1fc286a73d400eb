package script

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/pgretrytest"
)

// probabilities are those with which each attempt of a transaction is aborted, at a point
// that is picked evenly, COMMIT among them.
var probabilities = []float64{0.2, 0.5}

// inner is a driver that is used alone and with pgretry around it.
type inner struct {
	driver.Driver
	alone, wrapped string // names under which database/sql knows it
}

var (
	libPQ = inner{&pq.Driver{}, "postgres", pgretry.DriverName}
	pgx   = inner{stdlib.GetDefaultDriver(), "postgres-pgx", pgretry.DriverName + "-pgx"}
)

// aborting are the drivers that abort, by the name under which database/sql knows them or
// pgretry around them.
var aborting = make(map[string]*pgretrytest.Driver)

// The names begin with postgres because some libraries tell the dialect by that.
func init() {
	sql.Register(pgx.alone, pgx.Driver)
	sql.Register(pgx.wrapped, pgretry.WrapDriver(pgx.Driver))
	for _, inner := range []inner{libPQ, pgx} {
		for _, p := range probabilities {
			for _, outside := range []float64{0, p} {
				options := []pgretrytest.Option{pgretrytest.WithProbability(p), pgretrytest.WithLoneProbability(outside)}
				alone, below := pgretrytest.WrapDriver(inner.Driver, options...), pgretrytest.WrapDriver(inner.Driver, options...)

				name := abortingName(inner.alone, p, outside > 0)
				aborting[name] = alone
				sql.Register(name, alone)

				name = abortingName(inner.wrapped, p, outside > 0)
				aborting[name] = below
				// Nobody has every second attempt aborted: ten attempts would not do.
				sql.Register(name, pgretry.WrapDriver(below, pgretry.WithPolicy(pgretry.Policy{
					MaxAttempts: 1000, BaseDelay: time.Microsecond, MaxDelay: time.Microsecond,
				})))
			}
		}
	}
}

// abortingName is the name of a driver whose transactions are aborted, and statements
// outside transactions as well if outside is set.
func abortingName(base string, p float64, outside bool) string {
	name := fmt.Sprintf("%s-aborting-%v", base, p)
	if outside {
		name += "-outside"
	}
	return name
}

// aborted returns what was aborted under a name so far: nothing, if nothing ever is.
func aborted(name string) pgretrytest.Counts {
	if inner, ok := aborting[name]; ok {
		return inner.Counts()
	}
	return pgretrytest.Counts{}
}

// quietly does something that nothing disturbs.
func (r *run) quietly(do func() error) error {
	for _, name := range []string{r.driverName, r.outsideName} {
		if inner, ok := aborting[name]; ok {
			inner.Pause()
			defer inner.Resume()
		}
	}
	return do()
}
