// Command bench compares pgretry with what it wraps and with what people use instead, in one run:
//
//	go run ./bench            everything, about 40 minutes on 2 cores
//	go run ./bench -short     a reduced run of less than two minutes
//	go run ./bench -h         what else there is
//
// It starts a throwaway PostgreSQL server, lets all systems take turns on it, checks after each
// turn that the database holds what the committed transactions must have left there, and prints
// tables in Markdown: the claims that pgretry makes and what was measured of them, the fast path,
// contention. A system that broke an invariant gets a line that begins with BROKEN; if it is
// pgretry, the exit code is 1.
//
// With -out it also writes results.json, results.md and plots into a directory; -render makes
// tables and plots again from such a results.json.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/pgretry/pgretry/bench/internal/processes"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == processes.Argument {
		os.Exit(processes.Main())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0, 1 if something failed or pgretry broke an invariant, 2 if the
// arguments are wrong.
func run(ctx context.Context, args []string, out, log io.Writer) int {
	settings, err := parse(args, log)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(log, "bench:", err)
		return 2
	}
	session := &session{settings: settings, log: log}
	err = session.run(ctx)
	// What was measured before an interruption or a failure is worth showing, too.
	if session.results != nil {
		err = errors.Join(err, session.show(out))
	}
	if err != nil {
		fmt.Fprintln(log, "bench:", err)
		return 1
	}
	if session.broken() {
		return 1
	}
	return 0
}
