package migrate

import (
	"os"
	"testing"

	"github.com/pgretry/pgretry/compat/script"
)

// A migration that fails leaves the reader of the next one.
func TestMain(m *testing.M) {
	os.Exit(script.Main(m, "github.com/golang-migrate/migrate/v4.(*Migration).Buffer"))
}

func TestGolangMigrate(t *testing.T) { script.Test(t, Open) }
