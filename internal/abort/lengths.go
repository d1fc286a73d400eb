package abort

import (
	"math/rand/v2"
	"sync"

	"github.com/pgretry/pgretry/internal/sqltext"
)

const (
	// lengthsOfAKind is how many of the last lengths of a kind are remembered.
	lengthsOfAKind = 16
	// lengthKinds is how many kinds are, before all are forgotten.
	lengthKinds = 1024
)

// lengths remembers how many calls that could have failed transactions have made
// that came to their end. A pick among the calls of a transaction needs to know how
// many there will be; those of the transactions that began with the same statement
// are the best guess.
type lengths struct {
	mu    sync.Mutex
	kinds map[string]*recent
	all   recent // of whatever kind
}

// recent is the last lengths.
type recent struct {
	seen []int64
	next int // to be overwritten
}

func (r *recent) add(length int64) {
	if len(r.seen) < lengthsOfAKind {
		r.seen = append(r.seen, length)
		return
	}
	r.seen[r.next] = length
	r.next = (r.next + 1) % lengthsOfAKind
}

// kindOfLength is what transactions that begin with the statement have in common.
func kindOfLength(first statement) string {
	if first.text == "" {
		return "" // it begins with COMMIT
	}
	return sqltext.Fingerprint(first.text)
}

func (l *lengths) add(kind string, length int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kinds == nil || len(l.kinds) >= lengthKinds && l.kinds[kind] == nil {
		l.kinds = make(map[string]*recent)
	}
	if l.kinds[kind] == nil {
		l.kinds[kind] = new(recent)
	}
	l.kinds[kind].add(length)
	l.all.add(length)
}

// guess returns a length that a transaction of the kind may have, or 0 if none was
// seen that could tell.
func (l *lengths) guess(kind string, random *rand.Rand) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.kinds[kind]
	if r == nil {
		r = &l.all
	}
	if len(r.seen) == 0 {
		return 0
	}
	return r.seen[random.IntN(len(r.seen))]
}
