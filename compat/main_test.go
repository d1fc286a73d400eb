package compat

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// Deadlocks are found after 10 ms here, so that tests need not wait for them.
func TestMain(m *testing.M) {
	code := pgtest.Main(m, pgserver.WithSettings(map[string]string{
		"deadlock_timeout": "10ms",
		"max_connections":  "500", // those behind black holes stay for a while
	}))
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
