package bun_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/bun"
	"github.com/pgretry/pgretry/compat/script"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestBun(t *testing.T) { script.Test(t, bun.Open) }
