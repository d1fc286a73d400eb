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
)

// WriteText writes the table, a summary and, if there is one, the span tree.
func WriteText(out io.Writer, d Demo) error {
	if _, err := fmt.Fprintf(out, "%s\n\n%s\n", d.table(), d.summary()); err != nil {
		return err
	}
	if d.Transaction == nil {
		return nil
	}
	_, err := fmt.Fprintf(out, "\nOne transaction, as OpenTelemetry saw it (REPEATABLE READ; rivals made it fail twice):\n%s\n", d.Transaction)
	return err
}

func (d Demo) table() string {
	t := table.NewWriter()
	t.SetStyle(table.StyleRounded)
	t.Style().Format.Header = text.FormatDefault
	t.Style().Options.DrawBorder = false
	t.Style().Options.SeparateColumns = false
	t.AppendHeader(table.Row{
		"workload", "driver", "commits", "errors\nseen", "attempts\nper commit",
		"p50\nms", "p99\nms", "deadlocks\nsurvived", "serialization\nfailures\nsurvived", "invariant",
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
			name, r.Side, r.Commits, errorCounts(r), ratio(r),
			milliseconds(r.P50), milliseconds(r.P99), r.Deadlocks, r.SerializationFailures, invariant(r),
		})
	}
	t.SuppressTrailingSpaces()
	return t.Render()
}

func (d Demo) summary() string {
	plain, retrying := d.totals(runner.Plain), d.totals(runner.Retrying)
	var s strings.Builder
	fmt.Fprintf(&s, "PostgreSQL %s, deadlock_timeout %v, %d workers, %v per workload and driver, seed %d.\n",
		d.ServerVersion, d.DeadlockTimeout, d.Workers, d.Duration, d.Seed)
	fmt.Fprintf(&s, "Errors are those the application saw; p50 and p99 are of committed transactions, waits and repetitions included.\n")
	fmt.Fprintf(&s, "%s: %d of %d transactions failed.\n", runner.Plain.Name, plain.errors, plain.commits+plain.errors)
	fmt.Fprintf(&s, "%s: %d of %d transactions failed; it survived %d deadlocks and %d serialization failures.",
		runner.Retrying.Name, retrying.errors, retrying.commits+retrying.errors, retrying.deadlocks, retrying.serializationFailures)
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
