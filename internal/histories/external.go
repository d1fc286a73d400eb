package histories

import (
	"fmt"
	"slices"
)

// checkAppend looks whether a write of a committed transaction is where it must be.
func (c *checker) checkAppend(o appending) {
	v := c.values[o.op.Val]
	if v.tx != o.tx || !c.survives(v) || !v.seen {
		return
	}
	final, at := c.history.Final.Lists[o.op.Key], c.places[o.op.Val].index
	if o.at >= 0 && o.at != at {
		c.found(LostUpdate, fmt.Sprintf("%s wrote value %d to list %d, of which it knew %d values, but it is number %d of %s",
			c.history.Txs[o.tx].Name, o.op.Val, o.op.Key, o.at, at+1, listText(final)), append([]int{o.tx}, c.between(o.op.Key, o.at, at)...)...)
		return
	}
	if o.op.Kind == Write && !slices.Equal(final[:at], o.op.List) {
		c.found(LostUpdate, fmt.Sprintf("%s wrote the list %s, but before its value %d there is now %s",
			c.history.Txs[o.tx].Name, listText(o.op.List), o.op.Val, listText(final[:at])), o.tx)
	}
}

// between returns the writers of a part of a list.
func (c *checker) between(key int32, from, to int) (writers []int) {
	for i := min(from, to); i < max(from, to) && len(writers) < 3; i++ {
		if w, ok := c.writer(key, i); ok {
			writers = append(writers, w)
		}
	}
	return writers
}

// checkRead compares what a transaction saw with the final list and adds the
// dependencies that follow.
func (c *checker) checkRead(o reading) {
	final, name := c.history.Final.Lists[o.key], c.history.Txs[o.tx].Name
	for i, val := range o.base {
		if i < len(final) && final[i] == val {
			continue
		}
		c.unexplained(o, i, val)
		return
	}
	if o.n > len(final) {
		c.found(Order, fmt.Sprintf("%s saw %d values in list %d, which ends as %s", name, o.n, o.key, listText(final)), o.tx)
		return
	}
	if v := c.values[o.own]; v != nil && c.survives(v) && v.seen && c.places[o.own].index != o.n {
		at := c.places[o.own].index
		c.found(LostUpdate, fmt.Sprintf("%s saw %d values in list %d before its own value %d, which is number %d of %s",
			name, o.n, o.key, o.own, at+1, listText(final)), append([]int{o.tx}, c.between(o.key, o.n, at)...)...)
	}
	if ended := c.ended[o.key]; o.n < len(ended) && ended[o.n] < o.began {
		c.found(Stale, fmt.Sprintf("%s saw list %d as %s, without what had been acknowledged before: %s",
			name, o.key, listText(final[:o.n]), listText(final[o.n:])), append([]int{o.tx}, c.between(o.key, o.n, len(final))...)...)
	}

	last, hasLast := c.writer(o.key, o.n-1)
	next, hasNext := c.writer(o.key, o.n)
	if hasLast && hasNext && last == next && last != o.tx {
		c.found(G1b, fmt.Sprintf("%s saw list %d as %s, as it was between two writes of %s: %d and %d",
			name, o.key, listText(final[:o.n]), c.history.Txs[last].Name, final[o.n-1], final[o.n]), o.tx, last)
	}
	if hasLast && last != o.tx {
		c.graph.add(last, edge{kind: wr, to: o.tx, key: o.key, val: final[o.n-1]})
	}
	if hasNext && next != o.tx {
		c.graph.add(o.tx, edge{kind: rw, to: next, key: o.key, val: final[o.n], unwatched: o.unwatched})
	}
}

// unexplained names what is wrong with a read whose value at an index is not that
// of the final list.
func (c *checker) unexplained(o reading, index int, val int32) {
	name, final := c.history.Txs[o.tx].Name, c.history.Final.Lists[o.key]
	shown := fmt.Sprintf("%s saw list %d as %s", name, o.key, listText(o.base))
	v := c.values[val]
	switch {
	case v == nil || v.table != list || v.key != o.key:
		c.found(Garbage, fmt.Sprintf("%s, value %d was not written to it", shown, val), o.tx)
	case !c.survives(v):
		c.found(G1a, fmt.Sprintf("%s, with value %d of %s, which was not committed", shown, val, c.history.Txs[v.tx].Name), o.tx, v.tx)
	case !v.seen:
		c.found(LostAppend, fmt.Sprintf("%s, with value %d of %s, which is not in the final list %s", shown, val, c.history.Txs[v.tx].Name, listText(final)), o.tx, v.tx)
	default:
		c.found(Order, fmt.Sprintf("%s, but value %d is not number %d of the final list %s", shown, val, index+1, listText(final)), o.tx, v.tx)
	}
}

// checkSearch does for a search what checkRead does for a read.
func (c *checker) checkSearch(o search) {
	v, name := c.values[o.op.Val], c.history.Txs[o.tx].Name
	if o.op.Found < 0 {
		if v == nil || !c.survives(v) || !v.seen || v.table != list || v.key < o.op.Key || v.key > o.op.High {
			return
		}
		if ended := c.history.Txs[v.tx].Ended; ended != 0 && ended < o.began {
			c.found(Stale, fmt.Sprintf("%s did not find value %d, which had been acknowledged before", name, o.op.Val), o.tx, v.tx)
		}
		c.graph.add(o.tx, edge{kind: rw, to: v.tx, key: v.key, val: o.op.Val})
		return
	}
	switch {
	case v == nil || v.table != list || v.key != o.op.Found || v.key < o.op.Key || v.key > o.op.High:
		c.found(Garbage, fmt.Sprintf("%s found value %d in list %d", name, o.op.Val, o.op.Found), o.tx)
	case !c.survives(v):
		c.found(G1a, fmt.Sprintf("%s found value %d of %s, which was not committed", name, o.op.Val, c.history.Txs[v.tx].Name), o.tx, v.tx)
	default:
		c.graph.add(v.tx, edge{kind: wr, to: o.tx, key: v.key, val: o.op.Val})
	}
}
