// Package report makes tables and plots from results.
package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pgretry/pgretry/bench/internal/measure"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
)

// Markdown writes the results as tables. plots are the files that Plots wrote, if any.
func Markdown(w io.Writer, r *result.Results, plots []Plot) error {
	m := &markdown{plots: plots}
	m.environment(r)
	m.broken(AllBroken(r))
	m.verdicts(Verdicts(r))
	m.fastPath(r)
	m.noConflict(r.NoConflict)
	m.queries(r)
	m.contention(r.Contention)
	m.patience(r.Patience)
	m.processes(r.Processes)
	if _, err := io.WriteString(w, m.String()); err != nil {
		return fmt.Errorf("write the tables: %w", err)
	}
	return nil
}

type markdown struct {
	strings.Builder
	plots []Plot
}

// line writes a line; of several empty ones in a row, only the first.
func (m *markdown) line(format string, args ...any) {
	if format == "" && strings.HasSuffix(m.String(), "\n\n") {
		return
	}
	fmt.Fprintf(m, format+"\n", args...)
}

// table writes a table; a column whose title begins with ":" is aligned to the right.
func (m *markdown) table(titles []string, rows [][]string) {
	m.line("")
	rule := make([]string, len(titles))
	for i, title := range titles {
		rule[i] = "---"
		if strings.HasPrefix(title, ":") {
			rule[i], titles[i] = "---:", title[1:]
		}
	}
	m.line("| %s |", strings.Join(titles, " | "))
	m.line("| %s |", strings.Join(rule, " | "))
	for _, row := range rows {
		m.line("| %s |", strings.Join(row, " | "))
	}
	m.line("")
}

func (m *markdown) show(section string) {
	for _, plot := range m.plots {
		if plot.Section == section {
			m.line("![%s](%s)", plot.Title, plot.File)
			m.line("")
		}
	}
}

func (m *markdown) environment(r *result.Results) {
	e := r.Environment
	m.line("# Benchmarks")
	m.line("")
	told := func(e result.Environment) string {
		return fmt.Sprintf("`%s`, %s, seed %d, took %s.", e.Command, e.Date.UTC().Format("2006-01-02 15:04 MST"), e.Seed, e.Elapsed.Round(time.Second))
	}
	m.line("%s", told(e))
	for _, again := range r.Again {
		m.line("Measured again: %s", told(again))
	}
	m.line("%d CPUs, %s, %s, PostgreSQL %s: %s.", e.CPUs, e.Platform, e.GoVersion, e.Server, e.Durable)
	m.line("")
	m.line("Everything is compared within one run: systems take turns, in a random order in each round.")
	m.line("Ratios are medians of the rounds' ratios, [in brackets the first and the third quartile].")
	m.line("Trust ranks and ratios; absolute numbers are this machine's.")
	m.line("")
}

func (m *markdown) broken(all []Broken) {
	if len(all) == 0 {
		return
	}
	for _, b := range all {
		m.line("**%s**", b)
		m.line("")
	}
}

func (m *markdown) verdicts(all []Verdict) {
	m.line("## Claims")
	var rows [][]string
	for _, v := range all {
		verdict := "**not met**"
		switch {
		case v.Measured == "":
			verdict, v.Measured = "not measured", "–"
		case v.Met:
			verdict = "met"
		}
		rows = append(rows, []string{v.Claim, label(v.System), v.Bound, v.Measured, verdict})
	}
	m.table([]string{"claim", "system", ":bound", ":measured", ""}, rows)
}

func label(system string) string {
	if leased, _ := peer.Leased(); leased.ID == system {
		return leased.Label
	}
	return peer.Label(system)
}

func (m *markdown) fastPath(r *result.Results) {
	if len(r.FastPath) == 0 {
		return
	}
	m.line("## The fast path")
	m.line("")
	m.line("BEGIN, a SELECT, an UPDATE and an INSERT with parameters, COMMIT; one connection, nothing conflicts.")
	for _, c := range r.FastPath {
		m.line("")
		m.line("### Over %s", c.Name)
		m.comparison(c, true)
	}
	for _, c := range r.RelayCost {
		m.line("What the relays alone cost: %s", relayCost(c))
		m.line("")
	}
	m.show(sectionFastPath)
}

