package histories

import (
	"fmt"
	"maps"
	"slices"
)

// reading is what a transaction saw of a list, without what it had added itself.
type reading struct {
	tx    int
	op    *Op
	key   int32
	n     int     // how many values of others
	base  []int32 // which; nil if only the number is known
	own   int32   // the first value of its own that it saw, 0 if none
	began uint64  // what was acknowledged before that has to be seen
	// unwatched says that PostgreSQL does not watch for writes that the read did not see.
	unwatched bool
}

// appending is a write of a transaction.
type appending struct {
	tx int
	op *Op
	at int // the index where it must be because the transaction knew the list, -1 if it did not
}

// search is what a transaction learnt about one value.
type search struct {
	tx    int
	op    *Op
	began uint64
}

// view is what a transaction should see of its own doing.
type view struct {
	own      map[int32][]int32 // by key, what it has appended
	locked   map[int32]int     // by key, how many values of others the row has that it locked
	mark     int32
	children map[int64]int // by id, how many it has inserted
}

func (v view) clone() view {
	own := maps.Clone(v.own)
	for key, values := range own {
		own[key] = slices.Clip(values)
	}
	return view{own: own, locked: maps.Clone(v.locked), mark: v.mark, children: maps.Clone(v.children)}
}

// frame is a savepoint.
type frame struct {
	name    string
	view    view
	written int
	reads   int
}

// follower goes through one transaction by itself.
type follower struct {
	*checker
	index    int
	tx       *Tx
	view     view
	frames   []frame
	written  []int32       // values, for savepoints to take back
	snapshot map[int32]int // by key, how many values of others its snapshot has
	cursors  map[int]view  // by the number of the Declare
	broken   bool          // a statement failed
}

func (c *checker) follow(index int) {
	f := &follower{
		checker:  c,
		index:    index,
		tx:       c.history.Txs[index],
		view:     view{own: map[int32][]int32{}, locked: map[int32]int{}, children: map[int64]int{}},
		snapshot: make(map[int32]int),
		cursors:  make(map[int]view),
	}
	for i := range f.tx.Ops {
		f.operation(i)
	}
	if f.broken && f.tx.Outcome == Committed {
		f.anomaly(FailedCommit, "it was committed although a statement had failed and was not rolled back to a savepoint")
	}
}

func (f *follower) anomaly(name, format string, args ...any) {
	f.found(name, f.tx.Name+": "+fmt.Sprintf(format, args...), f.index)
}

func (f *follower) operation(i int) {
	op := &f.tx.Ops[i]
	if op.Err != "" {
		f.broken = true
		if op.Kind == Append || op.Kind == Write || op.Kind == InsertParent || op.Kind == InsertChild {
			f.write(op, refused)
		}
		return
	}
	if f.broken && op.Kind != RollbackTo {
		f.anomaly(FailedCommit, "operation %d worked although the transaction had failed", i+1)
	}
	switch op.Kind {
	case Read:
		f.read(op)
	case Length:
		f.length(op)
	case Contains:
		f.search(op)
	case Append, Write:
		f.append(op)
	case InsertParent:
		f.write(op, lives)
	case InsertChild:
		f.write(op, lives)
		f.view.children[op.ID]++
	case CountChildren:
		if want := f.view.children[op.ID]; op.N != want {
			f.anomaly(Internal, "operation %d counts %d children of id %d instead of %d", i+1, op.N, op.ID, want)
		}
	case SetMark:
		f.view.mark = op.Val
	case ShowMark:
		if op.Val != f.view.mark {
			f.anomaly(Internal, "operation %d sees the mark %d instead of %d", i+1, op.Val, f.view.mark)
		}
	case Savepoint:
		f.frames = append(f.frames, frame{op.Name, f.view.clone(), len(f.written), len(f.reads)})
	case Release:
		if at := f.frame(op.Name); at >= 0 {
			f.frames = f.frames[:at]
		}
	case RollbackTo:
		f.rollbackTo(op.Name)
	case Declare:
		f.cursors[i+1] = f.view.clone()
	case Statement:
	}
}

// frame returns the index of the innermost savepoint of that name.
func (f *follower) frame(name string) int {
	for i, frame := range slices.Backward(f.frames) {
		if frame.name == name {
			return i
		}
	}
	f.anomaly(WrongRecording, "there is no savepoint %s, and the server did not mind", name)
	return -1
}

func (f *follower) rollbackTo(name string) {
	at := f.frame(name)
	if at < 0 {
		return
	}
	frame := f.frames[at]
	f.frames = f.frames[:at+1]
	for _, val := range f.written[frame.written:] {
		f.values[val].fate = undone
	}
	f.written = f.written[:frame.written]
	for i := range f.reads[frame.reads:] {
		o := &f.reads[frame.reads+i]
		if own := f.values[o.own]; own != nil && own.fate == undone && own.upserted {
			o.unwatched = true
		}
	}
	f.view = frame.view.clone()
	f.broken = false
}

