package pgserver

import (
	"errors"
	"net/url"
	"strings"
	"unicode"
)

// errConnString stands for every way in which a connection string can be wrong. The reasons that parsers give quote
// the string, and with it the password.
var errConnString = errors.New("not a valid connection string (it is not shown, as it may hold a password)")

// parseConnString turns a connection string of either form into the URL form, in which parameters are easily added.
func parseConnString(s string) (*url.URL, error) {
	if strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://") {
		u, err := url.Parse(s)
		if err != nil {
			return nil, errConnString
		}
		if _, err := url.ParseQuery(u.RawQuery); err != nil {
			return nil, errConnString
		}
		return u, nil
	}
	q, err := parseKeyValues(s)
	if err != nil {
		return nil, err
	}
	// Paths of sockets and lists of hosts cannot stand in the host part of a URL, but everything can be a parameter.
	return &url.URL{Scheme: "postgres", Path: "/", RawQuery: encode(q)}, nil
}

// parseKeyValues reads the key=value form by libpq's rules: single quotes around values with spaces, backslash
// before the character it protects.
func parseKeyValues(s string) (url.Values, error) {
	q := url.Values{}
	rest := strings.TrimSpace(s)
	for rest != "" {
		key, after, found := strings.Cut(rest, "=")
		key = strings.TrimSpace(key)
		if !found || key == "" || strings.ContainsFunc(key, unicode.IsSpace) {
			return nil, errConnString
		}
		rest = strings.TrimLeftFunc(after, unicode.IsSpace)
		quoted := strings.HasPrefix(rest, "'")
		if quoted {
			rest = rest[1:]
		}
		var value strings.Builder
		closed, escaped, end := false, false, len(rest)
		for i, r := range rest {
			if !escaped && (quoted && r == '\'' || !quoted && unicode.IsSpace(r)) {
				closed, end = true, i
				break
			}
			if escaped = !escaped && r == '\\'; !escaped {
				value.WriteRune(r)
			}
		}
		if escaped || quoted && !closed {
			return nil, errConnString
		}
		if closed {
			end++ // the quote or space itself
		}
		rest = strings.TrimLeftFunc(rest[end:], unicode.IsSpace)
		q.Set(key, value.String())
	}
	return q, nil
}

// encode is Encode with spaces in the form that every client reads: libpq takes a plus sign literally.
func encode(q url.Values) string { return strings.ReplaceAll(q.Encode(), "+", "%20") }

// withParameters returns the connection string u with parameters added, or replaced.
func withParameters(u *url.URL, parameters map[string]string) string {
	q := u.Query()
	for name, value := range parameters {
		q.Set(name, value)
	}
	v := *u
	v.RawQuery = encode(q)
	return v.String()
}

// quoteValue quotes a value for the key=value form, if it needs that.
func quoteValue(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\n'\\") {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// withoutPassword returns err, or if its message holds the password in u, an error with the same message without it.
func withoutPassword(err error, u *url.URL) error {
	if err == nil {
		return nil
	}
	message := err.Error()
	fromUser, _ := u.User.Password()
	for _, password := range []string{fromUser, u.Query().Get("password")} {
		if password == "" {
			continue
		}
		for _, form := range []string{password, encode(url.Values{"": {password}})[1:], url.UserPassword("", password).String()[1:]} {
			message = strings.ReplaceAll(message, form, "xxxxx")
		}
	}
	if message == err.Error() {
		return err
	}
	return errors.New(message)
}
