package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgretry/pgretry/bench/internal/measure"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
)

// Verdict is one claim and what was measured of it.
type Verdict struct {
	// Claim says what is claimed, Bound from where on it is met.
	Claim, Bound string
	// System is the id of the system that has to meet it.
	System string
	// Measured is what was measured, with its spread, "" if nothing was.
	Measured string
	// Met says whether the median is within the bound.
	Met bool
}

// The transactions that a claim is about, see [result.Conditions].
const (
	stormWorkload, stormWorkers     = "transfer/write", 32
	upsertsWorkload, upsertsWorkers = "upserts", 16
	hotWorkers                      = 32
)

// starved is how long no transaction may take.
const starved = 30 * time.Second

// p99Noise is what the 99th percentiles of two equal systems differ by.
const p99Noise = 1.10

// Verdicts compares the results with what is claimed.
func Verdicts(r *result.Results) []Verdict {
	var all []Verdict
	all = append(all, fastPathVerdicts(r)...)
	all = append(all, queryVerdicts(r)...)
	all = append(all, noConflictVerdict(r, peer.Pgretry), noConflictVerdict(r, peer.RunInTx))
	for _, timeout := range []time.Duration{time.Second, 10 * time.Millisecond} {
		all = append(all, stormVerdicts(r, timeout)...)
	}
	all = append(all, patienceVerdicts(r)...)
	for _, timeout := range []time.Duration{time.Second, 10 * time.Millisecond} {
		claim := fmt.Sprintf("%s, %d workers, deadlock_timeout %s: throughput / limit (locks in order)", upsertsWorkload, upsertsWorkers, timeout)
		cell := find(r, result.Conditions{Workload: upsertsWorkload, Workers: upsertsWorkers, DeadlockTimeout: timeout})
		for _, system := range []string{peer.RunInTx, peer.Pgretry} {
			all = append(all, atLeast(claim, system, 0.5, throughput(cell, system, peer.OrderedLimit)))
		}
	}
	all = append(all, isolationVerdicts(r)...)
	all = append(all, patienceOfAll(r), p99Verdict(r))
	all = append(all, processVerdicts(r)...)
	return append(all, integrityVerdict(r))
}

func atMost(claim, system string, bound float64, ratios []float64) Verdict {
	spread := measure.Of(ratios)
	v := Verdict{Claim: claim, System: system, Bound: fmt.Sprintf("≤ %.4g ×", bound)}
	if spread.N > 0 {
		v.Measured, v.Met = spread.String()+" ×", spread.Median <= bound
	}
	return v
}

func atLeast(claim, system string, bound float64, ratios []float64) Verdict {
	spread := measure.Of(ratios)
	v := Verdict{Claim: claim, System: system, Bound: fmt.Sprintf("≥ %.4g ×", bound)}
	if spread.N > 0 {
		v.Measured, v.Met = spread.String()+" ×", spread.Median >= bound
	}
	return v
}

// ratios are of two systems' times in each round.
func ratios(c result.Comparison, system, base string) []float64 {
	return ratiosOf(c, system, base, func(t result.Timing) []float64 { return t.Micros })
}

// meanRatios are ratios of the mean times.
func meanRatios(c result.Comparison, system, base string) []float64 {
	return ratiosOf(c, system, base, func(t result.Timing) []float64 { return t.Means })
}

func ratiosOf(c result.Comparison, system, base string, times func(result.Timing) []float64) []float64 {
	of, ok := c.Of(system)
	to, there := c.Of(base)
	if !ok || !there {
		return nil
	}
	return measure.Ratios(times(of), times(to))
}

