package gate

import (
	"context"
	"testing"
	"time"
)

func BenchmarkEnterAndLeaveWithoutALimit(b *testing.B) {
	b.ReportAllocs()
	g := New(Config{})
	since := time.Now()
	for b.Loop() {
		pass, err := g.Enter(context.Background(), since)
		if err != nil {
			b.Fatal(err)
		}
		pass.Leave(Committed)
	}
}
