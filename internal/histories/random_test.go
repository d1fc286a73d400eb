package histories_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/abort"
	"github.com/pgretry/pgretry/internal/histories"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

var (
	seedFlag     = flag.Uint64("histories.seed", 0, "what the transactions of the first round are a function of, 0 for any; the next rounds count on")
	durationFlag = flag.Duration("histories.duration", 0, "how long random transactions run, in rounds of a few seconds; 0 for a short run")
	workersFlag  = flag.Int("histories.workers", 8, "how many transactions run at a time")
	pFlag        = flag.Float64("histories.p", -1, "with which probability each call fails on purpose; -1 for 0, 0.2 and 0.5 in turn")
	levelFlag    = flag.String("histories.level", "mixed", "rc, rr, ser or mixed")
	modeFlag     = flag.String("histories.mode", "replay", "pgretry's mode: replay, closure or off")
)

// roundDuration is that of one round in a long run. The history of a round is in
// memory as a whole.
const roundDuration = 3 * time.Second

var probabilities = []float64{0, 0.2, 0.5}

func levelsOf(t *testing.T, name string) []histories.Level {
	t.Helper()
	levels, ok := map[string][]histories.Level{
		"mixed": histories.Levels,
		"rc":    {histories.ReadCommitted},
		"rr":    {histories.RepeatableRead},
		"ser":   {histories.Serializable},
	}[name]
	if !ok {
		t.Fatalf("-histories.level is %q, allowed are rc, rr, ser and mixed", name)
	}
	return levels
}

// round is one history: of which driver, under what disturbance.
type round struct {
	config histories.Config
	level  string // of config.Levels, as in the flag
	p      float64
	mode   string // of pgretry; "" if wrap is used
	wrap   func(driver.Connector) driver.Connector
}

// command repeats a round, as far as it can be repeated.
func (r round) command() string {
	return fmt.Sprintf("go test ./internal/histories -run Random -race -histories.seed=%d -histories.duration=%s -histories.workers=%d -histories.p=%v -histories.level=%s -histories.mode=%s",
		r.config.Seed, r.config.Duration, r.config.Workers, r.p, r.level, r.mode)
}

// wrapped puts the driver under test around a connector.
func (r round) wrapped(inner driver.Connector) (driver.Connector, error) {
	if r.wrap != nil {
		return r.wrap(inner), nil
	}
	mode, ok := map[string]pgretry.Mode{"replay": pgretry.ModeReplay, "closure": pgretry.ModeClosure, "off": pgretry.ModeOff}[r.mode]
	if !ok {
		return nil, fmt.Errorf("-histories.mode is %q, allowed are replay, closure and off", r.mode)
	}
	return pgretry.NewConnector(inner, pgretry.WithMode(mode), pgretry.WithPolicy(pgretry.Policy{
		MaxAttempts: 12, BaseDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond,
	}))
}

// result is what came of a round.
type result struct {
	history  *histories.History
	injected abort.Counts
	stats    pgretry.Stats // zero if the driver is not pgretry
}

// bench is a server with the tables in it.
type bench struct {
	dsn   string
	admin *sql.DB
}

