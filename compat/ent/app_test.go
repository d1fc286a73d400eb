package ent_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/ent"
	"github.com/pgretry/pgretry/compat/script"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestEnt(t *testing.T) { script.Test(t, ent.Open) }
