package main

import (
	"math/rand/v2"
	"time"

	"github.com/pgretry/pgretry/internal/gate"
)

// The network's delay is normally distributed.
const (
	delayMean      = 10 * time.Millisecond
	delayDeviation = 2 * time.Millisecond
)

// outcome is what a run took.
type outcome struct {
	completion time.Duration // until all clients had succeeded, and knew
	calls      int           // writes, those included that failed
}

// row is the simulation of one row and its clients.
type row struct {
	random  *rand.Rand
	version int
	clients []client
	events  timeline
	limiter *gate.Limiter // nil without a gate
	outcome outcome
}

type client struct {
	wait    waiter
	read    int // version
	attempt int32
	ticket  *gate.Ticket
}

// simulate runs one strategy with so many clients.
func simulate(s strategy, clients int, seed uint64) outcome {
	r := &row{
		random:  rand.New(rand.NewPCG(seed, uint64(clients))),
		clients: make([]client, clients),
	}
	if s.gated {
		r.limiter = gate.NewLimiter(gate.Config{})
	}
	for i := range r.clients {
		r.clients[i].wait = s.wait(r.random)
		r.begin(0, i)
	}
	for len(r.events) > 0 {
		e := r.events.pop()
		switch e.kind {
		case readArrives:
			c := &r.clients[e.client]
			c.read = r.version
			r.events.push(event{at: e.at + r.delay() + r.delay(), client: e.client, kind: writeArrives})
		case writeArrives:
			r.write(e)
		case answerArrives:
			r.leave(e.at, int(e.client), gate.Committed)
		case conflictArrives:
			r.leave(e.at, int(e.client), gate.Deadlocked)
			again := e.at + r.clients[e.client].wait.NextBackOff()
			if r.limiter == nil {
				r.attempt(again, int(e.client))
			} else {
				r.events.push(event{at: again, client: e.client, kind: begins})
			}
		case begins:
			r.begin(e.at, int(e.client))
		case expires:
			if c := &r.clients[e.client]; c.attempt == e.attempt {
				r.limiter.Expire(clock(e.at), c.ticket)
				r.watch(int(e.client))
			}
		}
	}
	return r.outcome
}

func (r *row) write(e event) {
	r.outcome.calls++
	answer := e.at + r.delay()
	if r.clients[e.client].read != r.version {
		r.events.push(event{at: answer, client: e.client, kind: conflictArrives})
		return
	}
	r.version++
	r.outcome.completion = max(r.outcome.completion, answer)
	r.events.push(event{at: answer, client: e.client, kind: answerArrives})
}

// attempt has a client's read on its way.
func (r *row) attempt(at time.Duration, client int) {
	r.events.push(event{at: at + r.delay(), client: int32(client), kind: readArrives})
}

// begin begins an attempt, at the gate if there is one. All clients began at about the same
// time, but in an order, which is their age.
func (r *row) begin(at time.Duration, client int) {
	if r.limiter == nil {
		r.attempt(at, client)
		return
	}
	c := &r.clients[client]
	c.ticket = r.limiter.Arrive(clock(at), gate.Request{
		Since: clock(time.Duration(client)),
		Admit: func() { r.attempt(at+c.ticket.Waited(), client) },
	})
	c.attempt++
	if c.ticket.Inside() {
		r.attempt(at, client)
		return
	}
	r.watch(client)
}

// watch has a client's wait at the gate end in time.
func (r *row) watch(client int) {
	if c := &r.clients[client]; c.ticket.Waiting() {
		due := r.limiter.Due(c.ticket).Sub(clock(0))
		r.events.push(event{at: due, client: int32(client), attempt: c.attempt, kind: expires})
	}
}

func (r *row) leave(at time.Duration, client int, what gate.Outcome) {
	if r.limiter != nil {
		r.limiter.Leave(clock(at), r.clients[client].ticket, what)
	}
}

func (r *row) delay() time.Duration {
	return (delayMean + time.Duration(r.random.NormFloat64()*float64(delayDeviation))).Abs()
}

func clock(at time.Duration) time.Time { return time.Unix(0, 0).Add(at) }
