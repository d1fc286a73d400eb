package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
)

// WriteText writes the table, a summary, what could not be hidden and why, and the span trees that
// there are.
func WriteText(out io.Writer, d Demo) error {
	if _, err := fmt.Fprintf(out, "%s\n\n%s", d.table(), d.summary()); err != nil {
		return err
	}
	if _, err := io.WriteString(out, d.unhidden()); err != nil {
		return err
	}
	for _, tree := range []struct {
		title string
		root  *spantree.Span
	}{
		{"One transaction with RunInTx, as OpenTelemetry saw it (REPEATABLE READ; rivals made it fail twice)", d.Closure},
		{"Another without a closure (READ COMMITTED; a rival deadlocked with it)", d.Replay},
	} {
		if tree.root == nil {
			continue
		}
		if _, err := fmt.Fprintf(out, "\n%s:\n%s\n", tree.title, tree.root); err != nil {
			return err
		}
	}
	return nil
}

func (d Demo) table() string {
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.Style().Options.SeparateColumns = false
	t.AppendHeader(table.Row{
		"workload", "with", "commits", "errors\nseen", "conflicts\nhidden", "share\nhidden",
		"attempts\nper commit", "p50\nms", "p99\nms", "invariant",
	})
	var numbers []table.ColumnConfig
	for column := 3; column <= 9; column++ {
		numbers = append(numbers, table.ColumnConfig{Number: column, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(numbers)
	previous := ""
	for _, r := range d.Results {
		name := r.Workload
		if name == previous {
			name = ""
		} else if previous != "" {
			t.AppendSeparator()
		}
		previous = r.Workload
		t.AppendRow(table.Row{
			name, r.Side, r.Commits, errorCounts(r), r.Conflicts.Hidden, share(r.Conflicts),
			ratio(r), milliseconds(r.P50), milliseconds(r.P99), invariant(r),
		})
	}
	t.SuppressTrailingSpaces()
	return t.Render()
}

func (d Demo) summary() string {
	var s strings.Builder
	fmt.Fprintf(&s, "PostgreSQL %s, deadlock_timeout %v, %d workers, %v per workload and side, seed %d.\n",
		d.ServerVersion, d.DeadlockTimeout, d.Workers, d.Duration, d.Seed)
	fmt.Fprintf(&s, "All sides run the same transactions; %q differs from %q in the driver's name alone.\n", runner.DriverOnly.Name, runner.Plain.Name)
	fmt.Fprintln(&s, "Errors are those the application saw; a conflict is hidden if the transaction was run again instead.")
	fmt.Fprintln(&s, "p50 and p99 are of committed transactions, waits and repetitions included.")
	for _, side := range runner.Sides() {
		t := d.totals(side)
		fmt.Fprintf(&s, "%s: %d of %d transactions failed", side.Name, t.errors, t.commits+t.errors)
		switch side.Name {
		case runner.DriverOnly.Name:
			fmt.Fprintf(&s, "; %d of %d conflicts were hidden (%s)", t.conflicts.Hidden, t.conflicts.Hidden+t.conflicts.Seen, share(t.conflicts))
		case runner.RunInTx.Name:
			fmt.Fprintf(&s, "; it survived %d deadlocks and %d serialization failures", t.conflicts.Deadlocks(), t.conflicts.SerializationFailures())
		}
		fmt.Fprintln(&s, ".")
	}
	return s.String()
}

// errorCounts is "0", or how often each SQLSTATE came, a line each.
func errorCounts(r runner.Result) string {
	if len(r.Codes) == 0 {
		return "0"
	}
	var lines []string
	for _, code := range slices.Sorted(maps.Keys(r.Codes)) {
		lines = append(lines, fmt.Sprintf("%d × %s", r.Codes[code], code))
	}
	return strings.Join(lines, "\n")
}

// share is in per cent with one decimal. Only if nothing was seen is it 100.
func share(c runner.Conflicts) string {
	hidden, ok := c.HiddenShare()
	if !ok {
		return "–"
	}
	percent := hidden * 100
	if c.Seen > 0 {
		percent = min(percent, 99.9)
	}
	return fmt.Sprintf("%.1f %%", percent)
}

func ratio(r runner.Result) string {
	if r.Commits == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", r.AttemptsPerCommit())
}

func invariant(r runner.Result) string {
	if r.Violation != nil {
		return "VIOLATED"
	}
	return "held"
}

func milliseconds(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f", d.Seconds()*1000)
}
