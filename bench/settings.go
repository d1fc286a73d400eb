package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/internal/workload"
)

// settings are what the command line asks for.
type settings struct {
	args   []string
	short  bool
	only   []string
	out    string
	again  bool
	render string
	dsn    string
	seed   uint64

	workloads        []string // names as workload.All has them
	workers          []int
	deadlockTimeouts []time.Duration
	think            []time.Duration
	systems          []string // none means those that suit
	rounds           int      // 0 means as many as suit
	window           time.Duration
	restricted       bool // some flag chose cells: those that only claims need are left out
}

const (
	onlyFastPath   = "fastpath"
	onlyContention = "contention"
	onlyScan       = "scan"
	onlyProcesses  = "processes"
)

var parts = []string{onlyFastPath, onlyContention, onlyScan, onlyProcesses}

func parse(args []string, log io.Writer) (*settings, error) {
	s := &settings{args: args}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(log)
	flags.BoolVar(&s.short, "short", false, "a reduced run of less than two minutes")
	only := flags.String("only", "", "`parts` to run, separated by commas: "+strings.Join(parts, ", "))
	names := flags.String("workloads", "", "`names` of workloads: "+strings.Join(workload.Names(), ", "))
	workers := flags.String("workers", "2,8,32", "`numbers` of workers under contention")
	timeouts := flags.String("deadlock-timeouts", "10ms,1s", "`values` of the server's deadlock_timeout under contention")
	think := flags.String("think", "0,5ms", "`pauses` between the statements of a transaction under contention")
	systems := flags.String("systems", "", "`ids` of systems; the default is those that suit each part")
	flags.IntVar(&s.rounds, "rounds", 0, "how often each system has its turn; the default depends on what is measured")
	seconds := flags.Float64("seconds", 0, "how long a turn under contention is; the default depends on what is measured")
	flags.StringVar(&s.dsn, "dsn", "", "connection `string` of a server to use instead of a throwaway one")
	flags.StringVar(&s.out, "out", "", "`directory` for results.json, results.md and plots")
	flags.BoolVar(&s.again, "again", false, "keep what the results in the directory of -out have of other parts than are measured now")
	flags.StringVar(&s.render, "render", "", "`file` with results to make tables and plots of, instead of measuring")
	flags.Uint64Var(&s.seed, "seed", 1, "decides what the transactions of workloads touch")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	flags.Visit(func(f *flag.Flag) {
		if slices.Contains([]string{"workloads", "workers", "deadlock-timeouts", "think"}, f.Name) {
			s.restricted = true
		}
	})

	s.only = listed(*only)
	for _, part := range s.only {
		if !slices.Contains(parts, part) {
			return nil, fmt.Errorf("-only: no part is called %q: choose from %s", part, strings.Join(parts, ", "))
		}
	}
	if len(s.only) == 0 {
		s.only = parts
	}
	selected, err := workload.Select(s.seed, listed(*names))
	if err != nil {
		return nil, fmt.Errorf("-workloads: %w", err)
	}
	for _, w := range selected {
		s.workloads = append(s.workloads, w.Name())
	}
	s.systems = listed(*systems)
	if err := peer.Known(s.systems); err != nil {
		return nil, fmt.Errorf("-systems: %w", err)
	}
	if s.workers, err = each(*workers, func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err == nil && (n < 1 || n > 150) {
			err = errors.New("allowed are 1 to 150")
		}
		return n, err
	}); err != nil {
		return nil, fmt.Errorf("-workers: %w", err)
	}
	pause := func(text string) (time.Duration, error) {
		if text == "0" {
			return 0, nil
		}
		return time.ParseDuration(text)
	}
	if s.think, err = each(*think, pause); err != nil {
		return nil, fmt.Errorf("-think: %w", err)
	}
	if s.deadlockTimeouts, err = each(*timeouts, func(text string) (time.Duration, error) {
		timeout, err := time.ParseDuration(text)
		if err == nil && timeout < time.Millisecond {
			err = errors.New("the least is 1ms")
		}
		return timeout, err
	}); err != nil {
		return nil, fmt.Errorf("-deadlock-timeouts: %w", err)
	}
	if s.again && (s.out == "" || s.restricted) {
		return nil, errors.New("-again needs -out, and whole parts")
	}
	if s.rounds < 0 || *seconds < 0 {
		return nil, errors.New("-rounds and -seconds cannot be negative")
	}
	s.window = time.Duration(*seconds * float64(time.Second))
	return s, nil
}

// listed splits a list at its commas; "" is no list.
func listed(text string) []string {
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

func each[T any](text string, read func(string) (T, error)) ([]T, error) {
	var values []T
	for _, part := range listed(text) {
		value, err := read(part)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		values = append(values, value)
	}
	if len(values) == 0 {
		return nil, errors.New("the list is empty")
	}
	return values, nil
}

// chosen returns those of the ids that -systems leaves, as systems.
func (s *settings) chosen(ids ...string) []peer.System {
	if len(s.systems) == 0 {
		return peer.Named(ids...)
	}
	return peer.Named(s.systems...)
}

// among is chosen for parts in which not every system makes sense.
func (s *settings) among(ids ...string) []peer.System {
	return slices.DeleteFunc(s.chosen(ids...), func(system peer.System) bool { return !slices.Contains(ids, system.ID) })
}
