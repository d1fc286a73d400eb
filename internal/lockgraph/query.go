package lockgraph

import (
	"fmt"
	"strconv"
)

// Query reads all locks on objects that somebody waits for, as rows for [ParseRow]. It takes no parameters, its columns
// are text and never NULL.
//
// It should run outside of a transaction block: within one, the server may show the same sessions again and again.
//
// pg_locks is read once, as two looks at it could not be put together to one state. Processes that have ended since
// are left out with their locks. A parallel apply worker has a leader too, but waits for its locks like anybody else.
// leader_pid is looked up by name because it does not exist before PostgreSQL 13. Prepared transactions have no process.
const Query = `WITH locks AS (
	SELECT * FROM (
		SELECT *, pg_catalog.bool_or(NOT granted) OVER (PARTITION BY locktype, database, relation, page, tuple,
			virtualxid, transactionid, classid, objid, objsubid) AS waited
		FROM (
			SELECT pid, mode, granted, locktype, coalesce(database::text, '') AS database,
				coalesce(relation::text, '') AS relation, coalesce(page::text, '') AS page,
				coalesce(tuple::text, '') AS tuple, coalesce(virtualxid, '') AS virtualxid,
				coalesce(transactionid::text, '') AS transactionid, coalesce(classid::text, '') AS classid,
				coalesce(objid::text, '') AS objid, coalesce(objsubid::text, '') AS objsubid
			FROM pg_catalog.pg_locks WHERE NOT fastpath AND mode <> 'SIReadLock') AS regular) AS every
	WHERE waited
), processes AS (
	SELECT pid, backend_start,
		CASE WHEN backend_type = 'parallel worker' THEN (pg_catalog.to_jsonb(activity) ->> 'leader_pid')::integer
			ELSE pid END AS session
	FROM pg_catalog.pg_stat_get_activity(NULL) AS activity
)
SELECT coalesce(locks.pid, 0)::text, coalesce(process.session, locks.pid, 0)::text,
	coalesce(extract(epoch FROM leader.backend_start)::text, ''), locks.mode, locks.granted::text,
	locktype, database, relation, page, tuple, virtualxid, transactionid, classid, objid, objsubid
FROM locks
LEFT JOIN processes AS process ON process.pid = locks.pid
LEFT JOIN processes AS leader ON leader.pid = process.session
WHERE locks.pid IS NULL OR process.session IS NOT NULL`

// Columns is the number of columns of [Query].
const Columns = 15

// Session is a server's session.
type Session struct {
	// PID is the process id of the session, of the leader in a parallel query; 0 for prepared transactions.
	PID int
	// Started is when the session began, in seconds since 1970, as the server writes extract(epoch FROM backend_start). It
	// is empty if the role that asked may not know.
	Started string
}

// Row is a lock that a process holds or waits for.
type Row struct {
	Process int // 0 for a prepared transaction
	Session Session
	Mode    string
	Granted bool
	Object  Object
}

// ParseRow reads a row of [Query].
func ParseRow(values []string) (Row, error) {
	if len(values) != Columns {
		return Row{}, fmt.Errorf("read a lock: %d columns instead of %d", len(values), Columns)
	}
	process, err := strconv.Atoi(values[0])
	if err != nil {
		return Row{}, fmt.Errorf("read a lock's process: %w", err)
	}
	session, err := strconv.Atoi(values[1])
	if err != nil {
		return Row{}, fmt.Errorf("read a lock's session: %w", err)
	}
	granted, err := strconv.ParseBool(values[4])
	if err != nil {
		return Row{}, fmt.Errorf("read whether a lock is granted: %w", err)
	}
	return Row{
		Process: process,
		Session: Session{PID: session, Started: values[2]},
		Mode:    values[3],
		Granted: granted,
		Object: Object{
			Type: values[5], Database: values[6], Relation: values[7], Page: values[8], Tuple: values[9],
			VirtualXID: values[10], TransactionID: values[11], ClassID: values[12], ObjID: values[13], ObjSubID: values[14],
		},
	}, nil
}