func relayCost(c result.Comparison) string {
	var parts []string
	for _, timing := range c.Timings {
		parts = append(parts, fmt.Sprintf("%s %s µs", timing.System, measure.Short(measure.Median(timing.Micros))))
	}
	return c.Name + " over " + strings.Join(parts, ", ") + "."
}

func (m *markdown) comparison(c result.Comparison, allocations bool) {
	titles := []string{"system", ":median time", ":/ " + label(c.Base), ":mean / " + label(c.Base)}
	if allocations {
		titles = append(titles, ":allocations")
	}
	var rows [][]string
	for _, timing := range c.Timings {
		row := []string{label(timing.System), micros(measure.Median(timing.Micros)), measure.Of(ratios(c, timing.System, c.Base)).String(), measure.Of(meanRatios(c, timing.System, c.Base)).String()}
		if allocations {
			row = append(row, fmt.Sprintf("%.0f", timing.Allocations))
		}
		rows = append(rows, row)
	}
	m.table(titles, rows)
}

func (m *markdown) noConflict(all []result.Comparison) {
	if len(all) == 0 {
		return
	}
	m.line("## Without conflicts")
	m.line("")
	m.line("The workloads with one worker: what it costs to be prepared, in time / %s.", label(all[0].Base))
	titles := []string{"workload", ":" + label(all[0].Base)}
	for _, timing := range all[0].Timings {
		if timing.System != all[0].Base {
			titles = append(titles, ":"+label(timing.System))
		}
	}
	var rows [][]string
	for _, c := range all {
		row := []string{c.Name}
		for _, timing := range c.Timings {
			if timing.System == c.Base {
				row = slices.Insert(row, 1, micros(measure.Median(timing.Micros)))
				continue
			}
			row = append(row, measure.Of(ratios(c, timing.System, c.Base)).String())
		}
		rows = append(rows, row)
	}
	m.table(titles, rows)
}

func (m *markdown) queries(r *result.Results) {
	if r.Skewed != nil {
		m.line("## A skewed query")
		m.line("")
		m.line("`SELECT … WHERE status = $1 ORDER BY id LIMIT 10`, run 100 times in a transaction; a plan made for any status walks through the whole table.")
		m.comparison(*r.Skewed, false)
	}
	if r.Scan != nil {
		m.line("## A large result")
		m.line("")
		m.line("100,000 rows of four columns.")
		m.comparison(*r.Scan, true)
	}
}

func (m *markdown) contention(cells []result.Cell) {
	if len(cells) == 0 {
		return
	}
	m.line("## Contention")
	m.line("")
	m.line("Committed transactions a second, counted after a warm-up and while the workers begin new ones; attempts per commit; transactions that failed, by SQLSTATE; time from the first attempt to success; the longest transaction, failed ones included. In its first turn a system has seen nothing of the workload; what it learns in the warm-up and the turns, it keeps. The limit that locks in order is lib/pq's, without cached statements: it can be exceeded.")
	var names []string
	for _, cell := range cells {
		if !slices.Contains(names, cell.Workload) {
			names = append(names, cell.Workload)
		}
	}
	for _, name := range names {
		m.line("")
		m.line("### %s", name)
		m.line("")
		m.show(name)
		var rows [][]string
		for _, cell := range cells {
			if cell.Workload != name {
				continue
			}
			for i, c := range cell.Contenders {
				conditions := []string{"", "", ""}
				if i == 0 {
					conditions = []string{fmt.Sprint(cell.Workers), cell.DeadlockTimeout.String(), cell.Think.String()}
				}
				rows = append(rows, append(conditions, contender(cell, c)...))
			}
		}
		m.table([]string{
			":workers", ":deadlock_timeout", ":think", "system", ":committed/s", ":/ locks in order",
			":attempts", ":failed", ":p50", ":p99", ":max", ":longest",
		}, rows)
	}
}