func fastPathVerdicts(r *result.Results) []Verdict {
	over := func(transport string) result.Comparison {
		for _, c := range r.FastPath {
			if c.Name == transport {
				return c
			}
		}
		return result.Comparison{}
	}
	var all []Verdict
	for _, transport := range []struct {
		name, claim string
		bound, pgx  float64
	}{
		{"socket", "a Unix socket", 0.67, 1},
		// Both make five round trips, so that all there is to see is noise.
		{"tcp+1ms", "TCP with 1 ms of delay", 0.68, 1.02},
	} {
		c := over(transport.name)
		for _, system := range []string{peer.Pgretry, peer.RunInTx} {
			all = append(all, atMost("transaction over "+transport.claim+": time / lib/pq", system, transport.bound, ratios(c, system, peer.LibPQ)))
		}
		for _, system := range []string{peer.Pgretry, peer.RunInTx} {
			pgx := atMost("transaction over "+transport.claim+": time / pgx", system, transport.pgx, ratios(c, system, peer.PGX))
			if transport.pgx > 1 {
				pgx.Bound += " (noise)"
			}
			all = append(all, pgx)
		}
	}
	for _, system := range []string{peer.PgretrySDK, peer.RunInTxSDK} {
		all = append(all, atMost("transaction over a Unix socket with an SDK that samples everything: time / lib/pq without", system, 0.8,
			ratios(over("socket"), system, peer.LibPQ)))
	}
	return all
}

func queryVerdicts(r *result.Results) []Verdict {
	var skewed, scan result.Comparison
	if r.Skewed != nil {
		skewed = *r.Skewed
	}
	if r.Scan != nil {
		scan = *r.Scan
	}
	return []Verdict{
		atMost("skewed query with a limit, run 100 times: time / lib/pq", peer.Pgretry, 1, ratios(skewed, peer.Pgretry, peer.LibPQ)),
		atMost("100,000 rows: time / lib/pq", peer.Pgretry, 1.05, ratios(scan, peer.Pgretry, peer.LibPQ)),
	}
}

// noConflictVerdict is about the workload that suffers most.
func noConflictVerdict(r *result.Results, system string) Verdict {
	var worst measure.Spread
	name := ""
	for _, c := range r.NoConflict {
		if spread := measure.Of(ratios(c, system, peer.LibPQ)); spread.N > 0 && (name == "" || spread.Median > worst.Median) {
			worst, name = spread, c.Name
		}
	}
	v := Verdict{Claim: "each workload with one worker, nothing conflicts: time / lib/pq", System: system, Bound: "≤ 1.03 ×"}
	if name != "" {
		v.Measured, v.Met = fmt.Sprintf("%s × at worst (%s)", worst, name), worst.Median <= 1.03
	}
	return v
}

// find returns the cell with those conditions, empty if there is none.
func find(r *result.Results, conditions result.Conditions) result.Cell {
	for _, cell := range r.Contention {
		if cell.Conditions == conditions {
			return cell
		}
	}
	return result.Cell{}
}

// rates are those of a system in each round. One that committed nothing counts as if it had
// committed one, so that a ratio to it is an understatement instead of infinite.
func rates(cell result.Cell, system string) []float64 {
	contender, _ := cell.Of(system)
	var rates []float64
	for _, run := range contender.Rounds {
		rates = append(rates, max(run.Rate(), 1/run.Window.Seconds()))
	}
	return rates
}

// throughput is the ratio of two systems' rates in each round.
func throughput(cell result.Cell, system, base string) []float64 {
	return measure.Ratios(rates(cell, system), rates(cell, base))
}

// rivals are the systems that are neither ours nor a limit.
func rivals() []string {
	var ids []string
	for _, system := range peer.All() {
		if !system.Ours && !system.Limit() {
			ids = append(ids, system.ID)
		}
	}
	return ids
}

// best is the rate of the best rival in each round, and its name in most of them.
func best(cell result.Cell) (rate []float64, name string) {
	won := map[string]int{}
	for round := 0; ; round++ {
		winner, most := "", 0.0
		for _, rival := range rivals() {
			if all := rates(cell, rival); round < len(all) && all[round] > most {
				winner, most = rival, all[round]
			}
		}
		if winner == "" {
			return rate, name
		}
		rate = append(rate, most)
		if won[winner]++; won[winner] > won[name] {
			name = winner
		}
	}
}

