// Package histories runs random transactions through a database/sql driver and
// proves from what the application was shown, and from what the database holds in
// the end, that no isolation anomaly was committed.
//
// The method is Elle's (Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies
// from Experimental Observations", VLDB 2020): every write appends a value that is
// used once to a list, so that the order of a list's versions can be read off the
// list itself, and with it the dependencies between transactions. A [Run] is an
// application of several workers with plain database/sql and no retries: when a
// call fails, the transaction is given up, or goes on after ROLLBACK TO a
// savepoint, or goes on as if nothing had happened, whose COMMIT must then fail.
// [Check] finds what cannot be explained.
//
// # What is checked
//
// Whatever the isolation level:
//
//   - Each value of a committed transaction is in its list exactly once. Values of a
//     transaction that failed, of a statement that failed and of a segment that was
//     rolled back to a savepoint are nowhere, neither in the end (durability, at most
//     once) nor in a read (Adya's G1a). A transaction whose outcome is unknown is
//     there as a whole or not at all.
//   - No read shows a list as another transaction had it between two of its writes
//     (G1b).
//   - A transaction sees its own appends, in order, and not those that it has rolled
//     back. SET LOCAL and the rows it inserted likewise.
//   - While a transaction holds a row lock, by FOR UPDATE or by its own write, nobody
//     else's write comes in between: no lost update, READ COMMITTED included.
//   - Generated ids that the application was shown exist if and only if it was told
//     that the transaction was committed, once, with the rows that refer to them.
//   - A transaction in which a statement failed commits only if it was rolled back to
//     a savepoint before that statement.
//   - A read shows what was acknowledged as committed before it began.
//
// And in the graph of dependencies: ww (one overwrote what the other wrote), wr (one
// read what the other wrote) and rw (one read what the other then overwrote).
//
// # Cycles, and runs of mixed levels
//
// Adya's mixing-correctness keeps, of all edges, those that the level of one of
// their ends obliges. PostgreSQL's levels oblige to less in one place, for only
// SERIALIZABLE transactions among themselves are watched for rw edges, and to more in
// another, for REPEATABLE READ is snapshot isolation. The rules here are the
// strongest that PostgreSQL does keep:
//
//   - G0, G1c: no cycle of ww and wr edges, transactions of all levels being
//     participants. Such an edge means that one committed before the other read or wrote.
//   - G-single and its generalisation, G-nonadjacent: no cycle in which no two rw
//     edges follow one another, counting only rw edges out of REPEATABLE READ or
//     SERIALIZABLE transactions. Whoever such an edge leads to committed after the
//     snapshot that it leaves from; participants of any level are joined to that by ww
//     and wr. Lost updates, fractured reads and reads of two snapshots are such cycles.
//     Transactions that failed take part as readers: what they were shown before must
//     be of one snapshot too.
//   - G2: no cycle at all, counting only rw edges from one committed SERIALIZABLE
//     transaction to another, and ww and wr edges between transactions of any level.
//     Among the participants of such a cycle, the first to commit, T3, can only have
//     been reached by an rw edge, from T2, whose snapshot is older than that commit; so
//     T2 too can only have been reached by an rw edge. Those three are the dangerous
//     structure that PostgreSQL aborts (Cahill, Röhm and Fekete 2008), all SERIALIZABLE.
//     One rw edge does not count: out of what a transaction read through its own INSERT …
//     ON CONFLICT DO UPDATE, by RETURNING or afterwards, and rolled back to a savepoint.
//     PostgreSQL 15 takes no predicate lock for that statement, and the row lock that
//     would do instead is gone with the savepoint; two SERIALIZABLE transactions of
//     lib/pq alone can both commit so.
package histories
