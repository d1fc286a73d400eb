package lockgraph

import (
	"slices"
	"strconv"
	"strings"
)

// Cycle is a deadlock: every session waits for the next one, the last one for the first.
type Cycle []Edge

// Detail returns the text that the server would put into the DETAIL of the error for the first session, in English:
//
//	Process 123 waits for ShareLock on transaction 789; blocked by process 456.
//	Process 456 waits for ShareLock on transaction 788; blocked by process 123.
func (c Cycle) Detail() string {
	var text strings.Builder
	for i, edge := range c {
		if i > 0 {
			text.WriteByte('\n')
		}
		// Of a parallel query, the server names the process that waits in its turn, not the one that holds the lock.
		next := c[(i+1)%len(c)]
		text.WriteString("Process " + strconv.Itoa(edge.Process) + " waits for " + edge.Mode + " on " + edge.Object.String() +
			"; blocked by process " + strconv.Itoa(next.Process) + ".")
	}
	return text.String()
}

// From returns the cycle with the session first that has this process; the cycle itself if there is none.
func (c Cycle) From(pid int) Cycle {
	first := slices.IndexFunc(c, func(edge Edge) bool { return edge.Process == pid || edge.Waiter.PID == pid })
	if first <= 0 {
		return c
	}
	return slices.Concat(c[first:], c[:first])
}

// Through returns a shortest cycle with the session that has this process, that session first; nil if the session is in
// none. A session may be in none and yet wait in vain, for one that is.
func (g *Graph) Through(pid int) Cycle {
	start := g.of[pid]
	if start == nil || len(start.waits) == 0 {
		return nil
	}
	type step struct {
		from *session
		wait *wait
	}
	reached := make(map[*session]step)
	queue := []*session{start}
	for len(queue) > 0 {
		node := queue[0]
		queue = queue[1:]
		for i := range node.waits {
			w := &node.waits[i]
			for _, holding := range w.object.held {
				next := holding.by
				if _, seen := reached[next]; seen || !holding.blocks(node, w) {
					continue
				}
				reached[next] = step{node, w}
				if next != start {
					queue = append(queue, next)
					continue
				}
				var cycle Cycle
				for blocker := start; ; {
					last := reached[blocker]
					cycle = append(cycle, newEdge(last.from, last.wait, blocker))
					if blocker = last.from; blocker == start {
						slices.Reverse(cycle)
						return cycle
					}
				}
			}
		}
	}
	return nil
}

// Cycles returns cycles that have no session in common, so many that none is left without one of their sessions. Each
// needs a victim of its own, so that breaking all of them ends no session in vain. What is left may be deadlocked still,
// in cycles that shared a session with these: look again after they were broken.
func (g *Graph) Cycles() []Cycle {
	const unseen, onPath, done = 0, 1, 2
	type frame struct {
		node       *session
		wait, held int // what to look at next
	}
	var cycles []Cycle
	state := make(map[*session]int, len(g.sessions))
	var path []frame
	for _, root := range g.sessions {
		if state[root] != unseen {
			continue
		}
		state[root] = onPath
		path = append(path[:0], frame{node: root})
		for len(path) > 0 {
			top := &path[len(path)-1]
			if top.wait == len(top.node.waits) {
				state[top.node] = done
				path = path[:len(path)-1]
				continue
			}
			w := &top.node.waits[top.wait]
			if top.held == len(w.object.held) {
				top.wait, top.held = top.wait+1, 0
				continue
			}
			holding := w.object.held[top.held]
			top.held++
			if !holding.blocks(top.node, w) {
				continue
			}
			switch state[holding.by] {
			case unseen:
				state[holding.by] = onPath
				path = append(path, frame{node: holding.by})
			case onPath:
				first := slices.IndexFunc(path, func(f frame) bool { return f.node == holding.by })
				var cycle Cycle
				for i := first; i < len(path); i++ {
					blocker := holding.by
					if i+1 < len(path) {
						blocker = path[i+1].node
					}
					cycle = append(cycle, newEdge(path[i].node, &path[i].node.waits[path[i].wait], blocker))
					state[path[i].node] = done // and out of the graph
				}
				cycles = append(cycles, cycle)
				path = path[:first]
			}
		}
	}
	return cycles
}
