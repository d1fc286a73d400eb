package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgretry/pgretry/compat/jobs"
)

// A disturbance is a driver for each of us and lib/pq, and what becomes of transactions.
var disturbances = []struct {
	name         string
	ours, theirs string
	meets        bool // two jobs deadlock for sure
}{
	{"in deadlocks", "postgres-retry", "postgres", true},
	{"aborted with p=0.2", "postgres-retry-aborting-0.2-outside", "postgres-aborting-0.2-outside", false},
	{"aborted with p=0.5", "postgres-retry-aborting-0.5-outside", "postgres-aborting-0.5-outside", false},
}

// disturbed runs a test in each disturbance, by the driver's name alone and in closures.
func disturbed(t *testing.T, test func(s *scene, meets bool)) {
	t.Helper()
	for _, closures := range []bool{false, true} {
		for _, d := range disturbances {
			how := map[bool]string{false: "by the driver's name alone", true: "in closures"}[closures]
			t.Run(how+", "+d.name, func(t *testing.T) { test(enter(t, d.ours, closures), d.meets) })
		}
	}
}

// withoutUs runs a test in each disturbance over lib/pq.
func withoutUs(t *testing.T, test func(s *scene, meets bool)) {
	t.Helper()
	for _, d := range disturbances {
		t.Run(d.name, func(t *testing.T) { test(enter(t, d.theirs, false), d.meets) })
	}
}

func TestEachJobIsDoneOnceAndTheQueueSeesNoConflict(t *testing.T) {
	disturbed(t, func(s *scene, meets bool) {
		s.runs(meets)
		s.isDoneOnce()
		if failed := s.failures(); len(failed) > 0 {
			s.Errorf("%d times something failed, first with %v", len(failed), failed[0])
		}
		s.is("attempts", []string{"other: 1, {}", "stuck: 2, {stuck}"},
			`SELECT DISTINCT CASE WHEN unique_key LIKE 'stuck-%' THEN 'stuck: ' ELSE 'other: ' END || attempt || ', ' || errors::text FROM job ORDER BY 1`)
		if s.survived() == 0 {
			s.Error("there were no conflicts")
		}
	})
}

func TestJobsFailWithoutUs(t *testing.T) {
	withoutUs(t, func(s *scene, meets bool) {
		s.runs(meets)
		s.isDoneOnce() // each failure was noticed, and the job done again
		if len(s.failures()) == 0 {
			s.Error("nothing failed, so the other test proves nothing")
		}
		if noted := strings.Join(s.read(`SELECT unnest(errors) FROM job`), "\n"); !strings.Contains(noted, "(40P01)") && !strings.Contains(noted, "(40001)") {
			s.Errorf("no job failed with a conflict:\n%s", noted)
		}
	})
}

// runs has producers place each order twice, while clients do the jobs and the leader among
// them rescues what a dead client has left.
func (s *scene) runs(meets bool) {
	s.Helper()
	ctx, stop := context.WithCancel(s.bounded())
	defer stop()

	stuck := crossing("stuck", 3, []int64{3, 4, 5})
	s.has(1, stuck...)
	dead := s.client(2, s.transfer)
	dead.App, dead.Now = s.plain, func() time.Time { return time.Now().Add(-time.Hour) }
	if claimed, err := dead.Claim(ctx, len(stuck)); err != nil || len(claimed) != len(stuck) {
		s.Fatalf("%d jobs claimed, %v", len(claimed), err)
	}
	if meets {
		s.has(0, order{"meeting-1", 1, 2, 5}, order{"meeting-2", 2, 1, 3})
	}
	orders := crossing("order", 40, []int64{3, 4, 5, 6, 7, 8})
	s.orders = append(s.orders, orders...)

	var running, working sync.WaitGroup
	var clients []*jobs.Client
	for i := range s.apps {
		c := s.client(i, s.transfer)
		clients = append(clients, c)
		l, err := jobs.Listen(s.dsn)
		if err != nil {
			s.Fatal(err)
		}
		running.Go(func() {
			if err := errors.Join(c.Run(ctx, l), l.Close()); err != nil {
				s.Error(err)
			}
		})
	}
	if meets { // while nobody else of their kind is about, who would have them wait
		select {
		case <-s.met:
		case <-ctx.Done():
			s.Fatal(context.Cause(ctx))
		}
	}
	for _, c := range clients {
		working.Go(func() { s.leads(ctx, c) })
	}
	for p := range 4 {
		working.Go(func() { s.produces(ctx, p, slices.Clone(orders[p%2*20:][:20])) })
	}
	working.Wait()
	select {
	case <-s.finished:
	case <-ctx.Done():
		s.Errorf("%d of %d jobs are done: %v", len(s.read(`SELECT 1 FROM effect`)), len(s.orders), context.Cause(ctx))
	}
	stop()
	running.Wait()
	s.is("orders", placedTwice(orders), `SELECT concat_ws(' ', sku, quantity) FROM stock ORDER BY sku COLLATE "C"`)
	s.is("leaders", []string{"1"}, `SELECT count(*) FROM job_leader`)
}

