package script

import (
	"database/sql"
	"fmt"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/pgretrytest"
)

// probabilities are those with which each attempt of a transaction is aborted, at a point
// that is picked evenly, COMMIT among them.
var probabilities = []float64{0.2, 0.5}

// aborting are the drivers below, by the name under which database/sql knows them or
// pgretry around them.
var aborting = make(map[string]*pgretrytest.Driver)

// The names begin with postgres because some libraries tell the dialect by that.
func init() {
	for _, p := range probabilities {
		for _, outside := range []float64{0, p} {
			inner := pgretrytest.WrapDriver(&pq.Driver{}, pgretrytest.WithProbability(p), pgretrytest.WithLoneProbability(outside))
			name := abortingName("postgres", p, outside > 0)
			aborting[name] = inner
			sql.Register(name, inner)

			inner = pgretrytest.WrapDriver(&pq.Driver{}, pgretrytest.WithProbability(p), pgretrytest.WithLoneProbability(outside))
			name = abortingName(pgretry.DriverName, p, outside > 0)
			aborting[name] = inner
			// Nobody has every second attempt aborted: ten attempts would not do.
			sql.Register(name, pgretry.WrapDriver(inner, pgretry.WithPolicy(pgretry.Policy{
				MaxAttempts: 1000, BaseDelay: time.Microsecond, MaxDelay: time.Microsecond,
			})))
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
