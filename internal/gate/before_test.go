package gate

import (
	"context"
	"testing"
	"time"
)

func TestWhoHasToBeDoneSoonWaitsForHalfOfThat(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		context, before time.Duration // from now; 0 for none
		want            time.Duration
	}{
		"a time":                   {before: 2 * time.Second, want: time.Second},
		"a context's deadline":     {context: 2 * time.Second, want: time.Second},
		"the time comes first":     {context: 4 * time.Second, before: time.Second, want: time.Second / 2},
		"the deadline comes first": {context: time.Second, before: 4 * time.Second, want: time.Second / 2},
	} {
		t.Run(name, func(t *testing.T) {
			l := NewLimiter(Config{Stall: time.Hour, MaxWait: time.Hour})
			for range 2 {
				holder := l.Arrive(now, Request{Since: now, Running: true})
				l.Leave(now, holder, Deadlocked)
			}
			l.Arrive(now, Request{Since: now})
			request := Request{Since: now}
			ctx, cancel := context.Background(), context.CancelFunc(func() {})
			if c.context > 0 {
				ctx, cancel = context.WithDeadline(ctx, now.Add(c.context))
			}
			defer cancel()
			before := time.Time{}
			if c.before > 0 {
				before = now.Add(c.before)
			}
			request.Deadline = earliest(ctx, before)
			ticket := l.Arrive(now, request)
			if ticket.Inside() {
				t.Fatal("it need not wait")
			}
			if got := l.Due(ticket).Sub(now); got != c.want {
				t.Errorf("it waits for %s, want %s", got, c.want)
			}
		})
	}
}
