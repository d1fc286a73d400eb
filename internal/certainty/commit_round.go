package certainty

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/faultproxy"
)

// commitRound is some transactions whose COMMITs meet one disaster together.
type commitRound struct {
	run    *commitRun
	number int
	trials []*commitTrial

	arrived   chan struct{} // gets one for every transaction that has come to COMMIT, or has ended before
	proceed   chan struct{} // closed when COMMITs that shall reach the server may do so
	over      chan struct{} // closed when the server is back and others have taken ids
	settled   chan struct{} // closed when the truth can be read
	answered  chan struct{} // gets one for every COMMIT that the server answered
	xids      []int64
	pids      []int
	findings  []commitFinding
	announced sync.Map // of trials that arrived
}

// commitDisaster is what a round meets.
type commitDisaster struct {
	// begin is called before the transactions begin. Nil does nothing.
	begin func(*commitRound) error
	// strike is called when all have come to COMMIT. It lets those through that shall
	// reach the server, and returns when the server is back and the truth can be read.
	strike func(context.Context, *commitRound) error
}

// rounds runs the trials in rounds of as many as there are lanes.
func (r *commitRun) rounds(ctx context.Context, lanes []*commitLane, trials int, result *CommitResult, disaster commitDisaster) error {
	for number := 0; trials > 0; number++ {
		round := &commitRound{
			run: r, number: number,
			proceed: make(chan struct{}), over: make(chan struct{}), settled: make(chan struct{}),
		}
		for _, l := range lanes[:min(trials, len(lanes))] {
			t := l.newTrial(markerWork, commitFault{request: round.request, answer: round.answer})
			t.strikes, t.nag, t.settled = 1, false, round.settled
			round.trials = append(round.trials, t)
		}
		trials -= len(round.trials)
		round.arrived = make(chan struct{}, len(round.trials))
		round.answered = make(chan struct{}, len(round.trials))
		if err := round.play(ctx, disaster); err != nil {
			return fmt.Errorf("round %d: %w", number, err)
		}
		for _, f := range round.findings {
			result.add(f)
		}
		if err := round.countReissued(ctx, result); err != nil {
			return err
		}
	}
	return nil
}

// play runs the transactions up to COMMIT, then the disaster, and waits for verdicts.
func (c *commitRound) play(ctx context.Context, disaster commitDisaster) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if disaster.begin != nil {
		if err := disaster.begin(c); err != nil {
			return err
		}
	}
	c.findings = make([]commitFinding, len(c.trials))
	var all sync.WaitGroup
	for i, t := range c.trials {
		all.Go(func() {
			finding, err := t.try(ctx)
			if err != nil {
				cancel(fmt.Errorf("%s: %w", t.id, err))
			}
			c.findings[i] = finding
			c.arrive(t)
		})
	}
	err := c.await(ctx)
	if err == nil {
		err = disaster.strike(ctx, c)
	}
	if err != nil {
		cancel(err)
	}
	commitClose(c.proceed)
	commitClose(c.over)
	commitClose(c.settled)
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// commitClose closes a channel unless it is closed.
func commitClose(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// arrive notes that a transaction has come to COMMIT or to its end.
func (c *commitRound) arrive(t *commitTrial) {
	if _, known := c.announced.LoadOrStore(t, true); !known {
		c.arrived <- struct{}{}
	}
}

// await waits until all have arrived, and asks who they are at the server.
func (c *commitRound) await(ctx context.Context) error {
	limit := time.NewTimer(commitPatience)
	defer limit.Stop()
	names := make([]string, 0, len(c.trials))
	for _, t := range c.trials {
		names = append(names, t.id)
		select {
		case <-c.arrived:
		case <-limit.C:
			return errors.New("not all transactions come to COMMIT")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	rows, err := c.run.admin.Load().QueryContext(ctx,
		`SELECT pid, backend_xid::text::bigint FROM pg_stat_activity WHERE application_name = ANY($1) AND backend_xid IS NOT NULL`, pq.Array(names))
	if err != nil {
		return fmt.Errorf("look at the transactions: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var pid int
		var xid int64
		if err := rows.Scan(&pid, &xid); err != nil {
			return fmt.Errorf("look at the transactions: %w", err)
		}
		c.pids, c.xids = append(c.pids, pid), append(c.xids, xid)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look at the transactions: %w", err)
	}
	if len(c.pids) == 0 {
		return errors.New("no transaction of the round is at the server")
	}
	return nil
}

// reaches says whether a transaction's COMMIT shall reach the server. None does in a
// round that is quiet: the log is not written then, and all ids become free.
func (c *commitRound) reaches(t *commitTrial) bool { return !c.quiet() && t.number%2 == 0 }

// quiet says whether others rest until the disaster.
func (c *commitRound) quiet() bool { return c.number%2 == 0 }

// shut says whether the driver is kept out until others have taken ids.
func (c *commitRound) shut() bool { return c.number%4 < 2 }

// request holds COMMIT until all have come so far, or until the disaster is over.
func (c *commitRound) request(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	c.arrive(t)
	if c.reaches(t) {
		<-c.proceed
		return t.with(faultproxy.Action{})
	}
	<-c.proceed
	t.strike()
	<-c.over
	return faultproxy.Action{Kind: faultproxy.Cut, Reset: t.reset()}
}

// answer swallows what the server says: that is for somebody else to find out. Some may
// hear that it goes down.
func (c *commitRound) answer(t *commitTrial, m faultproxy.Message) faultproxy.Action {
	switch {
	case m.Type == commandComplete:
		c.answered <- struct{}{}
	case t.number%3 == 0:
		return faultproxy.Action{}
	}
	<-c.over
	return faultproxy.Action{Kind: faultproxy.Cut, Reset: t.reset()}
}

// refuse keeps the driver out, or lets it in again.
func (c *commitRound) refuse(refuse bool) {
	for _, t := range c.trials {
		t.lane.proxy.Refuse(refuse)
	}
}

// countReissued counts the ids that others got as well.
func (c *commitRound) countReissued(ctx context.Context, result *CommitResult) error {
	var n int
	err := c.run.ask(ctx, `SELECT count(DISTINCT xid) FROM others WHERE xid = ANY($1)`, []any{pq.Array(c.xids)}, &n)
	if err != nil {
		return fmt.Errorf("look for ids issued again: %w", err)
	}
	result.Reissued += n
	return nil
}
