package histories

import (
	"fmt"
	"strings"
)

// dependency is a kind of edge between transactions.
type dependency uint8

const (
	ww dependency = iota // the one overwrote what the other had written
	wr                   // read what the other had written
	rw                   // wrote over what the other had read
)

// edge leads from one transaction to another that depends on it.
type edge struct {
	kind dependency
	to   int
	key  int32
	val  int32 // the one that the other wrote (ww, rw) or read (wr)
	// unwatched is set for an rw edge that does not count among SERIALIZABLE
	// transactions.
	unwatched bool
}

func (e edge) String() string {
	switch e.kind {
	case ww:
		return fmt.Sprintf("ww(list %d, then %d)", e.key, e.val)
	case wr:
		return fmt.Sprintf("wr(list %d, %d read)", e.key, e.val)
	}
	return fmt.Sprintf("rw(list %d, read without %d)", e.key, e.val)
}

// graph is the direct serialization graph.
type graph struct{ edges [][]edge }

func newGraph(transactions int) *graph { return &graph{make([][]edge, transactions)} }

func (g *graph) add(from int, e edge) {
	if from == e.to {
		return
	}
	for _, other := range g.edges[from] {
		if other.kind == e.kind && other.to == e.to && other.unwatched == e.unwatched {
			return // one witness is enough
		}
	}
	g.edges[from] = append(g.edges[from], e)
}

// checkCycles looks for the cycles that the package comment lists, those of the
// weaker levels first: who has them has the others too.
func (c *checker) checkCycles() {
	txs := c.history.Txs
	all := func(yield func(int, int, edge), counts func(from int, e edge) bool) {
		for from, edges := range c.graph.edges {
			for _, e := range edges {
				if counts(from, e) {
					yield(from, e.to, e)
				}
			}
		}
	}
	for _, pass := range []struct {
		states int
		arcs   func(yield func(from, to int, e edge))
	}{
		{len(txs), func(yield func(int, int, edge)) {
			all(yield, func(_ int, e edge) bool { return e.kind == ww })
		}},
		{len(txs), func(yield func(int, int, edge)) {
			all(yield, func(_ int, e edge) bool { return e.kind != rw })
		}},
		// Two states for each transaction: reached by rw, and otherwise.
		{2 * len(txs), func(yield func(int, int, edge)) {
			all(func(from, to int, e edge) {
				if e.kind == rw {
					yield(from, to+len(txs), e)
					return
				}
				yield(from, to, e)
				yield(from+len(txs), to, e)
			}, func(from int, e edge) bool { return e.kind != rw || txs[from].Level >= RepeatableRead })
		}},
		{len(txs), func(yield func(int, int, edge)) {
			all(yield, func(from int, e edge) bool {
				return e.kind != rw || !e.unwatched &&
					txs[from].Level == Serializable && txs[e.to].Level == Serializable && txs[from].Outcome == Committed
			})
		}},
	} {
		cycles := findCycles(pass.states, pass.arcs)
		for _, cycle := range cycles {
			c.foundCycle(cycle)
		}
		if len(cycles) > 0 {
			return
		}
	}
}

func (c *checker) foundCycle(cycle []arc) {
	var text strings.Builder
	members := make([]int, 0, len(cycle))
	count := map[dependency]int{}
	adjacent := false
	for i, a := range cycle {
		from := a.from % len(c.history.Txs)
		members = append(members, from)
		fmt.Fprintf(&text, "%s —%s→ ", c.history.Txs[from].Name, a.edge)
		count[a.edge.kind]++
		adjacent = adjacent || a.edge.kind == rw && cycle[(i+1)%len(cycle)].edge.kind == rw
	}
	text.WriteString(c.history.Txs[members[0]].Name)
	name := G2
	switch {
	case count[rw] == 0 && count[wr] == 0:
		name = G0
	case count[rw] == 0:
		name = G1c
	case count[rw] == 1 && len(cycle) == 2 && count[ww] == 1 && cycle[0].edge.key == cycle[1].edge.key:
		name = LostUpdate
	case count[rw] == 1:
		name = GSingle
	case !adjacent:
		name = GNonadjacent
	}
	c.found(name, text.String(), members...)
}
