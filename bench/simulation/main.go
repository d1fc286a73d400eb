// Command simulation compares strategies of waiting before a retry, without a database: the
// simulation of the article "Exponential Backoff and Jitter" (AWS Architecture Blog; its parameters
// are those of github.com/aws-samples/aws-arch-backoff-simulator), extended to more clients and by
// what pgretry does.
//
//	go run ./bench/simulation            10 to 10,000 clients, less than a minute on 2 cores
//	go run ./bench/simulation -h         what else there is
//
// Many clients change one row at once, each of them once. A client reads the row's version and
// writes it back, and the write fails if the row has changed in between: optimistic concurrency
// control. Each message takes about 10 ms, the row itself no time at all. It is measured how long it
// takes until all have succeeded, and how many writes that takes. Nobody gives up.
//
// The same flags give the same numbers.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code: 0, 1 if something failed, 2 if the arguments are wrong.
func run(args []string, out, log io.Writer) int {
	flags := flag.NewFlagSet("simulation", flag.ContinueOnError)
	flags.SetOutput(log)
	clientList := flags.String("clients", "10,20,50,100,200,500,1000,2000,5000,10000", "`numbers` of clients")
	seeds := flags.Int("seeds", 15, "`number` of runs, of which the median is taken; fewer beyond 1000 clients")
	dir := flags.String("out", "", "`directory` for the plots")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	clients, err := numbers(*clientList)
	if err == nil && *seeds < 1 {
		err = fmt.Errorf("-seeds is %d, allowed is 1 or more", *seeds)
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(log, "simulation:", err)
		return 2
	}
	results := simulateAll(clients, *seeds, runtime.GOMAXPROCS(0))
	printTables(out, results)
	if *dir != "" {
		if err := plotAll(*dir, results); err != nil {
			fmt.Fprintln(log, "simulation:", err)
			return 1
		}
	}
	return 0
}

// numbers reads a list of numbers of clients.
func numbers(list string) ([]int, error) {
	var clients []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("read -clients: %w", err)
		}
		if n < 1 || n > 1_000_000 {
			return nil, fmt.Errorf("-clients has %d, allowed is 1 to a million", n)
		}
		clients = append(clients, n)
	}
	slices.Sort(clients)
	return slices.Compact(clients), nil
}
