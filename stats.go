package pgretry

import (
	"database/sql"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is the coverage report of one database: what its transactions met and
// how many of them were protected.
type Stats struct {
	// Closures counts the logical transactions that RunInTx and Retry ran to
	// their end. Unless the mode is off, they are protected: they can run again.
	Closures int64
	// Plain counts the transactions begun in any other way.
	Plain int64
	// Protected counts those plain transactions that the driver could have replayed
	// up to their end.
	Protected int64
	// Unprotected counts the other plain transactions, by the first reason, whether
	// or not they met a conflict.
	Unprotected map[RefusalReason]int64
	// Hidden counts the plain transactions, and the statements outside transactions,
	// that met conflicts, or lost connections, of which the application saw none.
	Hidden int64
	// HiddenBySQLState splits Hidden by the first conflict of each; "" stands for lost
	// connections.
	HiddenBySQLState map[string]int64
	// Replays counts attempts that the driver made by itself, from BEGIN or from a
	// savepoint, and repeated statements outside transactions.
	Replays int64
	// PartialReplays counts those Replays that went back to a savepoint only.
	PartialReplays int64
	// Diverged counts plain transactions and lone statements whose replay showed
	// something else than the application had seen.
	Diverged int64
	// LastDivergence tells of the last of them; nil if there was none.
	LastDivergence *Divergence
	// JournalPeak is the largest size of a journal so far, in bytes.
	JournalPeak int64
	// Attempts counts physical transactions that were begun, of both kinds, and
	// PartialReplays.
	Attempts int64
	// Committed counts the attempts that were committed.
	Committed int64
	// Retries counts the runs of a closure that were followed by another one,
	// whether or not they got as far as BEGIN.
	Retries int64
	// RetriesBySQLState splits Retries; "" stands for lost connections and
	// servers that could not be reached.
	RetriesBySQLState map[string]int64
	// Exhausted counts logical transactions, and statements outside them, that a
	// limit ended.
	Exhausted int64
	// Refusals counts logical transactions, and statements outside them, that met a
	// conflict and were not run again for a reason.
	Refusals map[RefusalReason]int64
	// UnknownCommits counts COMMITs without an answer whose fate nobody could tell.
	UnknownCommits int64
	// ResolvedCommits counts COMMITs whose answer was lost, by what was found out:
	// "committed", "aborted" or "unknown".
	ResolvedCommits map[string]int64
	// ConnectionsLost counts connections that broke, by where that was noticed: "idle"
	// in the pool, before anything was sent; by a "statement" outside a transaction; in
	// a "transaction" before COMMIT; by "commit".
	ConnectionsLost map[string]int64
	// Reconnects counts new sessions that took the place of lost ones, for a replay.
	// The pool's own connections do not count.
	Reconnects int64
	// DeadlocksFoundEarly counts deadlocks that the driver found and ended before the
	// server's deadlock_timeout, see [ContentionDetector].
	DeadlocksFoundEarly int64
	// Kinds are the kinds of transactions that have deadlocked in the last minutes, see
	// [WithContention], those with the most deadlocks first.
	Kinds []KindStats
	// PlainConflicts counts conflicts, and connections lost before COMMIT, outside
	// closures that the application saw: what a closure would have survived.
	PlainConflicts int64
}

// KindStats is what the driver remembers of a kind of transactions that has deadlocked.
// What it counts begins anew when the kind was forgotten.
type KindStats struct {
	// Name is what [ContextWithName] said, "" if nothing.
	Name string
	// Fingerprint is that of the first statement that locks something, "" if there is a
	// Name. See [Divergence].
	Fingerprint string
	// Deadlocks counts them, and waits that were too long, see [ContentionProbes].
	Deadlocks int64
	// DeadlocksFoundEarly counts those that the driver found and ended.
	DeadlocksFoundEarly int64
	// Limit is how many of these transactions may run at once; 0 if there is no limit at
	// present. Kinds that deadlock with each other share one.
	Limit int
	// Running and Waiting are how many do at present.
	Running, Waiting int
	// Waits counts transactions that had to wait, Waited is for how long altogether.
	Waits  int64
	Waited time.Duration
	// Pins is set if the driver sets pins in such transactions, see [PinsLearned].
	Pins bool
}

// ProtectedShare is the share of logical transactions that could have been run
// again, by a closure or by the driver, from 0 to 1; 0 if there were none.
func (s Stats) ProtectedShare() float64 {
	if s.Closures+s.Plain == 0 {
		return 0
	}
	return float64(s.Closures+s.Protected) / float64(s.Closures+s.Plain)
}

// Divergence tells where a replay showed something else than the application had
// seen, without any data.
type Divergence struct {
	// Statement is the index of the statement in its transaction, from 0.
	Statement int
	// Fingerprint stands for the statement's text without its literals: equal
	// texts but for those have equal fingerprints, in every process.
	Fingerprint string
	// What says in words what differed.
	What string
}

// StatsOf returns the statistics of a database since it was opened. It is an
// error if db is nil or was not opened through this package.
func StatsOf(db *sql.DB) (Stats, error) {
	if db == nil {
		return Stats{}, errors.New("pgretry: the database given to StatsOf is nil")
	}
	connector := connectorOf(db)
	if connector == nil {
		return Stats{}, &notOursError{"StatsOf"}
	}
	snapshot := connector.stats.snapshot()
	snapshot.Kinds = connector.memory.snapshot()
	return snapshot, nil
}

// stats are the live counters of a connector.
type stats struct {
	closures       atomic.Int64
	plain          atomic.Int64
	protected      atomic.Int64
	attempts       atomic.Int64
	committed      atomic.Int64
	unknown        atomic.Int64
	plainConflicts atomic.Int64
	exhausted      atomic.Int64
	replays        atomic.Int64
	partialReplays atomic.Int64
	journalPeak    atomic.Int64
	byMode         atomic.Int64 // unprotected because of the mode: no place for a lock
	reconnects     atomic.Int64
	early          atomic.Int64
	losses         [lossPlaces]atomic.Int64
	fates          [fates]atomic.Int64

	mu          sync.Mutex // the conflict path, and transactions without protection
	retries     map[string]int64
	refusals    map[RefusalReason]int64
	unprotected map[RefusalReason]int64
	hidden      map[string]int64
	divergences int64
	divergence  *Divergence
}

// attemptEnded counts a physical transaction.
func (s *stats) attemptEnded(o outcome) {
	s.attempts.Add(1)
	switch o {
	case outcomeCommitted:
		s.committed.Add(1)
	case outcomeUnknown:
		s.unknown.Add(1)
	}
}

// plainEnded counts a transaction outside closures.
func (s *stats) plainEnded(covered bool, reason RefusalReason, journal int) {
	s.plain.Add(1)
	if covered {
		s.protected.Add(1)
		s.peak(journal)
		return
	}
	if reason == RefusedMode {
		s.byMode.Add(1)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unprotected == nil {
		s.unprotected = make(map[RefusalReason]int64)
	}
	s.unprotected[reason]++
}

// lost counts a connection that broke.
func (s *stats) lost(place lossPlace) { s.losses[place].Add(1) }

// reconnected counts a session that took the place of a lost one.
func (s *stats) reconnected() { s.reconnects.Add(1) }

// resolved counts a COMMIT whose answer was lost.
func (s *stats) resolved(f fate) { s.fates[f].Add(1) }

// named returns the counters that are not zero by their names; nil if all are.
func named(counters []atomic.Int64, names []string) map[string]int64 {
	var found map[string]int64
	for i := range counters {
		if n := counters[i].Load(); n != 0 {
			if found == nil {
				found = make(map[string]int64)
			}
			found[names[i]] = n
		}
	}
	return found
}

// peak notes the size of a journal.
func (s *stats) peak(size int) {
	for {
		peak := s.journalPeak.Load()
		if int64(size) <= peak || s.journalPeak.CompareAndSwap(peak, int64(size)) {
			return
		}
	}
}

// replayed counts an attempt of the driver's own.
func (s *stats) replayed(partial bool) {
	s.replays.Add(1)
	if partial {
		s.partialReplays.Add(1)
	}
}

// hid counts a transaction or statement whose conflicts the application did not see.
func (s *stats) hid(sqlState string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hidden == nil {
		s.hidden = make(map[string]int64)
	}
	s.hidden[sqlState]++
}

// surfaced counts a conflict outside closures that the application saw.
func (s *stats) surfaced() { s.plainConflicts.Add(1) }

// diverged counts a replay that showed something else.
func (s *stats) diverged(d Divergence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.divergences++
	s.divergence = &d
}

// closureEnded counts a logical transaction of RunInTx or Retry.
func (s *stats) closureEnded(o outcome, reason RefusalReason) {
	s.closures.Add(1)
	if o == outcomeExhausted {
		s.exhausted.Add(1)
	}
	if reason != "" {
		s.refused(reason)
	}
}

func (s *stats) retried(sqlState string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retries == nil {
		s.retries = make(map[string]int64)
	}
	s.retries[sqlState]++
}

// gaveUp counts a plain transaction or a lone statement that a limit ended.
func (s *stats) gaveUp() { s.exhausted.Add(1) }

func (s *stats) refused(reason RefusalReason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusals == nil {
		s.refusals = make(map[RefusalReason]int64)
	}
	s.refusals[reason]++
}

func (s *stats) snapshot() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	var retries, hidden int64
	for _, n := range s.retries {
		retries += n
	}
	for _, n := range s.hidden {
		hidden += n
	}
	divergence := s.divergence
	if divergence != nil {
		copied := *divergence
		divergence = &copied
	}
	unprotected := maps.Clone(s.unprotected)
	if n := s.byMode.Load(); n > 0 {
		if unprotected == nil {
			unprotected = make(map[RefusalReason]int64)
		}
		unprotected[RefusedMode] = n
	}
	return Stats{
		Protected:         s.protected.Load(),
		Unprotected:       unprotected,
		Hidden:            hidden,
		HiddenBySQLState:  maps.Clone(s.hidden),
		Replays:           s.replays.Load(),
		PartialReplays:    s.partialReplays.Load(),
		Diverged:          s.divergences,
		LastDivergence:    divergence,
		JournalPeak:       s.journalPeak.Load(),
		Closures:          s.closures.Load(),
		Plain:             s.plain.Load(),
		Attempts:          s.attempts.Load(),
		Committed:         s.committed.Load(),
		Retries:           retries,
		RetriesBySQLState: maps.Clone(s.retries),
		Exhausted:         s.exhausted.Load(),
		Refusals:          maps.Clone(s.refusals),
		UnknownCommits:    s.unknown.Load(),
		ResolvedCommits:   named(s.fates[:], fateNames[:]),
		ConnectionsLost:   named(s.losses[:], lossPlaceNames[:]),
		Reconnects:        s.reconnects.Load(),
		PlainConflicts:    s.plainConflicts.Load(),

		DeadlocksFoundEarly: s.early.Load(),
	}
}