func placedTwice(orders []order) (lines []string) {
	for _, o := range orders {
		lines = append(lines, o.Number+" 2")
	}
	return lines
}

// leads stands for election. That a client is told to be the leader others can change, so
// that by the driver's name alone a conflict after that may come through.
func (s *scene) leads(ctx context.Context, c *jobs.Client) {
	for {
		switch _, err := c.Lead(ctx); {
		case err == nil:
			return
		case !jobs.IsConflict(err) || s.closures:
			s.Error(err)
			return
		}
	}
}

// produces places orders, some at a time, in an order of its own, and does so again after a
// conflict.
func (s *scene) produces(ctx context.Context, producer int, orders []order) {
	c := s.client(producer, nil)
	random := rand.New(rand.NewPCG(2, uint64(producer)))
	random.Shuffle(len(orders), func(i, j int) { orders[i], orders[j] = orders[j], orders[i] })
	for some := range slices.Chunk(orders, 5) {
		for {
			err := c.InTx(ctx, func(ctx context.Context, tx jobs.Tx) error { return place(ctx, tx, some) })
			if err == nil {
				break
			}
			c.Failed(fmt.Errorf("producer: %w", err))
			if !jobs.IsConflict(err) {
				return
			}
		}
	}
}

func TestJobsClaimedInTheirTransactionAreDoneOnce(t *testing.T) {
	disturbed(t, func(s *scene, meets bool) {
		s.worksOff(meets)
		s.isDoneOnce()
		// A replay from BEGIN lets go of the job, which then is somebody else's, and no pin is
		// set after what SKIP LOCKED has shown: by the driver's name alone the conflicts come
		// through, and the job is available as it was before.
		failed := s.failures()
		if s.closures && len(failed) > 0 {
			s.Errorf("%d times something failed, first with %v", len(failed), failed[0])
		}
		if s.survived()+int64(len(failed)) == 0 {
			s.Error("there were no conflicts")
		}
	})
}

func TestJobsClaimedInTheirTransactionFailWithoutUs(t *testing.T) {
	withoutUs(t, func(s *scene, meets bool) {
		s.worksOff(meets)
		s.isDoneOnce()
		if len(s.failures()) == 0 {
			s.Error("nothing failed, so the other test proves nothing")
		}
	})
}

// worksOff has clients do the jobs that are there.
func (s *scene) worksOff(meets bool) {
	s.Helper()
	ctx := s.bounded()
	if meets {
		s.has(0, order{"meeting-1", 1, 2, 5}, order{"meeting-2", 2, 1, 3})
	}
	s.has(1, crossing("order", 40, []int64{3, 4, 5, 6})...)
	var working sync.WaitGroup
	for i := range 6 {
		c := s.client(i, s.transfer)
		working.Go(func() {
			for {
				found, err := c.DoNext(ctx)
				switch {
				case err != nil:
					c.Failed(err)
					if !jobs.IsConflict(err) {
						return
					}
				case !found:
					return // what others have locked they do, or do again
				}
			}
		})
	}
	working.Wait()
}

func TestAJobThatWasRescuedIsNotDoneByTheOneWhoHadIt(t *testing.T) {
	disturbed(t, func(s *scene, _ bool) {
		s.has(1, order{"order", 3, 4, 10})
		ctx := s.bounded()
		first, second := s.client(0, s.transfer), s.client(1, s.transfer)
		claim := func(c *jobs.Client) (job jobs.Job) {
			claimed, err := c.Claim(ctx, 1)
			if err != nil || len(claimed) != 1 {
				s.Fatalf("%d jobs claimed, %v", len(claimed), err)
			}
			return claimed[0]
		}
		had := claim(first)
		second.Now = func() time.Time { return time.Now().Add(time.Hour) }
		if leads, err := second.Lead(ctx); err != nil || !leads {
			s.Fatalf("leader: %t, %v", leads, err)
		}
		has := claim(second)
		if err := first.Do(ctx, had); !errors.Is(err, jobs.ErrLost) {
			s.Errorf("the first does it, with %v", err)
		}
		if err := second.Do(ctx, has); err != nil {
			s.Error(err)
		}
		if err := second.Do(ctx, has); !errors.Is(err, jobs.ErrLost) {
			s.Errorf("the second does it again, with %v", err)
		}
		s.done["order"] = 1
		s.isDoneOnce()
	})
}

func TestThereIsOneLeader(t *testing.T) {
	disturbed(t, func(s *scene, _ bool) {
		ctx := s.bounded()
		for hours := range 5 {
			var mu sync.Mutex
			var told []string
			var candidates sync.WaitGroup
			for i := range 4 {
				c := s.client(i, s.transfer)
				c.Now = func() time.Time { return time.Now().Add(time.Duration(hours) * time.Hour) }
				candidates.Go(func() {
					for {
						leads, err := c.Lead(ctx)
						switch {
						case jobs.IsConflict(err) && !s.closures:
							continue
						case err != nil:
							s.Error(err)
						case leads:
							mu.Lock()
							told = append(told, c.ID)
							mu.Unlock()
						}
						return
					}
				})
			}
			candidates.Wait()
			s.is("leaders", told, `SELECT leader_id FROM job_leader`)
		}
	})
}
