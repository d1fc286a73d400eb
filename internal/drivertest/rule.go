package drivertest

import (
	"database/sql/driver"
	"regexp"
	"strings"
)

// Rule says what happens at certain calls. It is made by [Driver.On] and narrowed
// and given an effect by its methods, each of which returns the rule. Without
// [Rule.At], [Rule.After] and [Rule.Times] it applies to every call it matches.
//
// At each call at most two rules apply: of those that do no more than give an
// answer (a result or result sets) the one added first, and of all others the one
// added first. A rule that is used up makes way for the next.
type Rule struct {
	d *Driver

	calls     Call
	substring string
	pattern   *regexp.Regexp
	conn      int
	at        int // 0: any
	after     int
	times     int // 0: no limit

	seen, fired int

	err        error
	panicking  bool
	panicValue any
	hook       func(*Invocation) error
	result     driver.Result
	sets       []ResultSet
	setsFunc   func(*Invocation) ([]ResultSet, error)
	drops      bool
	blocking   bool
	arrived    chan struct{}
	release    chan struct{}
}

// On adds a rule for calls of the given kind or kinds. Until it is given an
// effect it does nothing but keep later rules, other than answers, from applying.
func (d *Driver) On(calls Call) *Rule {
	r := &Rule{d: d, calls: calls, arrived: make(chan struct{}, 1), release: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules = append(d.rules, r)
	d.hasRules.Store(true)
	return r
}

// Fail adds a rule that returns err from calls of the given kind or kinds. From
// IsValid any error means false.
func (d *Driver) Fail(calls Call, err error) *Rule { return d.On(calls).Return(err) }

// Rows adds a rule that answers queries containing the given text, plain or
// prepared, with the given result sets.
func (d *Driver) Rows(query string, sets ...ResultSet) *Rule {
	return d.On(AnyQuery).Matching(query).Rows(sets...)
}

// Affected adds a rule that answers statements containing the given text, plain
// or prepared, with a number of affected rows.
func (d *Driver) Affected(query string, n int64) *Rule {
	return d.On(AnyExec).Matching(query).Result(driver.RowsAffected(n))
}

// ClearRules removes all rules.
func (d *Driver) ClearRules() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules = nil
	d.hasRules.Store(false)
}

func (r *Rule) set(change func()) *Rule {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	change()
	return r
}

// Matching restricts the rule to statements, and rows and prepared statements of
// them, whose text contains substring.
func (r *Rule) Matching(substring string) *Rule {
	return r.set(func() { r.substring = substring })
}

// MatchingRegexp restricts the rule to statements whose text the pattern matches.
func (r *Rule) MatchingRegexp(pattern *regexp.Regexp) *Rule {
	return r.set(func() { r.pattern = pattern })
}

// OnConn restricts the rule to the connection of that number, counted from 1.
func (r *Rule) OnConn(conn int) *Rule { return r.set(func() { r.conn = conn }) }

// At restricts the rule to the n-th call that matches, counted from 1.
func (r *Rule) At(n int) *Rule { return r.set(func() { r.at = n }) }

// After lets the first n matching calls pass.
func (r *Rule) After(n int) *Rule { return r.set(func() { r.after = n }) }

// Times ends the rule after it has applied k times.
func (r *Rule) Times(k int) *Rule { return r.set(func() { r.times = k }) }

// Return makes the call return err.
func (r *Rule) Return(err error) *Rule { return r.set(func() { r.err = err }) }

// Panic makes the call panic with value.
func (r *Rule) Panic(value any) *Rule {
	return r.set(func() { r.panicking, r.panicValue = true, value })
}

// Block makes the call wait until its context is done, whose error it then
// returns, or until [Rule.Release], after which it goes on.
func (r *Rule) Block() *Rule { return r.set(func() { r.blocking = true }) }

// Blocked returns a channel that receives a value when a call has begun to wait.
func (r *Rule) Blocked() <-chan struct{} { return r.arrived }

// Release lets all calls go on that wait or would wait because of [Rule.Block].
// It must be called at most once.
func (r *Rule) Release() { close(r.release) }

// Do calls hook. An error from it is returned by the call; after nil the call goes
// on. The hook must not use the connection it is called from.
func (r *Rule) Do(hook func(*Invocation) error) *Rule { return r.set(func() { r.hook = hook }) }

// Result makes an Exec return result.
func (r *Rule) Result(result driver.Result) *Rule { return r.set(func() { r.result = result }) }

// Rows makes a query return the given result sets.
func (r *Rule) Rows(sets ...ResultSet) *Rule {
	return r.set(func() { r.sets = nameColumns(sets) })
}

// RowsFunc makes a query return the result sets that f returns for it.
func (r *Rule) RowsFunc(f func(*Invocation) ([]ResultSet, error)) *Rule {
	return r.set(func() { r.setsFunc = f })
}

// Drops makes the rule also break the connection: IsValid is false from then on,
// and everything but closing returns driver.ErrBadConn.
func (r *Rule) Drops() *Rule { return r.set(func() { r.drops = true }) }

// Fired returns how often the rule has applied.
func (r *Rule) Fired() int {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return r.fired
}

// answersLocked reports whether the rule does no more than give an answer.
func (r *Rule) answersLocked() bool {
	return (r.result != nil || r.sets != nil || r.setsFunc != nil) &&
		r.err == nil && r.hook == nil && !r.panicking && !r.blocking && !r.drops
}

// takeLocked reports whether the rule applies to inv, and counts it. d.mu is held.
func (r *Rule) takeLocked(inv *Invocation) bool {
	if r.calls&inv.Call == 0 ||
		r.conn != 0 && r.conn != inv.Conn ||
		r.substring != "" && !strings.Contains(inv.Query, r.substring) ||
		r.pattern != nil && !r.pattern.MatchString(inv.Query) {
		return false
	}
	r.seen++
	if r.at != 0 && r.seen != r.at || r.seen <= r.after || r.times != 0 && r.fired >= r.times {
		return false
	}
	r.fired++
	inv.N = r.seen
	return true
}

// effect is what a rule makes of a call.
type effect struct {
	err    error
	result driver.Result
	sets   []ResultSet
	drops  bool
}

// apply carries out the rule without holding any lock.
func (r *Rule) apply(inv *Invocation) effect {
	r.d.mu.Lock()
	rule := *r
	r.d.mu.Unlock()

	out := effect{err: rule.err, result: rule.result, sets: rule.sets, drops: rule.drops}
	if rule.blocking {
		select {
		case rule.arrived <- struct{}{}:
		default:
		}
		var done <-chan struct{}
		if inv.Context != nil {
			done = inv.Context.Done()
		}
		select {
		case <-done:
			out.err = inv.Context.Err()
			return out
		case <-rule.release:
		}
	}
	if rule.hook != nil {
		if err := rule.hook(inv); err != nil {
			out.err = err
		}
	}
	if rule.panicking {
		panic(rule.panicValue)
	}
	if rule.setsFunc != nil && out.err == nil {
		sets, err := rule.setsFunc(inv)
		out.sets, out.err = nameColumns(sets), err
	}
	return out
}