// contender is a system's part of a row: medians over the rounds, but sums of failures and the
// longest of all.
func contender(cell result.Cell, c result.Contender) []string {
	var attempts, p50, p99, slowest []float64
	var longest time.Duration
	failed := map[string]int64{}
	for _, run := range c.Rounds {
		attempts = append(attempts, run.AttemptsPerCommit())
		p50 = append(p50, float64(run.P50))
		p99 = append(p99, float64(run.P99))
		slowest = append(slowest, float64(run.Max))
		longest = max(longest, run.Longest)
		for code, n := range run.Failed {
			failed[code] += n
		}
		if run.Unfinished > 0 {
			failed["unfinished"] += run.Unfinished
		}
	}
	name := label(c.System)
	switch {
	case c.Violation != "":
		name += " **BROKEN**"
	case c.Unchecked != "":
		name += " (unchecked)"
	}
	median := func(values []float64) string { return duration(time.Duration(measure.Median(values))) }
	return []string{
		name, measure.Of(runRates(c.Rounds)).String(), measure.Of(throughput(cell, c.System, peer.OrderedLimit)).String(),
		fmt.Sprintf("%.2f", measure.Median(attempts)), failures(failed),
		median(p50), median(p99), median(slowest), duration(longest),
	}
}

func failures(failed map[string]int64) string {
	if len(failed) == 0 {
		return "0"
	}
	var parts []string
	for _, code := range slices.Sorted(maps.Keys(failed)) {
		parts = append(parts, fmt.Sprintf("%d × %s", failed[code], code))
	}
	return strings.Join(parts, ", ")
}

func (m *markdown) patience(all []result.Patience) {
	if len(all) == 0 {
		return
	}
	m.line("## False aborts")
	m.line("")
	m.line("After a storm of deadlocks, in the same `*sql.DB`, transactions that take their locks in order and hold them: none of them deadlocks.")
	var rows [][]string
	for _, p := range all {
		rows = append(rows, []string{
			label(p.System), p.String(), fmt.Sprint(p.Storm.Attempts - p.Storm.Committed),
			fmt.Sprint(p.Run.Committed), fmt.Sprint(p.Run.Attempts), fmt.Sprintf("%.4f", p.Run.AttemptsPerCommit()), failures(p.Run.Failed),
		})
	}
	m.table([]string{"system", "conditions", ":aborted in the storm", ":ordered: commits", ":attempts", ":attempts per commit", ":failed"}, rows)
}

func (m *markdown) processes(all []result.Processes) {
	if len(all) == 0 {
		return
	}
	m.line("## Several processes")
	var rows [][]string
	for _, p := range all {
		name := label(p.System)
		if p.Violation != "" {
			name += " **BROKEN**"
		}
		var p99 []float64
		failed := map[string]int64{}
		for _, run := range p.Rounds {
			p99 = append(p99, float64(run.P99))
			for code, n := range run.Failed {
				failed[code] += n
			}
		}
		rows = append(rows, []string{
			p.Workload, p.DeadlockTimeout.String(), name, fmt.Sprintf("%d × %d", p.Processes, p.Workers/p.Processes),
			measure.Of(runRates(p.Rounds)).String(), measure.Of(measure.Ratios(runRates(p.Rounds), oneProcess(all, p.Conditions))).String(),
			failures(failed), duration(time.Duration(measure.Median(p99))),
		})
	}
	m.table([]string{"workload", ":deadlock_timeout", "system", ":processes × workers", ":committed/s", ":/ one process", ":failed", ":p99"}, rows)
}

func micros(value float64) string {
	if value >= 10_000 {
		return measure.Short(value/1000) + " ms"
	}
	return measure.Short(value) + " µs"
}

// duration rounds to three digits.
func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < time.Second:
		return measure.Short(float64(d)/float64(time.Millisecond)) + " ms"
	}
	return measure.Short(d.Seconds()) + " s"
}
