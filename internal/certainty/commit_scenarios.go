package certainty

import (
	"context"
	"errors"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
)

// commitScenario is one kind of fault.
type commitScenario struct {
	name  string
	share int  // of 1000 trials
	least int  // trials, however few there are in all
	own   bool // it takes a server that can be killed
	run   func(ctx context.Context, r *commitRun, trials int, result *CommitResult) error
}

// commitScenarios are all of them. Those after which the server is another one come
// last.
var commitScenarios = []commitScenario{
	{"a cut before the server got it", 110, 6, false, wire(markerWork, commitFault{request: cutBefore})},
	{"a cut after the server got it", 120, 6, false, wire(markerWork, commitFault{request: cutAfter})},
	{"a cut after the server answered", 120, 6, false, wire(markerWork, commitFault{answer: cutAnswered})},
	{"a cut in the middle of the answer", 110, 6, false, wire(markerWork, commitFault{answer: cutMidAnswer})},
	{"a black hole before the server got it", 60, 4, false, wire(markerWork, commitFault{request: holeBefore})},
	{"a black hole after the server got it", 60, 4, false, wire(markerWork, commitFault{request: holeAfter})},
	{"pg_terminate_backend, in a race", 100, 6, false, wire(markerWork, commitFault{request: terminateInRace})},
	{"a cut during a slow deferred trigger", 70, 6, false, wire(slowWork(0.02), commitFault{request: cutAtRandom})},
	{"a context that is cancelled", 50, 6, false, wire(markerWork, commitFault{request: cancelInRace, answer: delayAtTimes})},
	{"a context that is cancelled during a slow deferred trigger", 30, 4, false, wire(slowWork(0.01), commitFault{request: cancelInRace})},
	{"silence, and a context that is cancelled", 20, 4, false, silence},
	{"a cut of COMMIT sent as a statement", 40, 6, false, wire(rawWork, commitFault{request: cutAround, answer: cutAnsweredAtTimes})},
	{"a cut of PREPARE TRANSACTION", 30, 6, false, wire(prepareWork, commitFault{request: cutAround, answer: cutAnsweredAtTimes})},
	{"a cut of COMMIT PREPARED", 30, 6, false, wire(commitPreparedWork, commitFault{request: cutAround, answer: cutAnsweredAtTimes})},
	{"a cut, and NOTIFY was all there was", 20, 6, false, notifications},
	{"a cut, and a foreign table was written", 20, 6, true, foreignTables},
	{"a backend killed with -9, others taking ids", 12, 8, true, killedBackend},
	{"the server killed with -9, others taking ids", 10, 8, true, killedServer},
	{"a synchronous standby that is gone", 4, 4, true, absentStandby(cutWire)},
	{"a synchronous standby that is gone, and a context that is cancelled", 4, 4, true, absentStandby(giveUp)},
	{"a synchronous standby that is gone, and pg_terminate_backend", 4, 4, true, absentStandby(terminate)},
	{"a synchronous standby that pauses", 4, 4, true, pausingStandby},
	{"a failover to a synchronous standby", 6, 4, true, failover(true)},
	{"a failover to an asynchronous standby", 6, 4, true, failover(false)},
}

// wire is a scenario whose faults are one connection's alone.
func wire(work commitWork, fault commitFault) func(context.Context, *commitRun, int, *CommitResult) error {
	return func(ctx context.Context, r *commitRun, trials int, result *CommitResult) error {
		return r.overWire(ctx, r.config.Workers, work, fault, trials, result)
	}
}

func (r *commitRun) overWire(ctx context.Context, workers int, work commitWork, fault commitFault, trials int, result *CommitResult) (err error) {
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	lanes, err := r.lanes(workers, address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeCommitLanes(lanes)) }()
	return r.each(ctx, lanes, trials, result, func(l *commitLane) *commitTrial { return l.newTrial(work, fault) })
}

// The types of the messages that answer COMMIT.
const (
	commandComplete = 'C'
	readyForQuery   = 'Z'
)

// size is that of a typed message.
func size(m faultproxy.Message) int { return 1 + 4 + len(m.Body) }

func (t *commitTrial) reset() bool { return t.lane.chance.under(2) == 0 }

func cutBefore(t *commitTrial, m faultproxy.Message) faultproxy.Action {
	return t.with(faultproxy.Action{Kind: faultproxy.Cut, Bytes: t.lane.chance.under(size(m)), Reset: t.reset()})
}

func cutAfter(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	return t.with(faultproxy.Action{Kind: faultproxy.Cut, After: true, Reset: t.reset()})
}

