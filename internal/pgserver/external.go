package pgserver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// useExternal makes a Server of the one that dsn names.
func useExternal(ctx context.Context, dsn string, o *options) (*Server, error) {
	u, err := parseConnString(dsn)
	if err != nil {
		return nil, fmt.Errorf("use the server named by %s: %w", EnvDSN, err)
	}
	s, err := newExternal(ctx, withParameters(u, nil), o)
	if err != nil {
		return nil, withoutPassword(fmt.Errorf("use the server named by %s: %w", EnvDSN, err), u)
	}
	stop := s.stop
	s.stop = sync.OnceValue(func() error {
		if err := stop(); err != nil {
			return withoutPassword(fmt.Errorf("clean up the server named by %s: %w", EnvDSN, err), u)
		}
		return nil
	})
	return s, nil
}

func newExternal(ctx context.Context, adminDSN string, o *options) (_ *Server, err error) {
	db, err := open(adminDSN)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	s := &Server{adminDSN: adminDSN}
	if s.version, err = serverVersion(ctx, db); err != nil {
		return nil, err
	}
	parameters, err := sessionSettings(ctx, db, o.settings)
	if err != nil {
		return nil, err
	}
	schema, err := createSchema(ctx, adminDSN)
	if err != nil {
		return nil, err
	}
	parameters["search_path"] = schema.Name
	u, err := parseConnString(adminDSN)
	if err != nil {
		return nil, err
	}
	s.dsn = withParameters(u, parameters)
	s.socketDSN = s.dsn
	s.stop = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return schema.Drop(ctx)
	}
	return s, nil
}

// sessionSettings returns those of the settings that a session can have for itself. The others must have the wanted
// value already: a test that relies on a setting shall not run without it and fail for no visible reason.
func sessionSettings(ctx context.Context, db *sql.DB, settings map[string]string) (map[string]string, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // goes back to the pool, whose closing reports errors

	own := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := settings[name]
		_, err := conn.ExecContext(ctx, "select set_config($1, $2, false)", name, value)
		if err == nil {
			own[name] = value
			continue
		}
		var current sql.NullString
		if err := conn.QueryRowContext(ctx, "select current_setting($1, true)", name).Scan(&current); err != nil {
			return nil, fmt.Errorf("read the setting %s: %w", name, err)
		}
		if !strings.EqualFold(current.String, value) {
			return nil, fmt.Errorf("the setting %s is %q and has to be %q: %w", name, current.String, value, err)
		}
	}
	return own, nil
}

func serverVersion(ctx context.Context, db *sql.DB) (string, error) {
	var version string
	if err := db.QueryRowContext(ctx, "show server_version").Scan(&version); err != nil {
		return "", fmt.Errorf("ask for the server's version: %w", err)
	}
	// "15.18 (Debian 15.18-0+deb12u1)"
	version, _, _ = strings.Cut(version, " ")
	return version, nil
}
