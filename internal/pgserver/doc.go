// Package pgserver runs throwaway PostgreSQL servers for tests and demonstrations.
//
// [Start] gives a server that is ready to accept connections, and [Server.Stop] makes it vanish again:
//
//	server, err := pgserver.Start(ctx)
//	if err != nil {
//		return err
//	}
//	defer server.Stop()
//	db, err := sql.Open("postgres", server.DSN())
//
// # Which server
//
// The first of these that applies is used:
//
//  1. The server that the environment variable PGRETRY_DSN names (a URL or a key=value string, as lib/pq takes it).
//     Start makes a schema of its own there, which Stop drops. Nothing else on that server is touched.
//  2. A new cluster, made with the first directory of PATH that holds both initdb and postgres.
//  3. A new cluster, made with the newest version found where Debian, RPM and Homebrew packages install it.
//  4. A new cluster, made with what the function given to [WithFetch] fetches.
//
// # A cluster
//
// A cluster listens on a free port of 127.0.0.1 and on a Unix socket in its own directory. It trusts every local
// user, forgoes durability for speed, and is meant to hold nothing of value. PostgreSQL refuses to run as root, so
// under root the server runs as the user postgres, or nobody if there is no such user. Clusters need a Unix system;
// elsewhere PGRETRY_DSN must be set.
//
// Its directory, of some 40 MB at first, is made where the system keeps temporary files. TMPDIR=/dev/shm makes it
// faster to come and go where that is large.
//
// # Faults
//
// A cluster can be made to fail, as servers do. [Server.Restart] shuts it down and starts it again, [Server.Kill] ends
// it like a crash, [Server.KillBackend] crashes one of its processes, from which it recovers by itself.
// [Server.NewStandby] gives it a standby, which [Server.Promote] makes a primary. Port, socket and data stay the same,
// so connection strings stay valid; Stop works in every state. A server that PGRETRY_DSN names is spared all that, with
// [ErrExternal].
//
// What clusters forgo for speed shows here: with synchronous_commit off, a crash loses the last transactions. Tests of
// what survives have to turn it on, and full_page_writes where a single process is killed:
//
//	server, err := pgserver.Start(ctx, pgserver.WithSettings(map[string]string{
//		"synchronous_commit": "on", "full_page_writes": "on",
//	}))
//
// # What is left behind
//
// Nothing, after Stop. When the process ends without it (a panic, os.Exit, a kill), a small watching shell notices,
// stops the server and removes its directory. If that shell is killed too, the next Start by the same user does it.
// If the server itself was killed before, they leave a System V shared memory segment of a few bytes.
package pgserver
