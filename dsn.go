package pgretry

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// parameterPrefix begins the name of every DSN parameter that is ours.
const parameterPrefix = "pgretry_"

// dsnParameter is one of our parameters in a DSN.
type dsnParameter struct {
	name    string
	allowed string // what would be right, for the error
	set     func(c *config, value string) error
}

var dsnParameters = []dsnParameter{
	{"pgretry_allowed_functions", "a comma-separated list of function names such as send, audit_*, billing.charge", func(c *config, value string) error {
		return WithAllowedFunctions(listed(value)...).apply(c)
	}},
	{"pgretry_also_retry", "a comma-separated list of " + strings.Join(optInStates, ", "), func(c *config, value string) error {
		return WithAlsoRetry(listed(value)...).apply(c)
	}},
	{"pgretry_base_delay", "a positive duration such as 10ms", func(c *config, value string) error {
		return setDuration(&c.policy.BaseDelay, value)
	}},
	{"pgretry_commit_outcome", oneOf(commitOutcomeNames), func(c *config, value string) error {
		outcome := slices.Index(commitOutcomeNames, value)
		if outcome < 0 {
			return errors.New("no such outcome")
		}
		c.commitOutcome = CommitOutcome(outcome)
		return nil
	}},
	{"pgretry_contention", "off, default or a comma-separated list of " + strings.Join(contentionNames, ", "), func(c *config, value string) error {
		parts, err := parseContention(value)
		if err != nil {
			return err
		}
		return WithContention(parts).apply(c)
	}},
	{"pgretry_denied_functions", "a comma-separated list of function names such as send, audit_*, billing.charge", func(c *config, value string) error {
		return WithDeniedFunctions(listed(value)...).apply(c)
	}},
	{"pgretry_journal_bytes", "a whole number of 1 or more", func(c *config, value string) error {
		return setCount(&c.journalBytes, value)
	}},
	{"pgretry_journal_statements", "a whole number of 1 or more", func(c *config, value string) error {
		return setCount(&c.journalStatements, value)
	}},
	{"pgretry_max_attempts", "a whole number of 1 or more", func(c *config, value string) error {
		return setCount(&c.policy.MaxAttempts, value)
	}},
	{"pgretry_max_delay", "a positive duration such as 1s, no shorter than pgretry_base_delay", func(c *config, value string) error {
		return setDuration(&c.policy.MaxDelay, value)
	}},
	{"pgretry_max_elapsed", "a positive duration such as 30s", func(c *config, value string) error {
		return setDuration(&c.policy.MaxElapsed, value)
	}},
	{"pgretry_mode", oneOf(modeNames), func(c *config, value string) error {
		mode := slices.Index(modeNames, value)
		if mode < 0 {
			return errors.New("no such mode")
		}
		c.mode = Mode(mode)
		return nil
	}},
	{"pgretry_pins", oneOf(pinPolicyNames), func(c *config, value string) error {
		policy := slices.Index(pinPolicyNames, value)
		if policy < 0 {
			return errors.New("no such policy")
		}
		c.pins = PinPolicy(policy)
		return nil
	}},
	{"pgretry_resolve_timeout", "a positive duration such as 5s", func(c *config, value string) error {
		return setDuration(&c.resolveTimeout, value)
	}},
	{"pgretry_statement_cache", "a whole number of 0 or more", func(c *config, value string) error {
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil {
			return err
		}
		return WithStatementCache(int(n)).apply(c)
	}},
	{"pgretry_statement_spans", "true or false", func(c *config, value string) error {
		switch value {
		case "true":
			c.statementSpans = true
		case "false":
			c.statementSpans = false
		default:
			return errors.New("not a truth value")
		}
		return nil
	}},
}

func parseContention(value string) (parts Contention, err error) {
	switch value {
	case "off":
		return ContentionOff, nil
	case "default":
		return ContentionDefault, nil
	}
	for _, name := range listed(value) {
		i := slices.Index(contentionNames, name)
		if i < 0 {
			return 0, errors.New("no such part")
		}
		parts |= 1 << i
	}
	if parts == ContentionOff {
		return 0, errors.New("nothing is named")
	}
	return parts, nil
}

// oneOf returns "a, b or c".
func oneOf(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// listed takes a list apart.
func listed(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' })
}

func setCount(target *int, value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 1 {
		return errors.New("not a whole number of 1 or more")
	}
	*target = int(n)
	return nil
}

func setDuration(target *time.Duration, value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		return errors.New("not a positive duration")
	}
	*target = d
	return nil
}

// apply sets what the DSN says. The DSN wins over options: it is what whoever
// runs the program can change without building it again.
func (d dsn) apply(c *config) error {
	for _, given := range d.parameters {
		i := slices.IndexFunc(dsnParameters, func(p dsnParameter) bool { return p.name == given.name })
		if i < 0 {
			var names []string
			for _, p := range dsnParameters {
				names = append(names, p.name)
			}
			return fmt.Errorf("pgretry: unknown DSN parameter %s=%q, allowed are %s", given.name, given.value, strings.Join(names, ", "))
		}
		if dsnParameters[i].set(c, given.value) != nil {
			return fmt.Errorf("pgretry: DSN parameter %s is %q, allowed is %s", given.name, given.value, dsnParameters[i].allowed)
		}
	}
	if c.policy.MaxDelay < c.policy.BaseDelay {
		// Only one of the two may have been given: the other then follows where
		// that is what was meant.
		switch {
		case !d.has("pgretry_max_delay"):
			c.policy.MaxDelay = c.policy.BaseDelay
		case !d.has("pgretry_base_delay"):
			c.policy.BaseDelay = c.policy.MaxDelay
		default:
			return fmt.Errorf("pgretry: DSN parameter pgretry_max_delay is %q, allowed is no less than pgretry_base_delay, which is %q",
				d.value("pgretry_max_delay"), d.value("pgretry_base_delay"))
		}
	}
	return nil
}

