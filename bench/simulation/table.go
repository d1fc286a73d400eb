package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// printTables prints what was measured as Markdown.
func printTables(out io.Writer, results []result) {
	fmt.Fprintln(out, "Seconds until all clients have succeeded, median of the runs:")
	printTable(out, results, func(o outcome) string {
		return strconv.FormatFloat(o.completion.Seconds(), 'f', 1, 64)
	})
	fmt.Fprintln(out, "\nCalls of all clients together, those included that fail, median of the runs:")
	printTable(out, results, func(o outcome) string { return strconv.Itoa(o.calls) })
}

func printTable(out io.Writer, results []result, cell func(o outcome) string) {
	fmt.Fprint(out, "\n| clients | runs |")
	for _, s := range strategies {
		fmt.Fprintf(out, " %s |", s.name)
	}
	fmt.Fprintf(out, "\n|%s\n", strings.Repeat("---:|", len(strategies)+2))
	for _, r := range results {
		fmt.Fprintf(out, "| %d | %d |", r.clients, r.runs)
		for _, o := range r.outcomes {
			fmt.Fprintf(out, " %s |", cell(o))
		}
		fmt.Fprintln(out)
	}
}
