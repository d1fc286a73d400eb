package pgretry

import (
	"slices"
	"strings"
)

// lockNotAvailable is the SQLSTATE of a wait for a lock that lasted too long, and of a lock
// that NOWAIT did not get.
const lockNotAvailable = "55P03"

// standsForDeadlock says whether an error is treated like a deadlock that the server has
// found, and not only where it says so itself.
func (t *tx) standsForDeadlock(err error) bool { return t.probeFailed(err) || t.lockTimedOut(err) }

// lockTimedOut says whether a lock_timeout of the application's own has ended a wait, and
// the application wants the transaction tried again after that. It is how to get out of
// deadlocks that nobody can see, such as those between servers.
func (t *tx) lockTimedOut(err error) bool {
	server, ok := asServerError(err)
	if !ok || server.code != lockNotAvailable || !isLockTimeout(server.routine) {
		return false
	}
	config := t.pace.config
	if t.attempt != nil {
		config = t.attempt.policyOn(t.conn.connector)
	}
	return slices.Contains(config.alsoRetry, lockNotAvailable)
}

// isLockTimeout tells from a function of the server's whether a wait has ended or none was
// wanted: the end of one is noticed where interrupts are. postgres_fdw passes on what
// happened to its sessions, which never ask for NOWAIT.
func isLockTimeout(routine string) bool {
	return routine == "ProcessInterrupts" || strings.HasPrefix(routine, "pgfdw_report")
}
