package histories

import (
	"fmt"
	"math"
	"slices"
)

// Check returns the anomalies of a history, nil if there are none. See the package
// comment for what it looks for.
func Check(h *History) []Anomaly {
	c := &checker{
		history: h,
		values:  make(map[int32]*value),
		places:  make(map[int32]place),
		ended:   make(map[int32][]uint64),
	}
	for i := range h.Txs {
		c.follow(i)
	}
	c.settleUnknown()
	c.checkLists()
	c.checkRows("parent", parent, h.Final.Parents)
	c.checkRows("child", child, h.Final.Children)
	c.checkSurvivors()

	c.graph = newGraph(len(h.Txs))
	c.versions()
	for _, o := range c.appends {
		c.checkAppend(o)
	}
	for _, o := range c.reads {
		c.checkRead(o)
	}
	for _, o := range c.searches {
		c.checkSearch(o)
	}
	c.checkCycles()
	return c.anomalies
}

// checker collects what the steps of a check have found.
type checker struct {
	history   *History
	anomalies []Anomaly

	// From following each transaction by itself.
	values   map[int32]*value
	order    []int32 // the values, as they were met
	appends  []appending
	reads    []reading
	searches []search
	unknown  map[int]bool // transactions whose outcome had to be found out

	// From the final state.
	places map[int32]place
	ended  map[int32][]uint64 // by key and index: when the first of the values from there on was acknowledged
	graph  *graph
}

// place is where a value is in the end.
type place struct {
	key   int32
	index int
}

// value is one that a transaction wrote, or tried to.
type value struct {
	tx    int
	key   int32
	table table
	id    int64
	fate  fate
	seen  bool // in the final state
	// upserted says that it was written by INSERT … ON CONFLICT DO UPDATE.
	upserted bool
}

type table uint8

const (
	list table = iota
	parent
	child
)

// fate is what became of a write inside its transaction.
type fate uint8

const (
	lives    fate = iota
	undone        // by ROLLBACK TO
	refused       // its statement failed
	affected      // its statement worked and affected no row
)

func (c *checker) found(name, text string, txs ...int) {
	a := Anomaly{Name: name, Text: text}
	for _, i := range txs {
		if tx := c.history.Txs[i]; !slices.Contains(a.Txs, tx) {
			a.Txs = append(a.Txs, tx)
		}
	}
	c.anomalies = append(c.anomalies, a)
}

// survives says whether a value has to be in the final state.
func (c *checker) survives(v *value) bool {
	return v.fate == lives && c.history.Txs[v.tx].Outcome == Committed
}

// whyDead names the anomaly of a value that does not survive but was seen in the
// final state.
func (c *checker) whyDead(v *value) string {
	if v.fate == undone && c.history.Txs[v.tx].Outcome == Committed {
		return RolledBack
	}
	return Undead
}

// settleUnknown decides what became of each transaction whose outcome the
// application does not know: committed if anything of it is there. Reads of the
// others' need no look, since what they saw has to be there in the end.
func (c *checker) settleUnknown() {
	if !slices.ContainsFunc(c.history.Txs, func(tx *Tx) bool { return tx.Outcome == Unknown }) {
		return
	}
	there := make(map[int]bool)
	note := func(val int32) {
		if v := c.values[val]; v != nil && v.fate == lives {
			there[v.tx] = true
		}
	}
	for _, values := range c.history.Final.Lists {
		for _, val := range values {
			note(val)
		}
	}
	for _, row := range slices.Concat(c.history.Final.Parents, c.history.Final.Children) {
		note(row.Val)
	}
	c.unknown = make(map[int]bool)
	settled := *c.history
	settled.Txs = slices.Clone(settled.Txs)
	for i, tx := range settled.Txs {
		if tx.Outcome != Unknown {
			continue
		}
		c.unknown[i] = true
		known := *tx
		known.Outcome = Failed
		if there[i] {
			known.Outcome = Committed
			known.Ended = 0 // nobody was told
		}
		settled.Txs[i] = &known
	}
	c.history = &settled
}

