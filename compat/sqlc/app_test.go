package sqlc_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/compat/sqlc"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestSQLC(t *testing.T) { script.Test(t, sqlc.Open) }

func TestSQLCWithPreparedQueries(t *testing.T) { script.Test(t, sqlc.OpenPrepared) }
