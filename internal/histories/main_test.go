package histories_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// Index scans lock less than sequential ones under SERIALIZABLE, so that more than
// false conflicts happen in small tables.
func TestMain(m *testing.M) {
	code := pgtest.Main(m, pgserver.WithSettings(map[string]string{
		"deadlock_timeout": "10ms",
		"enable_seqscan":   "off",
	}))
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