func newBench(t *testing.T) bench {
	t.Helper()
	b := bench{dsn: pgtest.DSN(t)}
	var err error
	if b.admin, err = sql.Open("postgres", b.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.admin.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := histories.CreateSchema(t.Context(), b.admin); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b bench) run(ctx context.Context, r round) (_ result, err error) {
	inner, err := pq.NewConnector(b.dsn)
	if err != nil {
		return result{}, err
	}
	injector, err := abort.NewConnector(inner, abort.WithSeed(r.config.Seed), abort.WithProbability(r.p), abort.WithLoneProbability(r.p/2))
	if err != nil {
		return result{}, err
	}
	between := driver.Connector(injector)
	if r.p == 0 {
		between = inner // lib/pq's own, for which statements stay prepared and deadlocks are looked for
	}
	connector, err := r.wrapped(between)
	if err != nil {
		return result{}, err
	}
	db := sql.OpenDB(connector)
	defer func() {
		if closing := db.Close(); err == nil {
			err = closing
		}
	}()
	db.SetMaxOpenConns(r.config.Workers)
	db.SetMaxIdleConns(r.config.Workers)
	history, err := histories.Run(ctx, db, b.admin, r.config)
	if err != nil {
		return result{}, err
	}
	res := result{history: history, injected: injector.Injected()}
	if r.wrap == nil {
		res.stats, err = pgretry.StatsOf(db)
	}
	return res, err
}

// tally adds up rounds.
type tally struct {
	rounds    int
	txs       map[histories.Level]map[histories.Outcome]int
	conflicts map[histories.Level]int // that the application saw
	injected  int64
	hidden    int64
	diverged  int64
	exhausted int64
	refused   map[pgretry.RefusalReason]int64
}

func newTally() *tally {
	y := &tally{
		txs:       make(map[histories.Level]map[histories.Outcome]int),
		conflicts: make(map[histories.Level]int),
		refused:   make(map[pgretry.RefusalReason]int64),
	}
	for _, level := range histories.Levels {
		y.txs[level] = make(map[histories.Outcome]int)
	}
	return y
}

func (y *tally) add(r result) {
	y.rounds++
	for _, tx := range r.history.Txs {
		y.txs[tx.Level][tx.Outcome]++
		y.conflicts[tx.Level] += tx.Conflicts
	}
	y.injected += r.injected.Total()
	y.hidden += r.stats.Hidden
	y.diverged += r.stats.Diverged
	y.exhausted += r.stats.Exhausted
	for reason, n := range r.stats.Refusals {
		y.refused[reason] += n
	}
}

func (y *tally) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d rounds", y.rounds)
	for _, level := range histories.Levels {
		if len(y.txs[level]) > 0 {
			fmt.Fprintf(&text, "; %s: %d committed, %d failed, %d unknown, %d conflicts seen", level,
				y.txs[level][histories.Committed], y.txs[level][histories.Failed], y.txs[level][histories.Unknown], y.conflicts[level])
		}
	}
	fmt.Fprintf(&text, "; %d aborts injected, %d hidden, %d diverged, %d exhausted, refused %v",
		y.injected, y.hidden, y.diverged, y.exhausted, y.refused)
	return text.String()
}

// vacuous says what did not happen that should have, in rounds of one kind.
func (y *tally) vacuous(r round) (reasons []string) {
	const enough = 3 // with every second call failing, little is committed in a short run
	conflicts := 0
	for _, level := range r.config.Levels {
		if n := y.txs[level][histories.Committed]; n < enough {
			reasons = append(reasons, fmt.Sprintf("only %d transactions were committed under %s", n, level))
		}
		conflicts += y.conflicts[level]
	}
	if r.p > 0 && y.injected < enough {
		reasons = append(reasons, fmt.Sprintf("only %d aborts were injected", y.injected))
	}
	switch {
	case r.mode == "replay" && y.hidden < enough:
		reasons = append(reasons, fmt.Sprintf("only %d conflicts were hidden by replays", y.hidden))
	case r.mode != "replay" && conflicts < enough:
		reasons = append(reasons, fmt.Sprintf("only %d conflicts happened", conflicts))
	}
	return reasons
}

// judge fails the test if the history of a round is not what it should be.
func judge(t *testing.T, r round, res result) {
	t.Helper()
	if anomalies := histories.Check(res.history); len(anomalies) > 0 {
		t.Errorf("%s\nagain: %s", histories.Report(anomalies), r.command())
	}
	shown := 0
	for _, tx := range res.history.Txs {
		if len(tx.Unexpected) > 0 && shown < 5 {
			shown++
			t.Errorf("errors that nothing asked for: %q\n%sagain: %s", tx.Unexpected, tx, r.command())
		}
	}
}

