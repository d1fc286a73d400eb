package certainty

import (
	"slices"
	"strings"
	"time"
)

// markdown returns a table in Markdown.
func markdown(header []string, rows [][]string) string {
	var table strings.Builder
	line := func(cells []string) {
		table.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	line(header)
	line(slices.Repeat([]string{"---"}, len(header)))
	for _, row := range rows {
		line(row)
	}
	return table.String()
}

// quantile returns the duration below which the share q of them lies, and 0 if
// there are none. It sorts them.
func quantile(durations []time.Duration, q float64) time.Duration {
	if len(durations) == 0 {
		return 0
	}
	slices.Sort(durations)
	return durations[min(int(q*float64(len(durations))), len(durations)-1)]
}