// cutAround cuts before or after the request, or leaves it to the answer.
func cutAround(t *commitTrial, m faultproxy.Message) faultproxy.Action {
	switch t.number % 3 {
	case 0:
		return cutBefore(t, m)
	case 1:
		return cutAfter(t, m)
	default:
		return faultproxy.Action{}
	}
}

func cutAnswered(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	return t.with(faultproxy.Action{Kind: faultproxy.Cut, Reset: t.reset()})
}

func cutAnsweredAtTimes(t *commitTrial, m faultproxy.Message) faultproxy.Action {
	if t.number%3 != 2 {
		return faultproxy.Action{}
	}
	return cutAnswered(t, m)
}

// cutMidAnswer lets a part of CommandComplete through, or all of it and a part of
// ReadyForQuery.
func cutMidAnswer(t *commitTrial, m faultproxy.Message) faultproxy.Action {
	if m.Type == commandComplete && t.number%3 != 0 || m.Type == readyForQuery {
		return t.with(faultproxy.Action{Kind: faultproxy.Cut, Bytes: t.lane.chance.under(size(m)), Reset: t.number%4 == 1})
	}
	return faultproxy.Action{}
}

func holeBefore(t *commitTrial, m faultproxy.Message) faultproxy.Action {
	return t.with(faultproxy.Action{Kind: faultproxy.BlackHole, Bytes: t.lane.chance.under(size(m)), Reset: t.reset()})
}

func holeAfter(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	return t.with(faultproxy.Action{Kind: faultproxy.BlackHole, After: true, Reset: t.reset()})
}

// terminateInRace ends the backend while COMMIT is on its way to it or in it.
func terminateInRace(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	r := t.lane.run
	var pid int
	// The driver may open other sessions of the same name afterwards.
	err := r.ask(context.Background(), `SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND backend_xid IS NOT NULL`, []any{t.id}, &pid)
	if err != nil {
		t.fail(err)
		return faultproxy.Action{}
	}
	head, delay := t.lane.chance.upTo(time.Millisecond), t.lane.chance.upTo(2*time.Millisecond)
	t.bystanders.Go(func() {
		_ = commitPause(context.Background(), head) // does not fail
		t.strike()
		if err := r.do(context.Background(), `SELECT pg_terminate_backend($1)`, pid); err != nil {
			t.fail(err)
		}
	})
	return faultproxy.Action{Kind: faultproxy.Delay, Wait: delay}
}

// cutAtRandom cuts at some time around that for which COMMIT lasts.
func cutAtRandom(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	wait, reset := t.lane.chance.upTo(24*time.Millisecond), t.reset()
	t.bystanders.Go(func() {
		_ = commitPause(context.Background(), wait) // does not fail
		t.strike()
		t.lane.proxy.CutAll(reset)
	})
	return faultproxy.Action{}
}

// silence is what an application meets when the network is gone and nobody says so: it
// gives up.
func silence(ctx context.Context, r *commitRun, trials int, result *CommitResult) (err error) {
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	lanes, err := r.lanes(commitTogether, address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeCommitLanes(lanes)) }()
	return r.each(ctx, lanes, trials, result, func(l *commitLane) *commitTrial {
		t := l.newTrial(markerWork, commitFault{request: stallAndCancel})
		t.patience = commitSilence
		return t
	})
}

// stallAndCancel lets nothing more through, and ends the application's context.
func stallAndCancel(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	wait := t.lane.chance.upTo(5 * time.Millisecond)
	t.bystanders.Go(func() {
		_ = commitPause(context.Background(), wait) // does not fail
		t.strike()
		t.abandon()
	})
	return faultproxy.Action{Kind: faultproxy.Stall, After: t.number%2 == 0}
}

// cancelInRace ends the application's context before, while or after COMMIT is
// forwarded, which may also be cut off, as somebody cancels who got no answer.
func cancelInRace(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	wait, delay := t.lane.chance.upTo(3*time.Millisecond), t.lane.chance.upTo(2*time.Millisecond)
	t.bystanders.Go(func() {
		_ = commitPause(context.Background(), wait) // does not fail
		t.strike()
		t.abandon()
	})
	switch t.number % 4 {
	case 0:
		return faultproxy.Action{}
	case 1:
		return faultproxy.Action{Kind: faultproxy.Cut, After: true}
	default:
		return faultproxy.Action{Kind: faultproxy.Delay, Wait: delay}
	}
}

// delayAtTimes lets half of the applications wait for an answer that is there.
func delayAtTimes(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
	if t.number%8 < 4 {
		return faultproxy.Action{}
	}
	return faultproxy.Action{Kind: faultproxy.Delay, Wait: t.lane.chance.upTo(3 * time.Millisecond)}
}
