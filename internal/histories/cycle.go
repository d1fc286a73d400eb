package histories

// arc is an edge between two states of a search.
type arc struct {
	from, to int
	edge     edge
}

// startsPerComponent bounds the search for a shortest cycle in a large component.
const startsPerComponent = 300

// findCycles returns a short cycle of each strongly connected component that has
// one.
func findCycles(states int, arcs func(yield func(from, to int, e edge))) (cycles [][]arc) {
	out := make([][]arc, states)
	arcs(func(from, to int, e edge) { out[from] = append(out[from], arc{from, to, e}) })
	component := components(out)
	members := make(map[int][]int)
	for state, number := range component {
		members[number] = append(members[number], state)
	}
	for number := range states {
		if len(members[number]) < 2 {
			continue // no state leads to itself
		}
		var shortest []arc
		for _, start := range members[number][:min(len(members[number]), startsPerComponent)] {
			if cycle := cycleThrough(start, out, component); shortest == nil || len(cycle) < len(shortest) {
				shortest = cycle
			}
		}
		cycles = append(cycles, shortest)
	}
	return cycles
}

// components numbers the strongly connected components (Tarjan 1972) and returns
// the number of each state's.
func components(out [][]arc) []int {
	const unseen, open = -1, -1
	var (
		component = make([]int, len(out))
		index     = make([]int, len(out))
		low       = make([]int, len(out))
		stack     []int
		next      int
		number    int
		visit     func(int)
	)
	for i := range out {
		component[i], index[i] = open, unseen
	}
	visit = func(v int) {
		index[v], low[v] = next, next
		next++
		stack = append(stack, v)
		for _, a := range out[v] {
			if index[a.to] == unseen {
				visit(a.to)
				low[v] = min(low[v], low[a.to])
			} else if component[a.to] == open {
				low[v] = min(low[v], index[a.to])
			}
		}
		if low[v] != index[v] {
			return
		}
		for {
			w := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			component[w] = number
			if w == v {
				break
			}
		}
		number++
	}
	for v := range out {
		if index[v] == unseen {
			visit(v)
		}
	}
	return component
}

// cycleThrough returns a shortest cycle through a state, inside its component.
func cycleThrough(start int, out [][]arc, component []int) []arc {
	reached := map[int]arc{}
	queue := []int{start}
	for len(queue) > 0 {
		v := queue[0]
		queue = queue[1:]
		for _, a := range out[v] {
			if component[a.to] != component[start] {
				continue
			}
			if _, ok := reached[a.to]; ok {
				continue
			}
			reached[a.to] = a
			if a.to == start {
				cycle := []arc{a}
				for cycle[0].from != start {
					cycle = append([]arc{reached[cycle[0].from]}, cycle...)
				}
				return cycle
			}
			queue = append(queue, a.to)
		}
	}
	return nil
}
