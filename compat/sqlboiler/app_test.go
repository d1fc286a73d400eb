package sqlboiler_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/compat/sqlboiler"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestSQLBoiler(t *testing.T) { script.Test(t, sqlboiler.Open) }
