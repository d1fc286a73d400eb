package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func named(t *testing.T, name string) strategy {
	t.Helper()
	for _, s := range strategies {
		if s.name == name {
			return s
		}
	}
	t.Fatalf("there is no strategy %q", name)
	return strategy{}
}

// average is what the article shows.
func average(s strategy, clients, runs int) (seconds, calls float64) {
	for seed := range runs {
		o := simulate(s, clients, uint64(seed+1))
		seconds += o.completion.Seconds() / float64(runs)
		calls += float64(o.calls) / float64(runs)
	}
	return seconds, calls
}

// The figures are those of the article's own simulator with 100 clients.
func TestTheFiguresOfTheArticleAreReproduced(t *testing.T) {
	for _, c := range []struct {
		strategy       string
		seconds, calls float64
	}{
		{"none", 2.0, 2428},
		{"exponential", 63.6, 1857},
		{"equal jitter", 6.7, 813},
		{"full jitter", 4.9, 796},
		{"decorrelated jitter", 4.7, 1009},
	} {
		seconds, calls := average(named(t, c.strategy), 100, 100)
		t.Logf("%s: %.1f s, %.0f calls", c.strategy, seconds, calls)
		if !near(seconds, c.seconds, 0.07) || !near(calls, c.calls, 0.04) {
			t.Errorf("%s takes %.1f s and %.0f calls, not %.1f s and %.0f", c.strategy, seconds, calls, c.seconds, c.calls)
		}
	}
}

func near(x, want, tolerance float64) bool {
	return x > want*(1-tolerance) && x < want*(1+tolerance)
}

func TestJitterNeedsLessThanHalfOfTheCallsOfNone(t *testing.T) {
	_, none := average(named(t, "none"), 200, 3)
	for _, name := range []string{"equal jitter", "full jitter", "decorrelated jitter", "pgretry"} {
		if _, calls := average(named(t, name), 200, 3); calls > none/2 {
			t.Errorf("%s needs %.0f calls, none %.0f", name, calls, none)
		}
	}
}

func TestTheGateSavesCalls(t *testing.T) {
	for _, clients := range []int{20, 100, 500} {
		slow, many := average(named(t, "pgretry"), clients, 3)
		seconds, few := average(named(t, "pgretry, gate"), clients, 3)
		if few > many/2 {
			t.Errorf("%d clients need %.0f calls at the gate and %.0f without", clients, few, many)
		}
		if seconds > 2*slow {
			t.Errorf("%d clients take %.1f s at the gate and %.1f s without", clients, seconds, slow)
		}
	}
}

func TestTheSameFlagsGiveTheSameTables(t *testing.T) {
	tables := func() string {
		var out, log bytes.Buffer
		if code := run([]string{"-clients", "50, 10", "-seeds", "3"}, &out, &log); code != 0 {
			t.Fatalf("exit code %d: %s", code, &log)
		}
		return out.String()
	}
	first := tables()
	if first != tables() {
		t.Error("two runs differ")
	}
	if !strings.Contains(first, "\n| 10 | 3 | ") || !strings.Contains(first, "\n| 50 | 3 | ") {
		t.Errorf("the tables are\n%s", first)
	}
}

func TestPlotsAreDrawn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plots")
	var log bytes.Buffer
	if code := run([]string{"-clients", "10,20", "-seeds", "1", "-out", dir}, io.Discard, &log); code != 0 {
		t.Fatalf("exit code %d: %s", code, &log)
	}
	for _, name := range []string{"backoff-time.svg", "backoff-calls.svg"} {
		picture, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range strategies {
			if !bytes.Contains(picture, []byte(s.name)) {
				t.Errorf("%s does not name %s", name, s.name)
			}
		}
		decoder := xml.NewDecoder(bytes.NewReader(picture))
		for err == nil {
			_, err = decoder.Token()
		}
		if !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWrongArgumentsAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"-clients", "ten"}, {"-clients", "0"}, {"-clients", ""}, {"-seeds", "0"}, {"more"}, {"-nonsense"},
	} {
		var log bytes.Buffer
		if code := run(args, io.Discard, &log); code != 2 || log.Len() == 0 {
			t.Errorf("%q: exit code %d, %q", args, code, &log)
		}
	}
}

func TestTheTimelineKeepsOrder(t *testing.T) {
	var events timeline
	for i := range 1000 {
		events.push(event{at: time.Duration(i * 7919 % 1000)})
	}
	for i := range 1000 {
		if e := events.pop(); e.at != time.Duration(i) {
			t.Fatalf("event %d is at %d", i, e.at)
		}
	}
}
