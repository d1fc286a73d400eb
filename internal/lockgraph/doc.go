// Package lockgraph finds deadlocks in one look at a PostgreSQL server's lock table, without the deadlock_timeout (one
// second by default) that the server lets pass before it looks itself.
//
//	rows, err := connection.QueryContext(ctx, lockgraph.Query)
//	… ParseRow for each of them …
//	graph, err := lockgraph.Build(parsed)
//	for _, cycle := range graph.Cycles() {
//		fmt.Println(cycle.Detail())
//	}
//
// # What counts
//
// A session waits for another one if that one holds the same object in a mode that conflicts with the mode wanted. The
// server calls that a hard edge. Who merely stands behind somebody in an object's queue has a soft edge, which
// pg_blocking_pids reports alike. A circle with a soft edge in it is no deadlock: the server resolves it by letting
// one waiter past another, and nobody has to lose. So only hard edges are looked at, and every cycle of them stands until
// one of its sessions gives up: each of them sleeps, and gives back nothing until it has got what it waits for.
//
// That is true of cycles that existed at one time, and [Query] sees the lock table as it was at one time. The server
// copies its regular lock table with all of its partitions locked. It does not so with the fast-path locks, which are
// kept per process and collected one process after the other, before the rest: such a row may tell of a lock that was
// gone when the waiter came. They are left out, and nothing is lost by it. Only weak locks on tables (AccessShareLock to
// RowExclusiveLock, which do not conflict with each other) and each transaction's lock on its own virtual id take the
// fast path. Who wants a stronger lock on a table first stops others from taking that path and moves all locks on this
// table into the regular table; who waits for a virtual id moves that one. Only then does it begin to wait, so that
// no fast-path lock is ever waited for.
//
// Not seen are deadlocks of one object, where two sessions share a lock and both want more of it: the server does not
// even let the second one sleep, and reports those at once.
//
// # Parallel queries
//
// Parallel workers and their leader are one session here, as in the server's own search: they do not wait for each
// other's locks, and a lock of one is kept until all are done. What waits may be a worker, so that [Edge] names the
// process as well as the session. Workers whose leader is not told (before PostgreSQL 13) are left out.
//
// # Privileges
//
// Everybody may read pg_locks. When a session began, and which workers it has, is shown to its own role, to members of
// that role and of pg_read_all_stats. Sessions of others are in the graph with an empty [Session.Started]. Two such sessions may
// be a leader and its worker for all that can be seen, so that they are not taken to wait for each other, except on
// objects that workers never wait for among themselves.
package lockgraph
