package lockgraph

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Graph is who waits for whom. Methods do not change it.
type Graph struct {
	sessions []*session       // by process id
	of       map[int]*session // by the id of any of its processes
}

// session is a node of the graph.
type session struct {
	Session
	waits []wait // several if there are parallel workers
}

// wait is a process that waits.
type wait struct {
	process int
	name    string // of the mode
	against modes  // what must not be held by others
	object  *lockable
}

// lockable is an object and who holds it.
type lockable struct {
	Object
	held []holding
}

type holding struct {
	by   *session
	mode modes
}

// Edge is a process that waits for a session.
type Edge struct {
	// Process is the process that waits: the session's own, or that of one of its parallel workers.
	Process int
	// Waiter is the session that waits.
	Waiter Session
	// Mode is the lock mode that is waited for, such as ShareLock.
	Mode string
	// Object is what is to be locked.
	Object Object
	// Blocker is a session that holds the object in a mode that conflicts.
	Blocker Session
}

// Wait is a process that waits, and for whom.
type Wait struct {
	Process int
	Waiter  Session
	Mode    string
	Object  Object
	// Blockers are the sessions that hold the object in a mode that conflicts, ordered by process id, prepared transactions
	// as PID 0. There are none if the process merely stands in a queue.
	Blockers []Session
}

// Build makes a graph of what one run of [Query] returned, in any order. An error means that the rows are not to be
// understood.
func Build(rows []Row) (*Graph, error) {
	graph := &Graph{of: make(map[int]*session)}
	byID := make(map[int]*session)
	objects := make(map[Object]*lockable)
	for i := range rows {
		row := &rows[i]
		if row.Mode == "SIReadLock" {
			continue // a mark of serializable transactions that blocks nobody
		}
		mode, err := parseMode(row.Mode)
		if err != nil {
			return nil, fmt.Errorf("build the lock graph: process %d: %w", row.Process, err)
		}
		object := objects[row.Object]
		if object == nil {
			object = &lockable{Object: row.Object}
			objects[row.Object] = object
		}
		node := byID[row.Session.PID]
		if node == nil {
			node = &session{Session: row.Session}
			byID[row.Session.PID] = node
			graph.sessions = append(graph.sessions, node)
		}
		if row.Process != 0 {
			graph.of[row.Process] = node
		}
		switch {
		case row.Granted:
			object.held = append(object.held, holding{node, mode})
		case row.Process == 0:
			return nil, errors.New("build the lock graph: a prepared transaction waits")
		default:
			node.waits = append(node.waits, wait{row.Process, row.Mode, conflicting(mode), object})
		}
	}
	slices.SortFunc(graph.sessions, func(a, b *session) int { return cmp.Compare(a.PID, b.PID) })
	for _, node := range graph.sessions {
		// Sessions are found by their own process id even where only a worker has locks.
		if node.PID != 0 {
			graph.of[node.PID] = node
		}
		slices.SortFunc(node.waits, func(a, b wait) int { return cmp.Compare(a.process, b.process) })
	}
	for _, object := range objects {
		slices.SortFunc(object.held, func(a, b holding) int { return cmp.Compare(a.by.PID, b.by.PID) })
	}
	return graph, nil
}

// blocks tells whether a holding is in the way of a session's wait.
func (h holding) blocks(waiter *session, w *wait) bool {
	if h.by == waiter || w.against&h.mode == 0 {
		return false
	}
	// A prepared transaction has no workers.
	unknown := waiter.Started == "" && h.by.Started == "" && h.by.PID != 0
	return !unknown || w.object.betweenTransactions()
}

// Waits returns all processes that wait, ordered by session and process.
func (g *Graph) Waits() []Wait {
	var waits []Wait
	for _, node := range g.sessions {
		for i := range node.waits {
			w := &node.waits[i]
			var blockers []Session
			for _, holding := range w.object.held {
				if holding.blocks(node, w) && (len(blockers) == 0 || blockers[len(blockers)-1] != holding.by.Session) {
					blockers = append(blockers, holding.by.Session)
				}
			}
			waits = append(waits, Wait{w.process, node.Session, w.name, w.object.Object, blockers})
		}
	}
	return waits
}

func newEdge(waiter *session, w *wait, blocker *session) Edge {
	return Edge{w.process, waiter.Session, w.name, w.object.Object, blocker.Session}
}
