// Package target is the server that is measured: a throwaway one, or one that somebody names.
package target

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// Settings are session parameters, by name.
type Settings map[string]string

// DeadlockTimeout is the session parameter of that name.
func DeadlockTimeout(timeout time.Duration) Settings {
	return Settings{"deadlock_timeout": fmt.Sprintf("%dms", timeout.Milliseconds())}
}

// Server is a running server.
type Server struct {
	server *pgserver.Server
}

// Start starts a throwaway server, or connects to the one that dsn, a URL or a key=value string,
// names. "" names none.
func Start(ctx context.Context, dsn string) (*Server, error) {
	if dsn != "" {
		if err := os.Setenv(pgserver.EnvDSN, dsn); err != nil {
			return nil, fmt.Errorf("set %s: %w", pgserver.EnvDSN, err)
		}
	}
	server, err := pgserver.Start(ctx)
	if err != nil {
		return nil, err
	}
	return &Server{server: server}, nil
}

// Of returns a server that runs already. Whoever started it stops it.
func Of(server *pgserver.Server) *Server { return &Server{server: server} }

// Stop ends a throwaway server, and leaves nothing behind on another one.
func (s *Server) Stop() error { return s.server.Stop() }

// Version returns the server's version.
func (s *Server) Version() string { return s.server.Version() }

// External says that the server is not a throwaway one.
func (s *Server) External() bool { return s.server.External() }

// HasAddress says that the server can be reached over TCP.
func (s *Server) HasAddress() bool {
	_, ok := Address(s.server.DSN())
	return ok
}

// Schema is an empty schema of its own on the server.
type Schema struct {
	server *Server
	schema *pgserver.Schema
}

// Schema creates an empty schema.
func (s *Server) Schema(ctx context.Context) (*Schema, error) {
	schema, err := s.server.NewSchema(ctx)
	if err != nil {
		return nil, err
	}
	return &Schema{server: s, schema: schema}, nil
}

// Drop drops the schema.
func (s *Schema) Drop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return s.schema.Drop(ctx)
}

// DSN returns a connection string to the schema by the shortest way: a throwaway server's Unix
// socket.
func (s *Schema) DSN(settings Settings) string {
	return with(s.server.server.SocketDSN(), s.own(settings))
}

// TCP returns a connection string to the schema over TCP, in the form of a URL. For a server that
// somebody named it is the same as DSN.
func (s *Schema) TCP(settings Settings) string {
	return with(s.server.server.DSN(), s.own(settings))
}

func (s *Schema) own(settings Settings) Settings {
	own := Settings{"search_path": s.schema.Name}
	maps.Copy(own, settings)
	return own
}

// errNoURL does not show the connection string, which may hold a password.
var errNoURL = errors.New("the connection string is no URL")

// Address returns the "host:port" of a connection string in URL form, and false if it has none: if
// it leads to a Unix socket, for one.
func Address(dsn string) (string, bool) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", false
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		host, port = u.Query().Get("host"), u.Query().Get("port")
	}
	if host == "" || strings.HasPrefix(host, "/") {
		return "", false
	}
	return net.JoinHostPort(host, cmp.Or(port, "5432")), true
}

// Via returns a connection string in URL form with another address.
func Via(dsn, address string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", errNoURL
	}
	query := u.Query()
	query.Del("host")
	query.Del("port")
	u.Host, u.RawQuery = address, encode(query)
	return u.String(), nil
}

// encode leaves no plus sign where a space is meant: not every client reads it so.
func encode(query url.Values) string { return strings.ReplaceAll(query.Encode(), "+", "%20") }

// with returns a connection string of either form with settings added.
func with(dsn string, settings Settings) string {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		if u, err := url.Parse(dsn); err == nil {
			query := u.Query()
			for name, value := range settings {
				query.Set(name, value)
			}
			u.RawQuery = encode(query)
			return u.String()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		dsn += " " + name + "=" + settings[name]
	}
	return dsn
}

// MayChange returns an error if sessions may not have these settings: deadlock_timeout, for one, is
// for superusers.
func (s *Schema) MayChange(ctx context.Context, settings Settings) (err error) {
	db, err := sql.Open("postgres", s.DSN(settings))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil {
		return fmt.Errorf("connect with %v, which superusers may: %w", settings, err)
	}
	return nil
}
