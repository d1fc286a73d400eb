// Package result is what the benchmarks measured, as it is saved: numbers of single rounds, from
// which tables and plots can be made again.
package result

import (
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Results is one run of the benchmarks. Parts that were not asked for are empty.
type Results struct {
	Environment Environment
	Again       []Environment `json:",omitempty"` // of later runs, which measured parts anew
	FastPath    []Comparison  `json:",omitempty"` // per transport
	RelayCost   []Comparison  `json:",omitempty"` // what the relays alone cost
	NoConflict  []Comparison  `json:",omitempty"` // per workload
	Skewed      *Comparison   `json:",omitempty"`
	Scan        *Comparison   `json:",omitempty"`
	Contention  []Cell        `json:",omitempty"`
	Patience    []Patience    `json:",omitempty"`
	Processes   []Processes   `json:",omitempty"`
}

// Environment is where and how the numbers came about.
type Environment struct {
	Date      time.Time
	Command   string
	GoVersion string
	Platform  string
	CPUs      int
	Server    string // its version
	Durable   string // what was done for durability
	Seed      uint64
	Elapsed   time.Duration
}

// Renew takes over the parts that a later run has measured.
func (r *Results) Renew(later *Results) {
	r.Again = append(r.Again, later.Environment)
	if later.FastPath != nil {
		r.FastPath, r.RelayCost, r.NoConflict = later.FastPath, later.RelayCost, later.NoConflict
	}
	if later.Scan != nil {
		r.Scan, r.Skewed = later.Scan, later.Skewed
	}
	if later.Contention != nil {
		r.Contention, r.Patience = later.Contention, later.Patience
	}
	if later.Processes != nil {
		r.Processes = later.Processes
	}
}

// Comparison is one job done by several systems in turn, round by round.
type Comparison struct {
	// Name is the job's: a transport, a workload.
	Name string
	// Base is the system that the others are compared with.
	Base string
	// Each is how often the job was done in a round.
	Each int
	// Timings are in the order in which the systems are shown.
	Timings []Timing
	// Violations are the invariants that were broken, by system.
	Violations map[string]string `json:",omitempty"`
}

// Timing is how long a system took.
type Timing struct {
	System string
	// Micros is the median time of a job in each round, in microseconds, Means the mean: what
	// a system does every few times only shows there, and so does what the machine does.
	Micros, Means []float64
	// Allocations is their number per job, the median of all rounds.
	Allocations float64
}

// Of returns the timing of a system, and false if there is none.
func (c Comparison) Of(system string) (Timing, bool) {
	for _, timing := range c.Timings {
		if timing.System == system {
			return timing, true
		}
	}
	return Timing{}, false
}

// Conditions are those under which a workload runs.
type Conditions struct {
	Workload        string
	Workers         int
	DeadlockTimeout time.Duration
	Think           time.Duration
}

func (c Conditions) String() string {
	text := fmt.Sprintf("%s, %d workers, deadlock_timeout %s", c.Workload, c.Workers, c.DeadlockTimeout)
	if c.Think > 0 {
		text += fmt.Sprintf(", think time %s", c.Think)
	}
	return text
}

// Cell is one workload under certain conditions on several systems in turn.
type Cell struct {
	Conditions
	Contenders []Contender
}

// Of returns what a system reached, and false if it was not measured.
func (c Cell) Of(system string) (Contender, bool) {
	for _, contender := range c.Contenders {
		if contender.System == system {
			return contender, true
		}
	}
	return Contender{}, false
}

// Contender is one system in a Cell.
type Contender struct {
	System string
	Rounds []Run
	// Violation says how the invariant was broken, "" if it was not. Unchecked says why that
	// could not be told, "" if it could.
	Violation string `json:",omitempty"`
	Unchecked string `json:",omitempty"`
}

// Run is what an application saw of one workload in one round.
type Run struct {
	// Window is how long the workers went on beginning transactions after the warm-up.
	Window time.Duration
	// InWindow is how many were committed within it.
	InWindow int64
	// Committed is how many were committed, those before and after the window included.
	Committed int64
	// Attempts is how many physical transactions that took.
	Attempts int64
	// Failed is how many ended with an error, by SQLSTATE; "other" stands for errors without.
	Failed map[string]int64 `json:",omitempty"`
	// Failure is one of those errors.
	Failure string `json:",omitempty"`
	// Unfinished is how many were given up when the patience after the window had ended.
	Unfinished int64 `json:",omitempty"`
	// P50 and P99 are percentiles of the time from a logical transaction's first attempt to its
	// success, the warm-up's left out; those that were given up count as if they had succeeded then, so that they can only
	// be too small. Max is the longest time to success.
	P50, P99, Max time.Duration
	// Longest is the same, all transactions without success included.
	Longest time.Duration
}

// Rate is how many transactions were committed in a second of the window.
func (r Run) Rate() float64 {
	if r.Window <= 0 {
		return 0
	}
	return float64(r.InWindow) / r.Window.Seconds()
}

// Lost is how many transactions failed or did not end.
func (r Run) Lost() int64 {
	lost := r.Unfinished
	for _, n := range r.Failed {
		lost += n
	}
	return lost
}

// AttemptsPerCommit is 0 without a commit.
func (r Run) AttemptsPerCommit() float64 {
	if r.Committed == 0 {
		return 0
	}
	return float64(r.Attempts) / float64(r.Committed)
}

// Patience is a run of transactions that cannot deadlock but hold their locks for long, after a
// storm of deadlocks of the same kind in the same *sql.DB: what is aborted then is aborted falsely.
type Patience struct {
	Conditions
	System     string
	Storm, Run Run
	Violation  string `json:",omitempty"`
}

// Processes is one workload in several processes.
type Processes struct {
	Conditions // Workers is the sum over all processes
	System     string
	Processes  int
	Rounds     []Run
	Violation  string `json:",omitempty"`
	Unchecked  string `json:",omitempty"`
}

// Write writes the results as JSON.
func (r *Results) Write(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// Read reads what Write wrote.
func Read(r io.Reader) (*Results, error) {
	var results Results
	decoder := json.NewDecoder(r)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&results); err != nil {
		return nil, fmt.Errorf("read the results: %w", err)
	}
	return &results, nil
}
