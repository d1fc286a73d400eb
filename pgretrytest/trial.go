package pgretrytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/abort"
)

// trial is that of one closure.
type trial struct {
	config  *closureConfig
	stage   *stage
	run     func(context.Context) error // a loop around the closure
	loop    string                      // its name
	results *results

	base    snapshot        // what was committed before
	changed map[string]bool // tables that the undisturbed closure changes
	masks   masks
	varies  map[place]bool // arguments that are not compared
}

// place is that of an argument: of a statement and in it, from 0.
type place struct{ statement, argument int }

// judge runs the closure undisturbed, twice, and then once for each point, and reports what
// it finds.
func (y *trial) judge(t testing.TB) {
	t.Helper()
	defer y.results.reset()
	ctx := t.Context()
	var err error
	if y.base, err = y.stage.committed(ctx, nothing); err != nil {
		t.Fatalf("pgretrytest: look at the database: %v", err)
	}
	first := y.once(t, nil)
	second := y.once(t, nil)
	for _, r := range []*record{first, second} {
		y.demand(t, r)
	}
	if finding := y.learn(t, first, second); finding != "" {
		t.Errorf("pgretrytest: two runs of the closure differ though nothing disturbed them. It keeps something from one run to the next, or goes by chance or by the clock.\n%s\n%s",
			indented(finding), undisturbedAdvice)
		return
	}
	all := pointsOf(first.attempts[0].calls)
	points := spread(all, y.config.maxPoints)
	if len(points) < len(all) {
		t.Logf("pgretrytest: of %d points %d are tried, see MaxPoints", len(all), len(points))
	}
	for _, p := range points {
		r := y.once(t, p)
		finding := y.compare(ctx, first, r)
		if finding != "" && y.learnMore(t, first, y.once(t, nil)) {
			finding = y.compare(ctx, first, r)
		}
		if finding != "" {
			t.Errorf("pgretrytest: aborted at %s, with %s:\n%s", p.words, p.sqlState, indented(finding))
		}
	}
}

const undisturbedAdvice = `Begin the closure by resetting what it fills. Name what may differ, such as a time reckoned from the clock: columns by IgnoreColumns, arguments by IgnoreArgument.`

// once runs the closure, aborted at a point or undisturbed, and sees to it that nothing of
// it is left.
func (y *trial) once(t testing.TB, p *point) *record {
	t.Helper()
	ctx := t.Context()
	r := &record{point: p, want: y.want(p == nil), stage: y.stage, clear: y.clear}
	y.results.reset()
	y.config.runs = 0
	returned := false
	defer func() {
		if returned {
			return
		}
		// The closure has ended its goroutine, as t.Fatal does, or has panicked.
		if err := y.clear(context.WithoutCancel(ctx)); err != nil {
			t.Errorf("pgretrytest: %v", err)
		}
	}()
	r.took.from = time.Now()
	r.err = y.run(abort.ContextWithScript(ctx, r))
	returned, r.took.to = true, time.Now()
	r.runs, r.results = y.config.runs, y.results.values()
	if err := y.clear(ctx); err != nil {
		t.Fatalf("pgretrytest: %v%s", err, because(r.err))
	}
	if r.failure != nil {
		t.Fatalf("pgretrytest: %v", r.failure)
	}
	return r
}

// clear sets the sequences back to where they stood, unless something was committed: its
// numbers would be drawn again.
func (y *trial) clear(ctx context.Context) error {
	now, err := y.stage.committed(ctx, nothing)
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	if names := differingTables(y.base, now); len(names) > 0 {
		return fmt.Errorf("something was committed in %s though the transactions on trial were rolled back: by the closure, on another connection than its transaction's, or by somebody else. Does the closure use the context that it is given (gorm: WithContext(ctx))? Nothing else must write there meanwhile, see InSchemas. Sequences are left where they stand",
			strings.Join(names, ", "))
	}
	return y.stage.sequences.setBack(ctx)
}

func because(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf(". The closure's loop returned: %v", err)
}

