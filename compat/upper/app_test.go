package upper

import (
	"context"
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestUpper(t *testing.T) { script.Test(t, Open) }

// With its cache upper prepares every statement outside transactions and keeps it.
func TestUpperWithPreparedStatements(t *testing.T) {
	script.Test(t, func(ctx context.Context, driverName, dsn string) (script.App, error) {
		return open(ctx, driverName, dsn, true)
	})
}
