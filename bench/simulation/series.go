package main

import (
	"cmp"
	"slices"
	"sync"
)

// manyClients is from how many clients on runs are long enough to need fewer of them.
const manyClients = 1000

// result is the median of the runs of each strategy with so many clients.
type result struct {
	clients  int
	runs     int
	outcomes []outcome // in the order of strategies
}

// runsFor says how many runs the median is taken of. A run with more clients takes longer, by
// their square, and varies less.
func runsFor(clients, seeds int) int {
	if clients <= manyClients {
		return seeds
	}
	return max(1, seeds*manyClients/clients*manyClients/clients)
}

// simulateAll simulates each strategy with each number of clients, so many at once.
func simulateAll(clients []int, seeds, parallel int) []result {
	results := make([]result, len(clients))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	// The longest first, lest the last one runs alone.
	for i, n := range slices.Backward(clients) {
		runs := runsFor(n, seeds)
		results[i] = result{n, runs, make([]outcome, len(strategies))}
		for j, s := range strategies {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				results[i].outcomes[j] = median(s, n, runs)
			})
		}
	}
	wg.Wait()
	return results
}

// median simulates a strategy with the seeds from 1 on.
func median(s strategy, clients, runs int) outcome {
	all := make([]outcome, runs)
	for i := range all {
		all[i] = simulate(s, clients, uint64(i+1))
	}
	middle := outcome{}
	slices.SortFunc(all, func(a, b outcome) int { return cmp.Compare(a.completion, b.completion) })
	middle.completion = all[runs/2].completion
	slices.SortFunc(all, func(a, b outcome) int { return cmp.Compare(a.calls, b.calls) })
	middle.calls = all[runs/2].calls
	return middle
}