// write notes a value.
func (f *follower) write(op *Op, fate fate) {
	if other := f.values[op.Val]; other != nil {
		f.found(WrongRecording, fmt.Sprintf("value %d is written more than once", op.Val), f.index, other.tx)
		return
	}
	v := &value{tx: f.index, key: op.Key, id: op.ID, fate: fate, upserted: op.Upserted}
	switch op.Kind {
	case InsertParent:
		v.table = parent
	case InsertChild:
		v.table = child
	}
	f.values[op.Val] = v
	f.order = append(f.order, op.Val)
	if fate == lives {
		f.written = append(f.written, op.Val)
	}
}

func (f *follower) append(op *Op) {
	own := f.view.own[op.Key]
	switch {
	case op.N == 0 && op.Kind == Write:
		f.anomaly(Internal, "the row of list %d, which it had seen, was gone", op.Key)
		fallthrough
	case op.N == 0:
		f.write(op, affected)
		f.external(op, op.Key, 0, nil, f.view)
		return
	case op.N != 1:
		f.anomaly(Internal, "a write to list %d affected %d rows", op.Key, op.N)
	}
	at := -1
	if n, ok := f.view.locked[op.Key]; ok {
		at = n + len(own)
	} else if n, ok := f.snapshot[op.Key]; ok {
		at = n + len(own)
	}
	f.appends = append(f.appends, appending{f.index, op, at})
	f.write(op, lives)
	f.view.own[op.Key] = append(slices.Clip(own), op.Val)
}

// seenBy returns what the transaction should see of its own through the operation.
func (f *follower) seenBy(op *Op) view {
	if op.Cursor == 0 {
		return f.view
	}
	v, ok := f.cursors[op.Cursor]
	if !ok {
		f.anomaly(WrongRecording, "there is no cursor of operation %d", op.Cursor)
	}
	return v
}

func (f *follower) read(op *Op) {
	v := f.seenBy(op)
	own := v.own[op.Key]
	n := len(op.List) - len(own)
	if n < 0 || !slices.Equal(op.List[n:], own) {
		f.anomaly(Internal, "list %d is shown as %s, and the transaction has added %v", op.Key, listText(op.List), own)
		return
	}
	base := op.List[:n]
	for _, val := range base {
		if w := f.values[val]; w != nil && w.tx == f.index {
			f.anomaly(Internal, "list %d is shown as %s, with value %d that the transaction has rolled back", op.Key, listText(op.List), val)
			return
		}
	}
	f.external(op, op.Key, n, base, v)
}

func (f *follower) length(op *Op) {
	n := op.N - len(f.view.own[op.Key])
	if n < 0 {
		f.anomaly(Internal, "list %d is shown with %d values, and the transaction has added %v", op.Key, op.N, f.view.own[op.Key])
		return
	}
	f.external(op, op.Key, n, nil, f.view)
}

// external notes how much of a list the transaction saw that is not its own.
func (f *follower) external(op *Op, key int32, n int, base []int32, v view) {
	o := reading{tx: f.index, op: op, key: key, n: n, base: base, began: f.mustSee(op)}
	if own := v.own[key]; len(own) > 0 {
		o.own = own[0]
	}
	f.reads = append(f.reads, o)

	if locked, ok := v.locked[key]; ok && locked != n {
		f.anomaly(LockBroken, "list %d had %d values of others when it was locked, now it has %d", key, locked, n)
		return
	}
	if f.tx.Level >= RepeatableRead {
		if before, ok := f.snapshot[key]; ok && before != n {
			f.anomaly(Unrepeatable, "list %d had %d values of others, now it has %d", key, before, n)
			return
		}
		f.snapshot[key] = n
	}
	if op.Cursor == 0 && (op.Locked || o.own != 0) {
		f.view.locked[key] = n
	}
}

// mustSee returns the time before which acknowledged commits have to be visible to
// the operation.
func (f *follower) mustSee(op *Op) uint64 {
	switch {
	case f.tx.Level >= RepeatableRead:
		return f.tx.Began
	case op.Cursor > 0 && op.Cursor <= len(f.tx.Ops):
		return f.tx.Ops[op.Cursor-1].Began
	}
	return op.Began
}

func (f *follower) search(op *Op) {
	var where []int32
	for key, values := range f.view.own {
		if slices.Contains(values, op.Val) && key >= op.Key && key <= op.High {
			where = append(where, key)
		}
	}
	if own := f.values[op.Val]; own != nil && own.tx == f.index {
		if found := op.Found >= 0; found != (len(where) > 0) || found && where[0] != op.Found {
			f.anomaly(Internal, "its own value %d is found in %d instead of %v", op.Val, op.Found, where)
		}
		return
	}
	f.searches = append(f.searches, search{f.index, op, f.mustSee(op)})
}