// want says of which tables the rows are needed: of those that the undisturbed closure
// changes, and of those that were changed though it does not.
func (y *trial) want(undisturbed bool) func(name, digest string) bool {
	return func(name, digest string) bool {
		base := y.base[name]
		differs := base == nil || base.digest != digest
		if undisturbed && differs {
			y.changed[name] = true
		}
		return differs || y.changed[name]
	}
}

// demand ends the test if nothing can be told from an undisturbed run.
func (y *trial) demand(t testing.TB, r *record) {
	t.Helper()
	last := r.last()
	switch {
	case r.err != nil:
		t.Fatalf("pgretrytest: undisturbed, %s returns: %v", y.loop, r.err)
	case last == nil:
		t.Fatalf("pgretrytest: the closure begins no transaction on the database under the context that it is given")
	case r.runs < len(r.attempts):
		t.Fatalf("pgretrytest: undisturbed, the closure begins %d transactions; what is on trial is one: read in that one, or under another context", len(r.attempts))
	case last.holds == nil:
		t.Fatalf("pgretrytest: undisturbed, the closure commits nothing, but returns no error")
	case len(r.attempts) > 1:
		t.Fatalf("pgretrytest: undisturbed, it takes %d attempts: something else is in the way of the transactions on trial", len(r.attempts))
	}
}

// learn finds out what may differ between runs, and says what else does.
func (y *trial) learn(t testing.TB, first, second *record) (finding string) {
	t.Helper()
	a, b := first.attempts[0], second.attempts[0]
	for name := range y.changed {
		for _, c := range columnsOf(a.holds[name], b.holds[name]) {
			if ignores(y.config.columns, name, c.name) {
				y.masks.add(name, c.name)
			}
		}
	}
	y.learnMore(t, first, second)
	return y.compare(t.Context(), first, second)
}

// learnMore finds out which times and UUIDs may differ between runs that nothing disturbs, and
// says whether there are any that it did not know. Runs within the same second, or day, do not
// show them all.
func (y *trial) learnMore(t testing.TB, first, other *record) bool {
	t.Helper()
	if len(other.attempts) == 0 || other.attempts[0].holds == nil {
		return false
	}
	a, b := first.attempts[0], other.attempts[0]
	var learned []string
	learned = append(learned, y.masks.learn(a.holds, b.holds, first.took, other.took)...)
	learned = append(learned, y.learnArguments(statements(a.calls), statements(b.calls), first.took, other.took)...)
	learned = append(learned, y.results.learn(first, other)...)
	if len(learned) > 0 {
		t.Logf("pgretrytest: not compared, because they differ undisturbed: %s", strings.Join(learned, ", "))
	}
	return len(learned) > 0
}

func columnsOf(tables ...*table) (list []column) {
	for _, t := range tables {
		if t != nil {
			list = append(list, t.columns...)
		}
	}
	return list
}

// learnArguments notes which arguments are not to be compared.
func (y *trial) learnArguments(first, second []abort.Call, during, duringSecond span) (learned []string) {
	for i, call := range first {
		for j, arg := range call.Args {
			at := place{i, j}
			if slices.ContainsFunc(y.config.arguments, func(a argument) bool {
				return a.position == j+1 && strings.HasPrefix(strings.TrimSpace(call.Text), a.prefix)
			}) {
				y.varies[at] = true
				continue
			}
			if y.varies[at] || i >= len(second) || second[i].Text != call.Text || j >= len(second[i].Args) {
				continue
			}
			if found := differences(arg.Value, second[i].Args[j].Value); len(found) > 0 && onlyVaries(found, during, duringSecond) {
				y.varies[at] = true
				learned = append(learned, fmt.Sprintf("argument %d of statement %d", j+1, i+1))
			}
		}
	}
	return learned
}

