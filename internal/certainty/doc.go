// Package certainty proves what the driver promises about lost connections: a
// write is never executed twice behind the application's back, and what the
// application is told about a COMMIT is true.
//
// Each run puts a fault between driver and server, or into the server, keeps what
// the application was told, waits until everything that could still change the
// database is gone, and then reads the truth past all proxies:
//
//   - [LoneWrites] cuts a statement outside a transaction at every message of its
//     exchange with the server.
//   - [Commits] lets a COMMIT meet cut cables, black holes, terminated and killed
//     backends, crashes of the server, a stopped standby and failovers.
//   - [Bank] keeps transferring money while all of that goes on.
//
// Every run can be made with another driver inside, or with none of ours at all
// for comparison. Their reports are Markdown tables.
package certainty