// checkLists looks at the final lists.
func (c *checker) checkLists() {
	for key, values := range c.history.Final.Lists {
		for i, val := range values {
			v := c.values[val]
			switch {
			case v == nil || v.table != list || v.key != key:
				c.found(Garbage, fmt.Sprintf("list %d ends as %s, value %d was not written to it", key, listText(values), val))
				continue
			case v.seen:
				c.found(DoubledAppend, fmt.Sprintf("value %d is in list %d more than once: %s", val, key, listText(values)), v.tx)
				continue
			case !c.survives(v):
				c.found(c.whyDead(v), fmt.Sprintf("value %d is in list %d in the end: %s", val, key, listText(values)), v.tx)
			}
			v.seen = true
			c.places[val] = place{key, i}
		}
	}
}

// checkRows looks at the final rows of a table with ids.
func (c *checker) checkRows(name string, in table, rows []Row) {
	ids := make(map[int64]bool)
	for _, row := range rows {
		v := c.values[row.Val]
		switch {
		case v == nil || v.table != in:
			c.found(Garbage, fmt.Sprintf("%s of id %d has value %d, which nobody inserted", name, row.ID, row.Val))
			continue
		case v.seen:
			c.found(DoubledAppend, fmt.Sprintf("%s with value %d is there more than once", name, row.Val), v.tx)
		case !c.survives(v):
			c.found(c.whyDead(v), fmt.Sprintf("%s of id %d, value %d, is there in the end", name, row.ID, row.Val), v.tx)
		case v.id != row.ID:
			c.found(WrongIDs, fmt.Sprintf("%s with value %d has id %d, not %d as the application knows it", name, row.Val, row.ID, v.id), v.tx)
		case in == parent && ids[row.ID]:
			c.found(WrongIDs, fmt.Sprintf("id %d is there more than once", row.ID), v.tx)
		}
		ids[row.ID], v.seen = true, true
	}
}

// checkSurvivors looks for what is not there in the end, or in another order.
func (c *checker) checkSurvivors() {
	type listOf struct {
		tx  int
		key int32
	}
	last := make(map[listOf]int)
	for _, val := range c.order {
		v := c.values[val]
		if !c.survives(v) {
			continue
		}
		name := [...]string{list: "list", parent: "parent", child: "child"}[v.table]
		if !v.seen {
			anomaly := LostAppend
			if c.unknown[v.tx] {
				anomaly = Torn // for something of it is there
			}
			c.found(anomaly, fmt.Sprintf("value %d, %s %d, is not there in the end", val, name, max(int64(v.key), v.id)), v.tx)
			continue
		}
		if v.table != list {
			continue
		}
		at := c.places[val].index
		if before, ok := last[listOf{v.tx, v.key}]; ok && at < before {
			c.found(Order, fmt.Sprintf("value %d stands in list %d before what its transaction had written earlier", val, v.key), v.tx)
		}
		last[listOf{v.tx, v.key}] = at
	}
}

// versions adds the order of each list's versions to the graph.
func (c *checker) versions() {
	for key, values := range c.history.Final.Lists {
		ended := make([]uint64, len(values)+1)
		ended[len(values)] = math.MaxUint64
		for i := len(values) - 1; i >= 0; i-- {
			ended[i] = ended[i+1]
			writer, ok := c.writer(key, i)
			if !ok {
				continue
			}
			if at := c.history.Txs[writer].Ended; at != 0 {
				ended[i] = min(ended[i], at)
			}
			if next, ok := c.writer(key, i+1); ok && next != writer {
				c.graph.add(writer, edge{kind: ww, to: next, key: key, val: values[i+1]})
			}
		}
		c.ended[key] = ended
	}
}

// writer returns the committed transaction that wrote the value at an index of a
// final list.
func (c *checker) writer(key int32, index int) (int, bool) {
	values := c.history.Final.Lists[key]
	if index < 0 || index >= len(values) {
		return 0, false
	}
	v := c.values[values[index]]
	if v == nil || v.key != key || !c.survives(v) {
		return 0, false
	}
	return v.tx, true
}
