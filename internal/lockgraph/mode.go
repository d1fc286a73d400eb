package lockgraph

import "fmt"

// modes is a set of the eight modes of a regular lock.
type modes uint8

const (
	accessShare modes = 1 << iota
	rowShare
	rowExclusive
	shareUpdateExclusive
	share
	shareRowExclusive
	exclusive
	accessExclusive
)

// parseMode returns a mode by its name in pg_locks.
func parseMode(name string) (modes, error) {
	switch name {
	case "AccessShareLock":
		return accessShare, nil
	case "RowShareLock":
		return rowShare, nil
	case "RowExclusiveLock":
		return rowExclusive, nil
	case "ShareUpdateExclusiveLock":
		return shareUpdateExclusive, nil
	case "ShareLock":
		return share, nil
	case "ShareRowExclusiveLock":
		return shareRowExclusive, nil
	case "ExclusiveLock":
		return exclusive, nil
	case "AccessExclusiveLock":
		return accessExclusive, nil
	}
	return 0, fmt.Errorf("lock mode %q is unknown", name)
}

// conflicting returns the modes that keep one mode from being granted to somebody else. It is table 13.2 of
// PostgreSQL's manual, "Conflicting Lock Modes". All kinds of regular locks go by it, advisory ones too.
func conflicting(mode modes) modes {
	switch mode {
	case accessShare:
		return accessExclusive
	case rowShare:
		return exclusive | accessExclusive
	case rowExclusive:
		return share | shareRowExclusive | exclusive | accessExclusive
	case shareUpdateExclusive:
		return shareUpdateExclusive | share | shareRowExclusive | exclusive | accessExclusive
	case share:
		return rowExclusive | shareUpdateExclusive | shareRowExclusive | exclusive | accessExclusive
	case shareRowExclusive:
		return rowExclusive | shareUpdateExclusive | share | shareRowExclusive | exclusive | accessExclusive
	case exclusive:
		return rowShare | rowExclusive | shareUpdateExclusive | share | shareRowExclusive | exclusive | accessExclusive
	case accessExclusive:
		return accessShare | rowShare | rowExclusive | shareUpdateExclusive | share | shareRowExclusive | exclusive | accessExclusive
	}
	return 0
}
