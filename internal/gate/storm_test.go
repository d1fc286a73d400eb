package gate

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"
)

// storm is a simulation of transactions that lock rows in crossing order: workers in a
// closed loop, a lock table in which a deadlock is found after a while, and a server
// whose processors are shared.
type storm struct {
	workers    int
	rows, take int           // a transaction locks so many of so many rows
	step       time.Duration // processor time per statement
	think      time.Duration // of the application, between statements
	detect     time.Duration // how long a deadlock takes to be found
	cores      int
	ordered    bool // the application locks in order
	seed       uint64
	warm, run  time.Duration

	// switched, if set, tells at a time whether the application locks in order.
	switched func(time.Duration) bool

	random    *rand.Rand
	now       time.Duration
	events    timeline
	number    int
	processor processor
	locks     []rowLock
	deck      []int // the rows, shuffled
	gate      admission

	commits, deadlocks int
}

// admission is what lets transactions in: a gate, a fixed limit or nothing.
type admission interface {
	enter(s *storm, w *stormWorker)
	leave(s *storm, w *stormWorker, outcome Outcome)
}

type stormWorker struct {
	since    time.Duration
	order    []int
	held     int
	waitsFor int // row, or -1
	attempt  int // number of waits, to tell late detections
	retries  int
	ticket   *Ticket
}

type rowLock struct {
	holder *stormWorker
	queue  []*stormWorker
}

var epochStart = time.Unix(1_000_000, 0)

func (s *storm) clock() time.Time { return epochStart.Add(s.now) }

// result of a run, per second after the warm-up.
type stormResult struct{ goodput, deadlocks float64 }

func (s *storm) simulate(gate admission) stormResult {
	s.random = rand.New(rand.NewPCG(s.seed, 1))
	s.gate = gate
	s.locks = make([]rowLock, s.rows)
	s.deck = make([]int, s.rows)
	for i := range s.deck {
		s.deck[i] = i
	}
	s.processor.cores = s.cores
	for range s.workers {
		w := &stormWorker{waitsFor: -1}
		s.at(time.Duration(s.random.Int64N(int64(time.Millisecond))), func() { s.begin(w) })
	}
	var commits, deadlocks int
	end := s.warm + s.run
	counted := false
	for len(s.events) > 0 {
		e := heap.Pop(&s.events).(event)
		if e.at > end {
			break
		}
		if !counted && e.at >= s.warm {
			counted, commits, deadlocks = true, s.commits, s.deadlocks
		}
		s.now = e.at
		e.do()
	}
	return stormResult{
		float64(s.commits-commits) / s.run.Seconds(),
		float64(s.deadlocks-deadlocks) / s.run.Seconds(),
	}
}

func (s *storm) at(when time.Duration, do func()) {
	s.number++
	heap.Push(&s.events, event{when, s.number, do})
}

func (s *storm) begin(w *stormWorker) {
	w.since = s.now
	w.retries = 0
	for i := range s.take {
		j := i + s.random.IntN(s.rows-i)
		s.deck[i], s.deck[j] = s.deck[j], s.deck[i]
	}
	w.order = append(w.order[:0], s.deck[:s.take]...)
	ordered := s.ordered
	if s.switched != nil {
		ordered = s.switched(s.now)
	}
	if ordered {
		slices.Sort(w.order)
	}
	s.gate.enter(s, w)
}

func (s *storm) admitted(w *stormWorker) { s.next(w) }

// next runs the next statement, or COMMIT.
func (s *storm) next(w *stormWorker) {
	if w.held == len(w.order) {
		s.compute(s.step, func() { s.commit(w) })
		return
	}
	row := w.order[w.held]
	lock := &s.locks[row]
	if lock.holder == nil {
		lock.holder = w
		s.locked(w)
		return
	}
	w.waitsFor = row
	w.attempt++
	attempt := w.attempt
	lock.queue = append(lock.queue, w)
	s.at(s.now+s.detect, func() {
		if w.attempt == attempt && w.waitsFor >= 0 && s.circular(w) {
			s.abort(w)
		}
	})
}

func (s *storm) locked(w *stormWorker) {
	w.waitsFor = -1
	w.held++
	s.compute(s.step, func() {
		if s.think == 0 {
			s.next(w)
			return
		}
		s.at(s.now+s.think, func() { s.next(w) })
	})
}

// circular says whether the worker waits for itself.
func (s *storm) circular(w *stormWorker) bool {
	seen := map[*stormWorker]bool{}
	for at := w; at.waitsFor >= 0; {
		at = s.locks[at.waitsFor].holder
		if at == w {
			return true
		}
		if seen[at] {
			return false
		}
		seen[at] = true
	}
	return false
}

func (s *storm) commit(w *stormWorker) {
	s.commits++
	s.release(w)
	s.gate.leave(s, w, Committed)
	s.begin(w)
}

