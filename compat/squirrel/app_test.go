package squirrel_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/compat/squirrel"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestSquirrel(t *testing.T) { script.Test(t, squirrel.Open) }
