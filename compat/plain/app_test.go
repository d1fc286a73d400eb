package plain_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestDatabaseSQL(t *testing.T) { script.Test(t, plain.Open) }

func TestDatabaseSQLBehindPgBouncer(t *testing.T) { script.TestBehindPgBouncer(t, plain.Open) }
