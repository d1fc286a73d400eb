package gate

// Outcome is what became of a transaction that was inside.
type Outcome uint8

const (
	// Other is a transaction that was rolled back by the application or failed for a
	// reason other than a deadlock.
	Other Outcome = iota
	// Committed is a transaction that was committed.
	Committed
	// Deadlocked is a transaction that was aborted because of a deadlock.
	Deadlocked
)

func (o Outcome) String() string {
	switch o {
	case Committed:
		return "committed"
	case Deadlocked:
		return "deadlocked"
	default:
		return "other"
	}
}
