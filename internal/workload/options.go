package workload

import "context"

// Option changes the transactions of the workloads that [All] and [Select] return. What they leave
// in the database, and so Check, stays the same.
type Option func(*settings)

// Ordered makes every transaction lock what it is going to write at once, the lowest key first, as
// an application does that was written with deadlocks in mind. Workloads that need REPEATABLE READ
// or SERIALIZABLE otherwise run under READ COMMITTED then: the locks take the isolation's place.
// Ordered transactions wait for each other, but none of them can fail because of another one.
func Ordered() Option { return func(s *settings) { s.ordered = true } }

// Pausing calls pause between the statements of each transaction, on its goroutine, after each but
// the last: there applications think, with locks held. An error from it is the body's. Default: no
// pauses.
func Pausing(pause func(ctx context.Context) error) Option {
	return func(s *settings) { s.pause = pause }
}

// settings are what the workloads have in common.
type settings struct {
	seed    uint64 // decides what each transaction touches
	ordered bool
	pause   func(ctx context.Context) error
}

// think is called between two statements.
func (s settings) think(ctx context.Context) error {
	if s.pause == nil {
		return nil
	}
	return s.pause(ctx)
}
