package histories

import (
	"math/rand/v2"
	"strconv"
)

// plan is what a transaction will do. It is a function of the seed, the worker and
// the transaction's number, and of nothing that happens; what a step does with what
// it is shown is up to the application.
type plan struct {
	name     string
	level    Level
	readOnly bool
	lone     bool
	rollback bool // in the end, voluntarily
	steps    []step
}

// step is one statement, or two that belong together.
type step struct {
	action action
	form   int
	key    int32 // or the first of a range
	high   int32
	val    int32
	stop   int // after how many rows a cursor is closed; -1 never
	name   string
	worker int
	// reaction is what the application does if the step fails.
	reaction reaction
}

type action uint8

const (
	readOne action = iota
	readRange
	readLengths
	findValue
	appendOne
	insertOne // without ON CONFLICT, so that it may violate the primary key
	remember  // what is read, for a later overwrite
	overwrite
	insertParent
	insertChild
	countChildren
	savepoint
	release
	rollbackTo
	declare
	fetch
	closeCursor
	setMark
	showMark
	violate
	divide // by zero
)

type reaction uint8

const (
	giveUp  reaction = iota
	goBack           // to the innermost savepoint, and go on; give up if there is none
	ignore           // and go on, up to COMMIT
	reacted          // how many there are
)

// The forms of a step that has several.
const (
	readForms   = 7
	rangeForms  = 4
	appendForms = 9
)

const (
	valuesPerTx   = 64 // that a transaction has for itself
	valuesPerStep = 20 // that one call of some takes at most
	txsPerWindow  = 30 // after which a worker moves on to other keys
	keysPerWindow = 3
	keysAtOnce    = 6 // how many keys are in use at a time
)

// generator makes the plan of one transaction.
type generator struct {
	*rand.Rand
	level   Level
	workers int
	ids     bool
	base    int32 // the first key
	val     int32 // the next value
	cursors int
	depth   int
}