func stormVerdicts(r *result.Results, timeout time.Duration) []Verdict {
	cell := find(r, result.Conditions{Workload: stormWorkload, Workers: stormWorkers, DeadlockTimeout: timeout})
	storm := fmt.Sprintf("deadlock storm (%s, %d workers, deadlock_timeout %s)", stormWorkload, stormWorkers, timeout)
	bound := 0.6
	if timeout == time.Second {
		bound = 0.4
	}
	var all []Verdict
	for _, system := range []string{peer.RunInTx, peer.Pgretry} {
		all = append(all, atLeast(storm+": throughput / limit (locks in order)", system, bound, throughput(cell, system, peer.OrderedLimit)))
		if timeout == time.Second {
			rate, name := best(cell)
			v := atLeast(storm+": throughput / best peer", system, 50, measure.Ratios(rates(cell, system), rate))
			if v.Measured != "" {
				v.Measured += " (" + peer.Label(name) + ")"
			}
			all = append(all, v)
		}
		v := Verdict{Claim: storm + ": transactions failed", System: system, Bound: "0"}
		if contender, ok := cell.Of(system); ok {
			var lost, committed int64
			for _, run := range contender.Rounds {
				lost += run.Lost()
				committed += run.Committed
			}
			v.Measured, v.Met = fmt.Sprintf("%d of %d", lost, lost+committed), lost == 0
		}
		all = append(all, v)
	}
	return all
}

func patienceVerdicts(r *result.Results) []Verdict {
	var all []Verdict
	for _, system := range []string{peer.RunInTx, peer.Pgretry} {
		v := Verdict{Claim: "ordered transactions that hold their locks for 100 ms, after a storm: attempts per commit", System: system, Bound: "1.00 exactly"}
		for _, p := range r.Patience {
			if p.System == system {
				v.Measured = fmt.Sprintf("%.4f (%d attempts, %d commits, %d failed)", p.Run.AttemptsPerCommit(), p.Run.Attempts, p.Run.Committed, p.Run.Lost())
				v.Met = p.Run.Attempts == p.Run.Committed && p.Run.Committed > 0 && p.Run.Lost() == 0
			}
		}
		all = append(all, v)
	}
	return all
}

// ofIsolation says whether the workload is the read-modify-write of a level above READ COMMITTED.
func ofIsolation(workload string) bool {
	return workload == "transfer/rr" || workload == "transfer/ser"
}

func isolationVerdicts(r *result.Results) []Verdict {
	var all []Verdict
	for _, workload := range []string{"transfer/ser", "transfer/rr"} {
		for _, timeout := range []time.Duration{time.Second, 10 * time.Millisecond} {
			cell := find(r, result.Conditions{Workload: workload, Workers: hotWorkers, DeadlockTimeout: timeout})
			claim := fmt.Sprintf("%s, %d workers, deadlock_timeout %s: throughput / hand-written loop", workload, hotWorkers, timeout)
			all = append(all, atLeast(claim, peer.RunInTx, 0.95, throughput(cell, peer.RunInTx, peer.Loop)))
		}
	}
	return all
}

// patienceOfAll looks for starved transactions.
func patienceOfAll(r *result.Results) Verdict {
	v := Verdict{Claim: "read-modify-write, SERIALIZABLE and REPEATABLE READ: the longest transaction", System: peer.RunInTx, Bound: "≤ " + starved.String()}
	var longest time.Duration
	var where string
	var lost int64
	for _, cell := range r.Contention {
		contender, ok := cell.Of(peer.RunInTx)
		if !ok || !ofIsolation(cell.Workload) {
			continue
		}
		for _, run := range contender.Rounds {
			lost += run.Lost()
			if run.Longest >= longest {
				longest, where = run.Longest, cell.String()
			}
		}
	}
	if where != "" {
		v.Measured = fmt.Sprintf("%s (%s), %d failed", duration(longest), where, lost)
		v.Met = longest <= starved && lost == 0
	}
	return v
}

func p99Verdict(r *result.Results) Verdict {
	v := Verdict{Claim: "every cell: 99th percentile / hand-written loop's", System: peer.RunInTx, Bound: fmt.Sprintf("≤ %.2f × (noise)", p99Noise)}
	worst, where, cells, over := 0.0, "", 0, 0
	for _, cell := range r.Contention {
		ratio := measure.Median(measure.Ratios(p99s(cell, peer.RunInTx), p99s(cell, peer.Loop)))
		if ratio == 0 {
			continue
		}
		cells++
		if ratio > p99Noise {
			over++
		}
		if ratio > worst {
			worst, where = ratio, cell.String()
		}
	}
	if cells > 0 {
		v.Measured = fmt.Sprintf("beyond in %d of %d cells, at worst %s × (%s)", over, cells, measure.Short(worst), where)
		v.Met = over == 0
	}
	return v
}