// compare says how a run differs from an undisturbed one, "" if it does not.
func (y *trial) compare(ctx context.Context, undisturbed, r *record) string {
	var text strings.Builder
	last, normal := r.last(), undisturbed.attempts[0]
	switch {
	case last == nil:
		fmt.Fprintf(&text, "it began no transaction\n")
		return text.String() + y.returned(r)
	case r.point != nil && !r.attempts[0].aborted:
		fmt.Fprintf(&text, "it did not come to that point\n")
		text.WriteString(y.comparePaths("its first attempt", normal.calls, r.attempts[0].calls))
		return text.String() + y.returned(r)
	case last.aborted && r.err == nil:
		text.WriteString("the closure swallowed the abort: it returned no error and was not run again\n")
	case last.aborted:
		text.WriteString("the closure was not run again\n")
	default:
		text.WriteString(y.comparePaths(attemptWords(r), normal.calls, last.calls))
	}
	text.WriteString(y.returned(r))
	switch {
	case last.holds != nil:
		whole, err := y.completed(ctx, normal.holds, last.holds)
		if err != nil {
			fmt.Fprintf(&text, "what the database held could not be read: %v\n", err)
		}
		if found := y.masks.compare(whole, last.holds); found != "" {
			fmt.Fprintf(&text, "the database ends up different (- undisturbed, + now):\n%s", indented(found))
		}
	case r.err == nil && !last.aborted:
		text.WriteString("nothing was committed\n")
	}
	if r.err == nil && !last.aborted {
		text.WriteString(y.results.compare(undisturbed.results, r.results))
	}
	return text.String()
}

func attemptWords(r *record) string {
	if len(r.attempts) == 1 {
		return "it"
	}
	return fmt.Sprintf("its attempt %d", len(r.attempts))
}

// returned says what the loop returned.
func (y *trial) returned(r *record) string {
	if r.err == nil {
		return ""
	}
	return fmt.Sprintf("%s returned: %v\n", y.loop, r.err)
}

// completed returns the undisturbed snapshot with the rows, as they are committed, of the
// tables that nothing but the aborted run has changed.
func (y *trial) completed(ctx context.Context, undisturbed, got snapshot) (_ snapshot, err error) {
	list := maps.Clone(undisturbed)
	for name, t := range got {
		if t.fetched && list[name] != nil && !list[name].fetched && y.base[name] != nil {
			whole := *y.base[name]
			err = errors.Join(err, whole.fetch(ctx, y.stage.side))
			list[name] = &whole
		}
	}
	return list, err
}

// comparePaths says where the statements of two attempts part.
func (y *trial) comparePaths(who string, undisturbed, got []abort.Call) string {
	a, b := statements(undisturbed), statements(got)
	names := make(savepoints)
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(b):
			return fmt.Sprintf("%s took another path: it ended after statement %d of %d, before %s\n", who, len(b), len(a), y.words(i, a[i]))
		case i >= len(a):
			return fmt.Sprintf("%s took another path: after %d statements it sent %s\n", who, len(a), y.words(-1, b[i]))
		case !names.same(a[i].Text, b[i].Text) || len(a[i].Args) != len(b[i].Args):
			return fmt.Sprintf("%s took another path: statement %d is\n  %s\nundisturbed\n  %s\n", who, i+1, y.words(-1, b[i]), y.words(-1, a[i]))
		case !y.sameArguments(i, a[i], b[i]):
			return fmt.Sprintf("%s sent other arguments: statement %d is\n  %s\nundisturbed\n  %s\n", who, i+1, y.words(i, b[i]), y.words(i, a[i]))
		}
	}
	return ""
}

func (y *trial) sameArguments(statement int, a, b abort.Call) bool {
	for j := range a.Args {
		if y.varies[place{statement, j}] {
			continue
		}
		if a.Args[j].Name != b.Args[j].Name || len(differences(a.Args[j].Value, b.Args[j].Value)) > 0 {
			return false
		}
	}
	return true
}

// words shows a statement with its arguments, but for those that are not compared.
func (y *trial) words(statement int, call abort.Call) string {
	text := shortened(call.Text)
	for j, arg := range call.Args {
		value := show(reflect.ValueOf(arg.Value))
		if y.varies[place{statement, j}] {
			value = "any"
		}
		text += fmt.Sprintf(" $%d=%s", j+1, value)
	}
	return text
}

func indented(text string) string {
	text = strings.TrimSuffix(text, "\n")
	return "  " + strings.ReplaceAll(text, "\n", "\n  ") + "\n"
}