func TestRandomTransactionsLeaveNoAnomaly(t *testing.T) {
	b := newBench(t)
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64N(1e9) + 1
	}
	config := histories.Config{Seed: seed, Workers: *workersFlag, Levels: levelsOf(t, *levelFlag)}
	ps := probabilities
	if *pFlag >= 0 {
		ps = []float64{*pFlag}
	}
	config.Duration = min(roundDuration, *durationFlag)
	deadline := time.Now().Add(*durationFlag)
	if *durationFlag == 0 {
		config.Duration = 2 * time.Second
	}
	tallies := make(map[float64]*tally)
	for number := 0; ; number++ {
		if *durationFlag == 0 && number == len(ps) || *durationFlag != 0 && number > 0 && !time.Now().Before(deadline) {
			break
		}
		r := round{config: config, level: *levelFlag, p: ps[number%len(ps)], mode: *modeFlag}
		r.config.Seed += uint64(number)
		res, err := b.run(t.Context(), r)
		if err != nil {
			t.Fatalf("%v\nagain: %s", err, r.command())
		}
		judge(t, r, res)
		if t.Failed() {
			return
		}
		if tallies[r.p] == nil {
			tallies[r.p] = newTally()
		}
		tallies[r.p].add(res)
	}
	for p, y := range tallies {
		t.Logf("p=%v: %s", p, y)
		r := round{config: config, p: p, mode: *modeFlag}
		for _, reason := range y.vacuous(r) {
			t.Errorf("p=%v proves nothing: %s", p, reason)
		}
	}
}

// The checker must not cry wolf: PostgreSQL itself, conflicts returned, is right.
func TestWithoutRetriesThereIsNoAnomaly(t *testing.T) {
	b, y := newBench(t), newTally()
	r := round{
		config: histories.Config{Seed: 1, Workers: 8, Duration: time.Second, Levels: histories.Levels},
		level:  "mixed", p: 0.05, mode: "off",
	}
	res, err := b.run(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	judge(t, r, res)
	y.add(res)
	t.Log(y)
	for _, reason := range y.vacuous(r) {
		t.Error(reason)
	}
}

func TestDriverThatReplaysBlindlyIsCaught(t *testing.T) {
	const rounds = 20
	b := newBench(t)
	for _, test := range []struct {
		name       string
		level      string
		p          float64
		forgets    bool
		withoutIDs bool
		// One of these must be among what is found.
		wanted []string
	}{
		{name: "ids", level: "rc", p: 0.1, wanted: []string{histories.LostAppend, histories.WrongIDs}},
		{name: "READ COMMITTED", level: "rc", p: 0.1, withoutIDs: true, wanted: []string{histories.LostUpdate, histories.LostAppend, histories.LockBroken, histories.Order}},
		{name: "REPEATABLE READ", level: "rr", p: 0.1, withoutIDs: true, wanted: []string{histories.GSingle, histories.LostUpdate, histories.Unrepeatable, histories.LostAppend}},
		{name: "SERIALIZABLE", level: "ser", p: 0.1, withoutIDs: true, wanted: []string{histories.GSingle, histories.LostUpdate, histories.Unrepeatable, histories.LostAppend, histories.G2}},
		{name: "without injection", level: "rr", withoutIDs: true, wanted: []string{histories.GSingle, histories.LostUpdate, histories.Unrepeatable, histories.LostAppend}},
		{name: "forgetting", level: "mixed", p: 0.1, forgets: true, withoutIDs: true, wanted: []string{histories.LostAppend}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for number := range uint64(rounds) {
				r := round{
					config: histories.Config{Seed: 1 + number, Workers: 8, Duration: 400 * time.Millisecond, Levels: levelsOf(t, test.level), WithoutIDs: test.withoutIDs},
					level:  test.level, p: test.p,
					wrap: func(inner driver.Connector) driver.Connector { return naive{inner, test.forgets} },
				}
				res, err := b.run(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				found := make(map[string]int)
				for _, a := range histories.Check(res.history) {
					found[a.Name]++
				}
				t.Logf("round %d: %d transactions, found %v", number+1, len(res.history.Txs), found)
				for _, name := range test.wanted {
					if found[name] > 0 {
						return
					}
				}
			}
			t.Errorf("in %d rounds none of %q was found", rounds, test.wanted)
		})
	}
}