func (s *storm) abort(w *stormWorker) {
	s.deadlocks++
	lock := &s.locks[w.waitsFor]
	lock.queue = slices.DeleteFunc(lock.queue, func(o *stormWorker) bool { return o == w })
	w.waitsFor = -1
	s.release(w)
	s.gate.leave(s, w, Deadlocked)
	bound := min(10*time.Millisecond<<min(w.retries, 10), time.Second)
	w.retries++
	s.at(s.now+time.Duration(s.random.Int64N(int64(bound))), func() { s.gate.enter(s, w) })
}

func (s *storm) release(w *stormWorker) {
	held := w.order[:w.held]
	w.held = 0
	for _, row := range held {
		lock := &s.locks[row]
		lock.holder = nil
		if len(lock.queue) > 0 {
			heir := lock.queue[0]
			lock.queue = lock.queue[1:]
			lock.holder = heir
			s.locked(heir)
		}
	}
}

// compute runs something on the processors, which those who compute share.
func (s *storm) compute(cost time.Duration, done func()) {
	s.processor.advance(s.now)
	s.number++
	heap.Push(&s.processor.jobs, job{s.processor.service + float64(cost), s.number, done})
	s.wake()
}

// wake has the first job that will be done be looked at when it is.
func (s *storm) wake() {
	p := &s.processor
	p.version++
	version := p.version
	if len(p.jobs) == 0 {
		return
	}
	left := (p.jobs[0].at - p.service) / p.speed()
	s.at(s.now+time.Duration(left)+1, func() {
		if p.version != version {
			return
		}
		p.advance(s.now)
		var done []func()
		for len(p.jobs) > 0 && p.jobs[0].at <= p.service {
			done = append(done, heap.Pop(&p.jobs).(job).done)
		}
		for _, do := range done {
			do()
		}
		s.wake()
	})
}

type processor struct {
	cores   int
	service float64 // nanoseconds that each job has got
	last    time.Duration
	jobs    jobs
	version int
}

func (p *processor) speed() float64 { return min(1, float64(p.cores)/float64(len(p.jobs))) }

func (p *processor) advance(now time.Duration) {
	if len(p.jobs) > 0 {
		p.service += float64(now-p.last) * p.speed()
	}
	p.last = now
}

type job struct {
	at     float64
	number int
	done   func()
}

type jobs []job

func (j jobs) Len() int      { return len(j) }
func (j jobs) Swap(a, b int) { j[a], j[b] = j[b], j[a] }
func (j *jobs) Push(x any)   { *j = append(*j, x.(job)) }
func (j jobs) Less(a, b int) bool {
	if j[a].at != j[b].at {
		return j[a].at < j[b].at
	}
	return j[a].number < j[b].number
}

func (j *jobs) Pop() any {
	last := len(*j) - 1
	x := (*j)[last]
	*j = (*j)[:last]
	return x
}

type event struct {
	at     time.Duration
	number int
	do     func()
}

type timeline []event

func (l timeline) Len() int      { return len(l) }
func (l timeline) Swap(a, b int) { l[a], l[b] = l[b], l[a] }
func (l *timeline) Push(x any)   { *l = append(*l, x.(event)) }
func (l timeline) Less(a, b int) bool {
	if l[a].at != l[b].at {
		return l[a].at < l[b].at
	}
	return l[a].number < l[b].number
}

func (l *timeline) Pop() any {
	last := len(*l) - 1
	x := (*l)[last]
	*l = (*l)[:last]
	return x
}

// limited is a limit that does not adapt; 0 is none.
type limited struct {
	limit, inside int
	queue         queue
	number        uint64
}

func (f *limited) enter(s *storm, w *stormWorker) {
	f.number++
	t := &Ticket{since: epochStart.Add(w.since), number: f.number, admit: func() { s.admitted(w) }}
	f.queue.add(t)
	f.serve()
}

func (f *limited) leave(*storm, *stormWorker, Outcome) {
	f.inside--
	f.serve()
}

func (f *limited) serve() {
	for len(f.queue) > 0 && (f.limit == 0 || f.inside < f.limit) {
		t := f.queue[0]
		f.queue.remove(t)
		f.inside++
		t.admit()
	}
}

// adaptive is the gate.
type adaptive struct {
	limiter *Limiter
	trace   func(now time.Duration)
}

func (a *adaptive) enter(s *storm, w *stormWorker) {
	// What follows an admission comes after what led to it, as in another goroutine.
	admit := func() { s.at(s.now, func() { s.admitted(w) }) }
	w.ticket = a.limiter.Arrive(s.clock(), Request{Since: epochStart.Add(w.since), Admit: admit})
	if w.ticket.Inside() {
		admit()
		return
	}
	a.watch(s, w.ticket)
}

func (a *adaptive) watch(s *storm, t *Ticket) {
	s.at(a.limiter.Due(t).Sub(epochStart), func() {
		a.limiter.Expire(s.clock(), t)
		if t.state == waiting {
			a.watch(s, t)
		}
	})
}

func (a *adaptive) leave(s *storm, w *stormWorker, outcome Outcome) {
	a.limiter.Leave(s.clock(), w.ticket, outcome)
	if a.trace != nil {
		a.trace(s.now)
	}
}
