package script

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync/atomic"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/abort"
)

var probabilities = []float64{0.2, 0.5}

// tmp
type abortDriver struct {
	p    float64
	last atomic.Pointer[abort.Connector]
}

func (d *abortDriver) Open(string) (driver.Conn, error) { panic("no") }
func (d *abortDriver) OpenConnector(dsn string) (driver.Connector, error) {
	inner, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	c, err := abort.NewConnector(inner, abort.WithProbability(d.p/8))
	d.last.Store(c)
	return c, err
}

var drivers = map[string]*abortDriver{}

func abortingName(base string, p float64) string { return fmt.Sprintf("%s-aborting-%v", base, p) }

func init() {
	for _, p := range probabilities {
		ours, theirs := &abortDriver{p: p}, &abortDriver{p: p}
		drivers[abortingName("postgres-retry", p)] = ours
		sql.Register(abortingName("postgres-retry", p), pgretry.WrapDriver(ours))
		drivers[abortingName("postgres", p)] = theirs
		sql.Register(abortingName("postgres", p), theirs)
	}
}

type aborts struct {
	c    *abort.Connector
	lone bool
}

func newAborts(base string, p float64) *aborts {
	return &aborts{c: drivers[abortingName(base, p)].last.Load()}
}

func (a *aborts) unprovable() int64 {
	if a == nil {
		return 0
	}
	i := a.c.Injected()
	return i[abort.Commit] + i[abort.Next] + i[abort.Close]
}
func (a *aborts) total() int64    { return a.c.Injected().Total() }
func (a *aborts) pause(on bool)   { a.c.Inject(!on) }
func (a *aborts) outside(on bool) {}
