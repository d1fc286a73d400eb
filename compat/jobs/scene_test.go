package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/compat/jobs"
	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// order is what a job is about: money that goes from one account to another.
type order struct {
	Number           string
	From, To, Amount int64
}

const (
	accounts = 8
	deposit  = 1000

	enqueue = `INSERT INTO job (kind, unique_key, priority, args) VALUES ('transfer', $1, $2, $3)`
)

// scene is a queue with its clients, over a driver.
type scene struct {
	*testing.T
	dsn      string
	plain    *jobs.App // over lib/pq, for a look that nothing disturbs
	apps     []*jobs.App
	closures bool
	orders   []order

	mu     sync.Mutex
	failed []error
	done   map[string]int // orders, by number

	met      chan struct{} // closed when two transactions have met
	arrived  int
	finished chan struct{} // closed when all orders are done
}

func enter(t *testing.T, driverName string, closures bool) *scene {
	t.Helper()
	s := &scene{T: t, dsn: pgtest.DSN(t), closures: closures, done: make(map[string]int), met: make(chan struct{}), finished: make(chan struct{})}
	s.plain = s.open("postgres")
	for range 2 {
		s.apps = append(s.apps, s.open(driverName))
	}
	if err := s.plain.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Nothing forbids an effect to take place twice.
	s.exec(`CREATE TABLE effect (job_id bigint NOT NULL, number text NOT NULL)`)
	s.exec(`INSERT INTO account SELECT n, $1 FROM generate_series(1, $2) n`, deposit, accounts)
	return s
}

func (s *scene) open(driverName string) *jobs.App {
	s.Helper()
	app, err := jobs.New(driverName, s.dsn)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		if err := app.Close(); err != nil {
			s.Error(err)
		}
	})
	return app
}

func (s *scene) exec(query string, args ...any) {
	s.Helper()
	if _, err := s.plain.DB().ExecContext(s.Context(), query, args...); err != nil {
		s.Fatalf("%s: %v", query, err)
	}
}

// read returns the rows of a query that has one column.
func (s *scene) read(query string) (lines []string) {
	s.Helper()
	rows, err := s.plain.DB().QueryContext(s.Context(), query)
	if err != nil {
		s.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			s.Fatal(err)
		}
		lines = append(lines, line)
	}
	if err := rows.Err(); err != nil {
		s.Fatal(err)
	}
	return lines
}

// has makes orders with jobs that are there from the start.
func (s *scene) has(priority int, orders ...order) {
	s.Helper()
	for _, o := range orders {
		s.exec(enqueue, o.Number, priority, s.json(o))
	}
	s.orders = append(s.orders, orders...)
}

func (s *scene) json(o order) string {
	text, err := json.Marshal(o)
	if err != nil {
		s.Fatal(err)
	}
	return string(text)
}

// crossing returns orders among accounts, in all directions.
func crossing(name string, n int, among []int64) (orders []order) {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range n {
		random.Shuffle(len(among), func(i, j int) { among[i], among[j] = among[j], among[i] })
		orders = append(orders, order{fmt.Sprintf("%s-%03d", name, i), among[0], among[1], int64(1 + i%7)})
	}
	return orders
}

// inTx is how transactions are run: by the driver's name alone or as closures.
func (s *scene) inTx(app *jobs.App) func(ctx context.Context, work func(ctx context.Context, tx jobs.Tx) error) error {
	if !s.closures {
		return app.InTx
	}
	return func(ctx context.Context, work func(ctx context.Context, tx jobs.Tx) error) error {
		return pgretry.Retry(ctx, func(ctx context.Context) error { return app.InTx(ctx, work) })
	}
}

func (s *scene) client(i int, work jobs.Work) *jobs.Client {
	app := s.apps[i%len(s.apps)]
	return &jobs.Client{
		App: app, ID: fmt.Sprintf("client-%d", i), Slots: 4, Work: work, InTx: s.inTx(app),
		Failed: func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed = append(s.failed, err)
		},
		Done: func(job jobs.Job) {
			s.mu.Lock()
			defer s.mu.Unlock()
			var o order
			if err := json.Unmarshal(job.Args, &o); err != nil {
				s.Error(err)
			}
			s.done[o.Number]++
			if len(s.done) == len(s.orders) && s.done[o.Number] == 1 {
				close(s.finished)
			}
		},
	}
}

