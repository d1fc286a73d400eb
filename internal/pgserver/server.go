package pgserver

import (
	"context"
	"fmt"
	"os"
	"sync"
)

// EnvDSN is the environment variable that names a server to use instead of a throwaway cluster.
const EnvDSN = "PGRETRY_DSN"

// Server is a PostgreSQL server that runs until Stop, unless it is killed before. Its methods are safe for concurrent
// use; those that restart, kill or promote it take turns.
type Server struct {
	dsn       string
	socketDSN string
	adminDSN  string // like dsn, without the schema and the settings of this Server
	version   string
	cluster   *cluster // nil if the server is not ours
	stop      func() error
}

// Start starts a server and returns when it accepts connections. See the package documentation for which.
//
// The context bounds the start alone: the server runs on when it ends. If the context ends first, or anything else
// goes wrong, nothing is left behind. A cluster that does not accept connections within three minutes is given up.
//
// The error is [ErrNotFound] if there is no server to start. It never holds the password of PGRETRY_DSN.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	o, err := resolve(opts)
	if err != nil {
		return nil, err
	}
	if dsn := os.Getenv(EnvDSN); dsn != "" {
		return useExternal(ctx, dsn, o)
	}
	c, err := startCluster(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL: %w", err)
	}
	return newServer(c), nil
}

// newServer returns the Server of a cluster that runs.
func newServer(c *cluster) *Server {
	dsn := fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", superuser, c.port, database)
	return &Server{
		dsn:       dsn,
		adminDSN:  dsn,
		socketDSN: fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", quoteValue(c.socketDir()), c.port, superuser, database),
		version:   c.version,
		cluster:   c,
		stop:      sync.OnceValue(c.stop),
	}
}

// Stop ends the server without ceremony, as a crash would, and removes all that belongs to it. It returns when both
// are done. Calling it again, also while it runs, waits for and returns the same. A Restart or Promote under way fails.
//
// A server that PGRETRY_DSN names runs on: there, the schema made by Start is dropped.
func (s *Server) Stop() error { return s.stop() }

// DSN returns a connection string in URL form, over TCP for a cluster:
//
//	postgres://pgretry@127.0.0.1:40123/postgres?sslmode=disable
//
// With PGRETRY_DSN it is that one in URL form, with search_path (and the settings given to Start) as parameters.
func (s *Server) DSN() string { return s.dsn }

// SocketDSN returns a connection string in key=value form over the cluster's Unix socket. With PGRETRY_DSN it is the
// same as DSN.
func (s *Server) SocketDSN() string { return s.socketDSN }

// Version returns the server's version, such as "15.18" or "18beta1".
func (s *Server) Version() string { return s.version }

// External reports whether the server is the one PGRETRY_DSN names, rather than a cluster of our own.
func (s *Server) External() bool { return s.cluster == nil }

// Dir returns the directory that holds everything of the cluster: its data directory "data" and its log "log".
// It is empty for an external server.
func (s *Server) Dir() string {
	if s.cluster == nil {
		return ""
	}
	return s.cluster.dir
}

// BinDir returns the directory of the server's programs. It is empty for an external server.
func (s *Server) BinDir() string {
	if s.cluster == nil {
		return ""
	}
	return s.cluster.binDir
}

// PID returns the process id of the postmaster, and 0 for an external server. It changes with every [Server.Restart].
// While the server is down it is that of the last one.
func (s *Server) PID() int {
	if s.cluster == nil {
		return 0
	}
	return s.cluster.latest().cmd.Process.Pid
}
