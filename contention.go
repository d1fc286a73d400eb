package pgretry

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgretry/pgretry/internal/gate"
	"github.com/pgretry/pgretry/internal/sqltext"
)

const (
	// maxKinds bounds how many kinds of transactions are remembered.
	maxKinds = 256
	// kindMemory is how long a kind is remembered after its last conflict.
	kindMemory = 5 * time.Minute
	// maxFingerprints bounds how many texts' fingerprints are remembered.
	maxFingerprints = 4096
)

// conflictMemory knows which kinds of transactions have deadlocked lately, and what to do
// about it. As long as none has, it is a pointer that is nil.
type conflictMemory struct {
	connector *Connector
	kinds     atomic.Pointer[map[kindKey]*kind] // never changed, only replaced

	fingerprintsMu sync.RWMutex
	fingerprints   map[string]string // of texts

	calmAt atomic.Int64 // no kind is to be forgotten before, in nanoseconds since 1970

	mu       sync.Mutex
	detector detector
	leases   leases
}

// kindKey is by what transactions are taken to be of one kind: the name that the
// application gave them, or else the fingerprint of the first statement that locks.
type kindKey struct{ name, fingerprint string }

// kind is what is known of a kind of transactions that has had conflicts.
type kind struct {
	key  kindKey
	gate atomic.Pointer[gate.Gate] // two kinds that deadlock with each other share one
	last atomic.Int64              // conflict, in nanoseconds since 1970

	deadlocks atomic.Int64
	early     atomic.Int64 // of those, found by the detector
	waits     atomic.Int64 // at the gate
	waited    atomic.Int64 // altogether, in nanoseconds
	pins      pinRecord
}

// isHot says whether there is anything to remember.
func (m *conflictMemory) isHot() bool { return m.kinds.Load() != nil }

// find returns a kind, nil if none of its transactions has had a conflict.
func (m *conflictMemory) find(key kindKey) *kind {
	kinds := m.kinds.Load()
	if kinds == nil {
		return nil
	}
	return (*kinds)[key]
}

// keyOf returns the key of a transaction by its name or its first statement that locks.
func (m *conflictMemory) keyOf(name, text string) kindKey {
	if name != "" || text == "" {
		return kindKey{name: name}
	}
	m.fingerprintsMu.RLock()
	fingerprint, known := m.fingerprints[text]
	m.fingerprintsMu.RUnlock()
	if known {
		return kindKey{fingerprint: fingerprint}
	}
	fingerprint = sqltext.Fingerprint(text)
	if len(text) <= analysedTextBytes {
		m.fingerprintsMu.Lock()
		if m.fingerprints == nil || len(m.fingerprints) >= maxFingerprints {
			m.fingerprints = make(map[string]string)
		}
		m.fingerprints[text] = fingerprint
		m.fingerprintsMu.Unlock()
	}
	return kindKey{fingerprint: fingerprint}
}

// learn returns a kind that has just had a conflict.
func (m *conflictMemory) learn(key kindKey) *kind {
	now := m.connector.config.now()
	k := m.find(key)
	if k == nil {
		k = m.add(key, now)
	}
	k.last.Store(now.UnixNano())
	return k
}

// add remembers one kind more and forgets those that have been calm for long, and the
// calmest if there are too many.
func (m *conflictMemory) add(key kindKey, now time.Time) *kind {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.find(key); k != nil {
		return k
	}
	old := m.kinds.Load()
	kinds := make(map[kindKey]*kind)
	if old != nil {
		for k, v := range *old {
			if now.UnixNano()-v.last.Load() < kindMemory.Nanoseconds() {
				kinds[k] = v
			}
		}
	}
	for len(kinds) >= maxKinds {
		var calmest *kind
		for _, k := range kinds {
			if calmest == nil || k.last.Load() < calmest.last.Load() {
				calmest = k
			}
		}
		delete(kinds, calmest.key)
	}
	k := &kind{key: key}
	k.gate.Store(gate.New(m.connector.config.gate))
	k.last.Store(now.UnixNano())
	kinds[key] = k
	m.put(kinds)
	return k
}

// put replaces what is remembered. The caller holds mu.
func (m *conflictMemory) put(kinds map[kindKey]*kind) {
	if len(kinds) == 0 {
		m.kinds.Store(nil)
		return
	}
	calmest := int64(math.MaxInt64)
	for _, k := range kinds {
		calmest = min(calmest, k.last.Load())
	}
	m.calmAt.Store(calmest + kindMemory.Nanoseconds())
	m.kinds.Store(&kinds)
}

// decay forgets the kinds that have been calm for long.
func (m *conflictMemory) decay(now time.Time) {
	if now.UnixNano() < m.calmAt.Load() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.kinds.Load()
	if old == nil {
		return
	}
	kinds := make(map[kindKey]*kind, len(*old))
	for key, k := range *old {
		if now.UnixNano()-k.last.Load() < kindMemory.Nanoseconds() {
			kinds[key] = k
		}
	}
	m.put(kinds)
}