func p99s(cell result.Cell, system string) []float64 {
	contender, _ := cell.Of(system)
	var all []float64
	for _, run := range contender.Rounds {
		all = append(all, run.P99.Seconds())
	}
	return all
}

func processVerdicts(r *result.Results) []Verdict {
	var all []Verdict
	for _, many := range r.Processes {
		if leased, _ := peer.Leased(); many.Processes == 1 || many.System != leased.ID {
			continue // what several processes reach without it is for comparison
		}
		claim := fmt.Sprintf("%d processes, %s: throughput / one process with as many workers", many.Processes, many.Conditions)
		all = append(all, atLeast(claim, many.System, 0.6, measure.Ratios(runRates(many.Rounds), oneProcess(r.Processes, many.Conditions))))
	}
	if len(all) == 0 {
		all = append(all, Verdict{Claim: "four processes: throughput / one process with as many workers", System: peer.RunInTx, Bound: "≥ 0.6 ×"})
	}
	return all
}

// oneProcess are the rates of a single process that does not care about others.
func oneProcess(all []result.Processes, conditions result.Conditions) []float64 {
	for _, p := range all {
		if p.Processes == 1 && p.Conditions == conditions && p.System == peer.RunInTx {
			return runRates(p.Rounds)
		}
	}
	return nil
}

func runRates(runs []result.Run) []float64 {
	var rates []float64
	for _, run := range runs {
		rates = append(rates, run.Rate())
	}
	return rates
}

// Broken is an invariant that a system broke.
type Broken struct {
	// System is its id, Where what was measured, How the violation.
	System, Where, How string
}

// String is the loud line.
func (b Broken) String() string {
	return fmt.Sprintf("BROKEN: %s, %s: %s", peer.Label(b.System), b.Where, b.How)
}

// AllBroken returns every invariant that was broken.
func AllBroken(r *result.Results) []Broken {
	var all []Broken
	add := func(system, where, how string) {
		if how != "" {
			all = append(all, Broken{system, where, how})
		}
	}
	for what, comparisons := range map[string][]result.Comparison{"fast path, ": r.FastPath, "no conflict, ": r.NoConflict} {
		for _, c := range comparisons {
			for system, how := range c.Violations {
				add(system, what+c.Name, how)
			}
		}
	}
	for _, cell := range r.Contention {
		for _, contender := range cell.Contenders {
			add(contender.System, cell.String(), contender.Violation)
		}
	}
	for _, p := range r.Patience {
		add(p.System, "patience, "+p.String(), p.Violation)
	}
	for _, p := range r.Processes {
		add(p.System, fmt.Sprintf("%d processes, %s", p.Processes, p.Conditions), p.Violation)
	}
	slices.SortFunc(all, func(a, b Broken) int {
		return cmp.Or(strings.Compare(a.System, b.System), strings.Compare(a.Where, b.Where))
	})
	return all
}

// Ours says whether the system is pgretry.
func (b Broken) Ours() bool { return Ours(b.System) }

// Ours says whether a system's id is one of pgretry's.
func Ours(system string) bool {
	return strings.HasPrefix(system, peer.Pgretry) || strings.HasPrefix(system, peer.RunInTx)
}

// allOfOurs stands for every system that is pgretry.
const allOfOurs = "all of pgretry"

func integrityVerdict(r *result.Results) Verdict {
	v := Verdict{Claim: "every workload's invariant holds at the end", System: allOfOurs, Bound: "always"}
	checked := len(r.FastPath) + len(r.NoConflict) + len(r.Contention) + len(r.Patience) + len(r.Processes)
	if checked == 0 {
		return v
	}
	broken := 0
	for _, b := range AllBroken(r) {
		if b.Ours() {
			broken++
		}
	}
	v.Measured, v.Met = fmt.Sprintf("broken %d times", broken), broken == 0
	return v
}
