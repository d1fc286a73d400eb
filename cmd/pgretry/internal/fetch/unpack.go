package fetch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

const (
	programs       = "postgresql/bin"
	archivePattern = "embedded-postgres-binaries-*-" + Version + ".txz"
)

// Unpack downloads the archive for this platform into archives, unless it is there, and unpacks it
// below dir. The repository is a Maven repository's base URL; empty means embedded-postgres' own
// default.
func Unpack(repository, archives, dir string) error {
	// embedded-postgres unpacks and then goes on to create a data directory. A file where that
	// directory's parent should be stops it there, before it runs anything.
	wall := filepath.Join(archives, "wall")
	if err := os.WriteFile(wall, nil, 0o600); err != nil {
		return err
	}
	config := embeddedpostgres.DefaultConfig().
		Version(embeddedpostgres.PostgresVersion(Version)).
		Port(0).
		CachePath(archives).
		RuntimePath(filepath.Join(archives, "runtime")).
		BinariesPath(filepath.Join(dir, filepath.Dir(programs))).
		DataPath(filepath.Join(wall, "data")).
		Logger(io.Discard)
	if repository != "" {
		config = config.BinaryRepositoryURL(repository)
	}
	server := embeddedpostgres.NewDatabase(config)
	stopped := server.Start()
	if stopped == nil {
		if err := server.Stop(); err != nil {
			return fmt.Errorf("stop a server that should not have started: %w", err)
		}
		return errors.New("a server started where none could")
	}
	for _, program := range []string{"initdb", "postgres", "pg_ctl"} {
		if _, err := os.Stat(filepath.Join(dir, programs, program)); err != nil {
			return fmt.Errorf("unpack %s: %w", program, stopped)
		}
	}
	return nil
}