// newPlan returns the plan of a worker's transaction, both numbered from 0.
func newPlan(config Config, worker, number int) plan {
	random := rand.New(rand.NewPCG(config.Seed, uint64(worker)<<40|uint64(number)))
	g := &generator{
		Rand:    random,
		level:   config.Levels[random.IntN(len(config.Levels))],
		workers: config.Workers,
		ids:     !config.WithoutIDs,
		base:    int32(number / txsPerWindow * keysPerWindow),
		val:     int32((number*config.Workers+worker)*valuesPerTx) + 1,
	}
	p := plan{
		name:  "w" + strconv.Itoa(worker) + "." + strconv.Itoa(number),
		level: g.level,
	}
	if g.chance(8) {
		p.lone, p.level = true, ReadCommitted
		g.level = ReadCommitted
		p.steps = []step{g.lone()}
		return p
	}
	p.readOnly = g.chance(5)
	p.rollback = g.chance(6)
	steps := 1
	if !g.chance(35) {
		steps = 2 + g.IntN(4)
	}
	if g.chance(5) {
		steps += 6
	}
	last := g.val + valuesPerTx - valuesPerStep
	for len(p.steps) < steps && g.val < last {
		if p.readOnly {
			p.steps = append(p.steps, g.reads())
		} else {
			p.steps = append(p.steps, g.some()...)
		}
	}
	return p
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func (g *generator) key() int32 { return g.base + int32(g.IntN(keysAtOnce)) }

func (g *generator) value() int32 {
	g.val++
	return g.val - 1
}

// step fills in what every step has.
func (g *generator) step(a action) step {
	s := step{action: a, key: g.key(), stop: -1, worker: g.IntN(g.workers)}
	s.high = s.key + int32(g.IntN(keysAtOnce-1))
	switch n := g.IntN(100); {
	case n < 40:
		s.reaction = goBack
	case n < 55:
		s.reaction = ignore
	}
	return s
}

func (g *generator) writing(a action) step {
	s := g.step(a)
	s.val = g.value()
	return s
}

func (g *generator) lone() step {
	switch g.IntN(6) {
	case 0:
		return g.reads()
	case 1:
		if g.ids {
			return g.writing(insertParent)
		}
	}
	s := g.writing(appendOne)
	s.form = g.IntN(appendForms)
	return s
}

// reads is a step that any transaction can make.
func (g *generator) reads() step {
	switch n := g.IntN(100); {
	case n < 45:
		s := g.step(readOne)
		s.form = g.IntN(readForms)
		return s
	case n < 75:
		s := g.step(readRange)
		s.form = g.IntN(rangeForms)
		if g.chance(50) {
			s.stop = g.IntN(3)
		}
		return s
	case n < 85:
		return g.step(readLengths)
	}
	return g.step(findValue)
}

// some returns steps that belong together, mostly one.
func (g *generator) some() []step {
	switch n := g.IntN(100); {
	case n < 28:
		s := g.writing(appendOne)
		s.form = g.IntN(appendForms)
		return []step{s}
	case n < 52:
		return []step{g.reads()}
	case n < 62:
		return g.readModifyWrite()
	case n < 68: // write skew: what was read decides where to write
		look := g.reads()
		s := g.writing(appendOne)
		s.form = g.IntN(appendForms)
		s.key = look.key
		if look.high > look.key {
			s.key += int32(g.IntN(int(look.high - look.key)))
		}
		return []step{look, s}
	case n < 76:
		return g.family()
	case n < 88:
		return g.inSavepoint()
	case n < 93:
		return g.throughCursor()
	case n < 96:
		set, show := g.writing(setMark), g.step(showMark)
		return []step{set, show}
	case n < 97:
		return []step{g.step(showMark)}
	case n < 99:
		return []step{g.step(divide)}
	}
	s := g.writing(insertOne)
	return []step{s}
}

func (g *generator) readModifyWrite() []step {
	read, write := g.step(remember), g.writing(overwrite)
	write.key = read.key
	// READ COMMITTED gives no protection without a lock.
	if g.level == ReadCommitted || g.chance(30) {
		read.form = 1 + g.IntN(2)
	}
	if g.chance(40) {
		return []step{read, g.reads(), write}
	}
	return []step{read, write}
}

func (g *generator) family() []step {
	if !g.ids {
		return []step{g.reads()}
	}
	steps := []step{g.writing(insertParent)}
	if g.chance(30) {
		steps = append(steps, g.reads())
	}
	for range g.IntN(3) {
		steps = append(steps, g.writing(insertChild))
	}
	if g.chance(40) {
		steps = append(steps, g.step(countChildren))
	}
	return steps
}

func (g *generator) inSavepoint() []step {
	if g.depth == 2 {
		return []step{g.reads()}
	}
	g.depth++
	defer func() { g.depth-- }()
	begin := g.step(savepoint)
	begin.name = "s" + strconv.Itoa(1+g.IntN(2)) // the same name twice, now and then
	steps := []step{begin}
	for range 1 + g.IntN(2) {
		steps = append(steps, g.some()...)
	}
	if g.chance(25) {
		bad := g.writing(insertOne)
		if g.chance(50) {
			bad = g.step(violate)
		}
		bad.reaction = goBack
		steps = append(steps, bad)
	}
	// Errors inside are mostly dealt with as libraries with nested transactions do.
	for i := range steps[1:] {
		if g.chance(50) {
			steps[i+1].reaction = goBack
		}
	}
	end := g.step(release)
	end.name = begin.name
	back := g.step(rollbackTo)
	back.name = begin.name
	switch n := g.IntN(100); {
	case n < 45:
		steps = append(steps, end)
	case n < 75:
		steps = append(steps, back)
	case n < 85:
		steps = append(steps, back, end)
	}
	return steps
}

func (g *generator) throughCursor() []step {
	if g.cursors > 0 {
		return []step{g.reads()}
	}
	g.cursors++
	steps := []step{g.step(declare)}
	for range 1 + g.IntN(2) {
		s := g.step(fetch)
		s.stop = 1 + g.IntN(3)
		steps = append(steps, s)
		if g.chance(50) {
			steps = append(steps, g.some()...)
		}
	}
	if g.chance(50) {
		steps = append(steps, g.step(closeCursor))
	}
	return steps
}
