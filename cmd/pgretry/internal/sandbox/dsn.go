package sandbox

import (
	"database/sql"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/lib/pq"
)

// openPlain opens lib/pq's pool for a connection string that may carry parameters of pgretry's,
// which lib/pq would send to the server.
func openPlain(dsn string) (*sql.DB, error) {
	config, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, ErrDSN
	}
	maps.DeleteFunc(config.Runtime, func(name, _ string) bool { return strings.HasPrefix(name, "pgretry_") })
	connector, err := pq.NewConnectorConfig(config)
	if err != nil {
		return nil, ErrDSN
	}
	return sql.OpenDB(connector), nil
}

// withParameters returns the connection string, a URL or key=value pairs, with parameters added or
// replaced.
func withParameters(dsn string, parameters map[string]string) (string, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		parsed, err := url.Parse(dsn)
		if err != nil {
			// The error would quote the string.
			return "", ErrDSN
		}
		query := parsed.Query()
		for name, value := range parameters {
			query.Set(name, value)
		}
		parsed.RawQuery = query.Encode()
		return parsed.String(), nil
	}
	// The last of several equal keys counts.
	var pairs strings.Builder
	pairs.WriteString(dsn)
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		value := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(parameters[name])
		fmt.Fprintf(&pairs, " %s='%s'", name, value)
	}
	return pairs.String(), nil
}