// dsn is a data source name taken apart: what the inner driver gets, untouched
// to the byte, and what is ours.
type dsn struct {
	inner      string
	parameters []dsnPair
}

type dsnPair struct{ name, value string }

func (d dsn) has(name string) bool {
	return slices.ContainsFunc(d.parameters, func(p dsnPair) bool { return p.name == name })
}

func (d dsn) value(name string) string {
	i := slices.IndexFunc(d.parameters, func(p dsnPair) bool { return p.name == name })
	return d.parameters[i].value
}

// parseDSN takes our parameters out of a DSN in the URL or the key=value form.
func parseDSN(name string) (dsn, error) {
	d := dsn{inner: name}
	switch {
	case strings.HasPrefix(name, "postgres://"), strings.HasPrefix(name, "postgresql://"):
		if err := d.cutFromURL(name); err != nil {
			return dsn{}, err
		}
	case strings.Contains(name, parameterPrefix):
		d.cutFromPairs(name)
	}
	for i, p := range d.parameters {
		if slices.ContainsFunc(d.parameters[:i], func(q dsnPair) bool { return q.name == p.name }) {
			return dsn{}, fmt.Errorf("pgretry: DSN parameter %s=%q is given twice, allowed is once", p.name, p.value)
		}
	}
	return d, nil
}

func (d *dsn) cutFromURL(name string) error {
	rest, fragment, hasFragment := strings.Cut(name, "#")
	rest, query, hasQuery := strings.Cut(rest, "?")
	if !hasQuery {
		return nil
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		rawKey, rawValue, _ := strings.Cut(pair, "=")
		key, err := url.QueryUnescape(rawKey)
		if err != nil || !strings.HasPrefix(key, parameterPrefix) {
			kept = append(kept, pair)
			continue
		}
		value, err := url.QueryUnescape(rawValue)
		if err != nil {
			return fmt.Errorf("pgretry: DSN parameter %s is %q, allowed is a value with its special characters percent-encoded", key, rawValue)
		}
		d.parameters = append(d.parameters, dsnPair{key, value})
	}
	d.inner = rest
	if len(kept) > 0 {
		d.inner += "?" + strings.Join(kept, "&")
	}
	if hasFragment {
		d.inner += "#" + fragment
	}
	return nil
}

// cutFromPairs follows conninfo_parse of libpq's fe-connect.c. Text that it
// cannot read is left for the inner driver to complain about, or to understand:
// not every driver's names are of this form.
func (d *dsn) cutFromPairs(name string) {
	var kept strings.Builder
	s := pairScanner{text: name}
	for {
		start := s.pos
		key, value, ok := s.next()
		if !ok {
			kept.WriteString(name[start:])
			break
		}
		if strings.HasPrefix(key, parameterPrefix) {
			d.parameters = append(d.parameters, dsnPair{key, value})
			continue
		}
		kept.WriteString(name[start:s.pos])
	}
	d.inner = kept.String()
}

// pairScanner reads key=value pairs with libpq's rules for space, quotes and
// backslashes.
type pairScanner struct {
	text string
	pos  int
}

// atSpace looks at a whole character: lib/pq does, and the bytes of some letters
// are spaces by themselves.
func (s *pairScanner) atSpace() bool {
	r, _ := utf8.DecodeRuneInString(s.text[s.pos:])
	return unicode.IsSpace(r)
}

func (s *pairScanner) skipSpace() {
	for s.pos < len(s.text) && s.atSpace() {
		_, size := utf8.DecodeRuneInString(s.text[s.pos:])
		s.pos += size
	}
}

func (s *pairScanner) next() (key, value string, ok bool) {
	s.skipSpace()
	start := s.pos
	for s.pos < len(s.text) && s.text[s.pos] != '=' && !s.atSpace() {
		s.pos++
	}
	key = s.text[start:s.pos]
	s.skipSpace()
	if key == "" || s.pos == len(s.text) || s.text[s.pos] != '=' {
		return "", "", false
	}
	s.pos++
	s.skipSpace()
	value, ok = s.value()
	return key, value, ok
}

func (s *pairScanner) value() (string, bool) {
	quoted := s.pos < len(s.text) && s.text[s.pos] == '\''
	if quoted {
		s.pos++
	}
	var value strings.Builder
	for s.pos < len(s.text) {
		b := s.text[s.pos]
		switch {
		case quoted && b == '\'':
			s.pos++
			return value.String(), true
		case !quoted && s.atSpace():
			return value.String(), true
		case b == '\\' && s.pos+1 < len(s.text):
			s.pos++
			b = s.text[s.pos]
		}
		value.WriteByte(b)
		s.pos++
	}
	return value.String(), !quoted
}

// redactDSNError makes an error about a DSN fit to be shown. lib/pq and net/url
// quote what they could not read, and what they could not read may be a part of
// the password: a slash in it is enough.
func redactDSNError(err error) error {
	var parse *url.Error
	if errors.As(err, &parse) {
		return errors.New("pgretry: the DSN is not a valid URL: its host, port or an escape is malformed, or a special character in the user name or password is not percent-encoded")
	}
	if strings.HasPrefix(err.Error(), "missing ") || strings.HasPrefix(err.Error(), "unterminated ") {
		return errors.New("pgretry: the DSN is neither a URL that begins with postgres:// nor a list of key=value pairs, in which a value with spaces must be in single quotes")
	}
	return err
}
