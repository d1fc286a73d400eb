package pgserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What a copy of a data directory leaves out, as pg_basebackup does: what the next start makes anew, and what belongs to
// the server that runs. See "Making a Base Backup Using the Low Level API" in the manual.
var (
	emptyInCopy = []string{
		"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans",
		"pg_wal", "pg_wal/archive_status", "pg_wal/summaries",
	}
	absentInCopy = []string{
		"backup_label", "backup_manifest", "current_logfiles.tmp", "postgresql.auto.conf.tmp", "postmaster.opts",
		"postmaster.pid", "tablespace_map",
	}
	absentPrefixes = []string{"pgsql_tmp", "pg_internal.init"}
)

// controlFile tells a standby made of a standby's copy how much log it has to replay before it is consistent, so it is
// copied after everything else.
const controlFile = "global/pg_control"

// copyData fills the data directory with a copy of the primary's, which runs on meanwhile. The log is not part of it.
// Servers come without pg_basebackup, so its work is done here, over the functions that there are for that.
func (c *cluster) copyData(ctx context.Context, primary *cluster) (err error) {
	db, err := primary.connect()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	// The backup is the session's: whatever ends the session ends it.
	session, err := db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("begin a base backup: %w", err)
	}
	defer session.Close()

	begin, end := "select pg_backup_start($1, true)", "select labelfile, spcmapfile from pg_backup_stop(false)"
	var version int
	if err := session.QueryRowContext(ctx, "select current_setting('server_version_num')::int").Scan(&version); err != nil {
		return fmt.Errorf("begin a base backup: %w", err)
	}
	if version < 150000 {
		begin, end = "select pg_start_backup($1, true, false)", "select labelfile, spcmapfile from pg_stop_backup(false, false)"
	}
	if _, err := session.ExecContext(ctx, begin, standbyName); err != nil {
		return fmt.Errorf("begin a base backup: %w", err)
	}
	if err := c.copyFiles(ctx, primary.dataDir()); err != nil {
		return fmt.Errorf("copy the data directory: %w", err)
	}
	var label string
	var tablespaces sql.NullString
	if err := session.QueryRowContext(ctx, end).Scan(&label, &tablespaces); err != nil {
		return fmt.Errorf("end a base backup: %w", err)
	}
	if tablespaces.String != "" {
		return errors.New("copy the data directory: it has tablespaces, which are elsewhere")
	}
	return c.putFile("backup_label", strings.NewReader(label))
}

// copyFiles copies what a base backup consists of.
func (c *cluster) copyFiles(ctx context.Context, from string) error {
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server has removed it meanwhile, and the log says so
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		switch {
		case name == "." || name == controlFile:
			return nil
		case absent(entry.Name()):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return c.putDir(name)
		case !entry.Type().IsRegular() || slices.Contains(emptyInCopy, filepath.ToSlash(filepath.Dir(name))):
			return nil
		}
		return c.copyFile(path, name)
	})
	if err != nil {
		return err
	}
	control, err := readWhole(filepath.Join(from, controlFile))
	if err != nil {
		return err
	}
	return c.putFile(controlFile, bytes.NewReader(control))
}

func absent(name string) bool {
	return slices.Contains(absentInCopy, name) ||
		slices.ContainsFunc(absentPrefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// readWhole reads a file of which no half-written state will do.
func readWhole(path string) ([]byte, error) {
	var before []byte
	for {
		content, err := os.ReadFile(path)
		if err != nil || bytes.Equal(content, before) {
			return content, err
		}
		before = content
	}
}

func (c *cluster) copyFile(path, name string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // as above
	}
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	return c.putFile(name, file)
}

// putDir makes a directory of the data directory.
func (c *cluster) putDir(name string) error {
	path := filepath.Join(c.dataDir(), name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return c.account.give(path)
}

// putFile makes a file of the data directory.
func (c *cluster) putFile(name string, content io.Reader) (err error) {
	path := filepath.Join(c.dataDir(), name)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := io.Copy(file, content); err != nil {
		return err
	}
	return c.account.give(path)
}
