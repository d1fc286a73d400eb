package xorm_test

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/compat/xorm"
)

func TestMain(m *testing.M) { os.Exit(script.Main(m)) }

func TestXorm(t *testing.T) { script.Test(t, xorm.Open) }