// merge makes the kinds of a deadlock's other sides wait at the same gate: one limit for
// each would let them deadlock with each other all the same.
func (m *conflictMemory) merge(k *kind, others []*conn) {
	for _, c := range others {
		other := c.kind.Load()
		if other == nil || other == k {
			continue
		}
		m.mu.Lock()
		shared, own := k.gate.Load(), other.gate.Load()
		if other.deadlocks.Load() > k.deadlocks.Load() {
			shared, own = own, shared // that one knows more
		}
		if shared == own {
			m.mu.Unlock()
			continue
		}
		k.gate.Store(shared)
		other.gate.Store(shared)
		if kinds := m.kinds.Load(); kinds != nil {
			for _, third := range *kinds {
				third.gate.CompareAndSwap(own, shared)
			}
		}
		m.mu.Unlock()
		own.Dissolve()
	}
}

// keysOf returns the kinds that share a gate.
func (m *conflictMemory) keysOf(g *gate.Gate) (keys []kindKey) {
	kinds := m.kinds.Load()
	if kinds == nil {
		return nil
	}
	for key, k := range *kinds {
		if k.gate.Load() == g {
			keys = append(keys, key)
		}
	}
	return keys
}

// stay is a transaction's, or a lone statement's, stay inside the gate of its kind. The
// zero value is none.
type stay struct {
	memory     *conflictMemory
	kind       *kind
	pass       gate.Pass
	deadlocked bool
}

// enter waits until a transaction of the kind may go on, which began at since. An error is
// the context's: then it has not entered.
func (m *conflictMemory) enter(ctx context.Context, k *kind, since time.Time, wait bool) (stay, error) {
	s := stay{memory: m, kind: k}
	if m.connector.config.contention&ContentionLimit == 0 {
		return s, nil
	}
	g := k.gate.Load()
	if g.Limit() > 0 {
		m.leases.want(g)
	}
	if !wait {
		s.pass = g.Enlist()
		return s, nil
	}
	// No wait is to be the reason for there being no further attempt.
	pass, err := g.EnterBefore(ctx, since, since.Add(m.connector.config.policy.MaxElapsed))
	if err != nil {
		return stay{}, err
	}
	s.pass = pass
	if waited := pass.Waited(); waited > 0 {
		k.waits.Add(1)
		k.waited.Add(int64(waited))
		m.connector.telemetry.queued(ctx, k, waited)
	}
	return s, nil
}

// leave ends the stay.
func (s *stay) leave(o outcome) {
	if s.kind == nil {
		return
	}
	result := gate.Other
	switch {
	case s.deadlocked:
		result = gate.Deadlocked
	case o == outcomeCommitted:
		result = gate.Committed
	}
	before := s.limit()
	s.pass.Leave(result)
	if after := s.limit(); after != before {
		s.memory.connector.telemetry.limited(s.kind, after)
	}
	s.memory.decay(s.memory.connector.config.now())
	*s = stay{}
}

func (s *stay) limit() int {
	if s.memory.connector.config.contention&ContentionLimit == 0 {
		return 0
	}
	return s.kind.gate.Load().Limit()
}

// snapshot tells what is remembered.
func (m *conflictMemory) snapshot() []KindStats {
	kinds := m.kinds.Load()
	if kinds == nil {
		return nil
	}
	found := make([]KindStats, 0, len(*kinds))
	for key, k := range *kinds {
		g := k.gate.Load()
		found = append(found, KindStats{
			Name: key.name, Fingerprint: key.fingerprint,
			Deadlocks: k.deadlocks.Load(), DeadlocksFoundEarly: k.early.Load(),
			Limit: g.Limit(), Running: g.Inside(), Waiting: g.Waiting(),
			Waits: k.waits.Load(), Waited: time.Duration(k.waited.Load()), Pins: k.pins.wanted(),
		})
	}
	slices.SortFunc(found, func(a, b KindStats) int {
		return cmp.Or(cmp.Compare(b.Deadlocks, a.Deadlocks), strings.Compare(a.Name, b.Name), strings.Compare(a.Fingerprint, b.Fingerprint))
	})
	return found
}

// locks says whether a statement may lock what others want to lock.
func locks(info *sqltext.Info) bool {
	if info.ProvenRead || info.Statements == 0 {
		return false
	}
	switch info.Keyword {
	case sqltext.Begin, sqltext.Commit, sqltext.Rollback, sqltext.Savepoint, sqltext.Release, sqltext.RollbackTo,
		sqltext.Set, sqltext.SetLocal, sqltext.SetTransaction, sqltext.SetConstraints, sqltext.Reset, sqltext.Show,
		sqltext.Listen, sqltext.Unlisten, sqltext.Notify, sqltext.Deallocate, sqltext.Close:
		return info.Statements > 1
	}
	return true
}
