package faultproxy

import (
	"errors"
	"net/url"
)

// errDSN gives no reason: the reasons that parsers give quote the string, and with it the password.
var errDSN = errors.New("lead a connection string through the proxy: it is not a valid one in URL form")

// DSN returns a connection string in URL form with host and port replaced by the proxy's. It returns an error for one
// that is not in URL form. Encryption has to be off or optional in it, "sslmode=disable" or "prefer".
func (p *Proxy) DSN(dsn string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", errDSN
	}
	parameters, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "", errDSN
	}
	// As parameters they would win.
	changed := false
	for _, name := range []string{"host", "hostaddr", "port"} {
		changed = changed || parameters.Has(name)
		parameters.Del(name)
	}
	if changed {
		u.RawQuery = parameters.Encode()
	}
	u.Host = p.Addr()
	return u.String(), nil
}