// transfer is the effect of a job. Those among the first two accounts meet in between.
func (s *scene) transfer(ctx context.Context, tx jobs.Tx, job jobs.Job) error {
	var o order
	if err := json.Unmarshal(job.Args, &o); err != nil {
		return err
	}
	if err := tx.Pay(ctx, o.From, -o.Amount); err != nil {
		return err
	}
	if o.From <= 2 {
		if err := s.meet(ctx); err != nil {
			return err
		}
	}
	if err := tx.Pay(ctx, o.To, o.Amount); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1, $2)`, job.ID, o.Number)
	return err
}

// meet waits, once for all, until two are there.
func (s *scene) meet(ctx context.Context) error {
	s.mu.Lock()
	if s.arrived++; s.arrived == 2 {
		close(s.met)
	}
	s.mu.Unlock()
	select {
	case <-s.met:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failures returns the errors so far, and wants conflicts only.
func (s *scene) failures() []error {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.failed {
		if !jobs.IsConflict(err) {
			s.Errorf("no conflict: %v", err)
		}
	}
	return slices.Clone(s.failed)
}

// survived is how many conflicts the driver hid or closures ran again for.
func (s *scene) survived() (n int64) {
	s.Helper()
	for _, app := range s.apps {
		stats, err := pgretry.StatsOf(app.DB())
		if err != nil {
			s.Fatal(err)
		}
		for _, state := range []string{"40001", "40P01"} {
			n += stats.HiddenBySQLState[state] + stats.RetriesBySQLState[state]
		}
	}
	return n
}

// bounded is a context that ends when something hangs.
func (s *scene) bounded() context.Context {
	ctx, cancel := context.WithTimeoutCause(s.Context(), 2*time.Minute, errors.New("it hangs"))
	s.Cleanup(cancel)
	return ctx
}

// isDoneOnce checks that each order took effect once, and was completed.
func (s *scene) isDoneOnce() {
	s.Helper()
	var want, effects []string
	balances := make([]int64, accounts+1)
	for _, o := range s.orders {
		want = append(want, o.Number+" completed")
		effects = append(effects, o.Number+" of its job")
		balances[o.From] -= o.Amount
		balances[o.To] += o.Amount
		if s.done[o.Number] != 1 {
			s.Errorf("%s was done %d times", o.Number, s.done[o.Number])
		}
	}
	slices.Sort(want)
	slices.Sort(effects)
	s.is("jobs", want, `SELECT concat_ws(' ', unique_key, state) FROM job ORDER BY unique_key COLLATE "C"`)
	s.is("effects", effects, `SELECT number || CASE WHEN EXISTS (SELECT FROM job WHERE id = job_id AND unique_key = number)
		THEN ' of its job' ELSE ' of another job' END FROM effect ORDER BY number COLLATE "C"`)
	var left []string
	for i := range balances[1:] {
		left = append(left, fmt.Sprint(deposit+balances[i+1]))
	}
	s.is("balances", left, `SELECT balance FROM account ORDER BY id`)
}

func (s *scene) is(what string, want []string, query string) {
	s.Helper()
	if got := s.read(query); !slices.Equal(got, want) {
		s.Errorf("%s are\n%v, want\n%v", what, got, want)
	}
}

// place places some orders in a transaction, and asks for the job of each.
func place(ctx context.Context, tx jobs.Tx, orders []order) error {
	var rows []script.Stock
	for _, o := range orders {
		rows = append(rows, script.Stock{SKU: o.Number, Quantity: 1})
	}
	if err := tx.UpsertStock(ctx, rows); err != nil {
		return err
	}
	for i, o := range orders {
		if err := tx.Enqueue(ctx, "transfer", o.Number, 1+i%3, o); err != nil {
			return err
		}
	}
	return nil
}
