package pgretry

import (
	"database/sql"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
)

// Stats is the coverage report of one database: what its transactions met and
// how many of them were protected.
type Stats struct {
	// Closures counts the logical transactions that RunInTx and Retry ran to
	// their end. Unless the mode is off, they are protected: they can run again.
	Closures int64
	// Plain counts the transactions begun in any other way.
	Plain int64
	// Attempts counts physical transactions that were begun, of both kinds.
	Attempts int64
	// Committed counts the attempts that were committed.
	Committed int64
	// Retries counts the runs of a closure that were followed by another one,
	// whether or not they got as far as BEGIN.
	Retries int64
	// RetriesBySQLState splits Retries; "" stands for lost connections and
	// servers that could not be reached.
	RetriesBySQLState map[string]int64
	// Exhausted counts logical transactions that a limit ended.
	Exhausted int64
	// Refusals counts logical transactions that were not run again for a reason.
	Refusals map[RefusalReason]int64
	// UnknownCommits counts COMMITs without an answer.
	UnknownCommits int64
	// PlainConflicts counts attempts outside closures that a conflict ended: what
	// a closure would have survived.
	PlainConflicts int64
}

// ProtectedShare is the share of logical transactions that ran in closures, from 0
// to 1; 0 if there were none.
func (s Stats) ProtectedShare() float64 {
	if s.Closures+s.Plain == 0 {
		return 0
	}
	return float64(s.Closures) / float64(s.Closures+s.Plain)
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
	return connector.stats.snapshot(), nil
}

// stats are the live counters of a connector.
type stats struct {
	closures       atomic.Int64
	plain          atomic.Int64
	attempts       atomic.Int64
	committed      atomic.Int64
	unknown        atomic.Int64
	plainConflicts atomic.Int64
	exhausted      atomic.Int64

	mu       sync.Mutex // the conflict path only
	retries  map[string]int64
	refusals map[RefusalReason]int64
}

// attemptEnded counts a physical transaction.
func (s *stats) attemptEnded(o outcome, v verdict, closure bool) {
	s.attempts.Add(1)
	switch o {
	case outcomeCommitted:
		s.committed.Add(1)
	case outcomeUnknown:
		s.unknown.Add(1)
	}
	if !closure {
		s.plain.Add(1)
		if v.class == ClassRetryable {
			s.plainConflicts.Add(1)
		}
	}
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
	var retries int64
	for _, n := range s.retries {
		retries += n
	}
	return Stats{
		Closures:          s.closures.Load(),
		Plain:             s.plain.Load(),
		Attempts:          s.attempts.Load(),
		Committed:         s.committed.Load(),
		Retries:           retries,
		RetriesBySQLState: maps.Clone(s.retries),
		Exhausted:         s.exhausted.Load(),
		Refusals:          maps.Clone(s.refusals),
		UnknownCommits:    s.unknown.Load(),
		PlainConflicts:    s.plainConflicts.Load(),
	}
}
