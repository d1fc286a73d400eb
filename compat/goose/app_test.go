package goose

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestGoose(t *testing.T) { script.Test(t, Open) }
