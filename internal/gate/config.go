package gate

import (
	"cmp"
	"time"
)

// Defaults of [Config].
const (
	DefaultStall      = 1500 * time.Millisecond
	DefaultMaxWait    = 30 * time.Second
	DefaultMemory     = 30 * time.Second
	DefaultRiseWait   = 100 * time.Millisecond
	DefaultRiseMax    = 20 * time.Second
	DefaultTrialShare = 0.05
)

// Config holds the settings of a [Gate]. A field that is zero has its default.
type Config struct {
	// Stall is how long a transaction waits while nobody is let in or leaves, before
	// the gate supposes that somebody inside waits for somebody outside and lets one
	// more pass. Default 1.5 s: longer than PostgreSQL's default deadlock_timeout, which
	// is the usual reason for nobody to move.
	Stall time.Duration
	// MaxWait bounds every wait; while there are more deadlocks than commits, those who
	// have waited as long pass one by one. Default 30 s: where a deadlock takes a
	// second to be found, thirty transactions that block each other need about as long
	// to get out of the way, and whoever joins them before makes it longer.
	MaxWait time.Duration
	// Memory is how long a deadlock and what was measured are remembered. Default 30 s.
	Memory time.Duration
	// RiseWait is the shortest stretch without trouble before a higher limit is tried.
	// Default 100 ms.
	RiseWait time.Duration
	// RiseMax is the longest. Default 20 s.
	RiseMax time.Duration
	// TrialShare is the part of its time that the gate may lose to trials of limits that
	// turn out worse. Default 0.05.
	TrialShare float64
	// Now reads the clock of a Gate; a Limiter is told the time. Default time.Now.
	Now func() time.Time
}

func (c Config) withDefaults() Config {
	c.Stall = cmp.Or(c.Stall, DefaultStall)
	c.MaxWait = cmp.Or(c.MaxWait, DefaultMaxWait)
	c.Memory = cmp.Or(c.Memory, DefaultMemory)
	c.RiseWait = cmp.Or(c.RiseWait, DefaultRiseWait)
	c.RiseMax = cmp.Or(c.RiseMax, DefaultRiseMax)
	c.TrialShare = cmp.Or(c.TrialShare, DefaultTrialShare)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}
