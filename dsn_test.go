package pgretry

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"
)

func TestOurParametersAreTakenOutOfTheDSN(t *testing.T) {
	for _, c := range []struct {
		dsn, inner string
		parameters []dsnPair
	}{
		{"", "", nil},
		{"host=a dbname=b", "host=a dbname=b", nil},
		{"host=a pgretry_mode=off dbname=b", "host=a dbname=b", []dsnPair{{"pgretry_mode", "off"}}},
		{"pgretry_mode=off", "", []dsnPair{{"pgretry_mode", "off"}}},
		{"host=a pgretry_mode = 'off'", "host=a", []dsnPair{{"pgretry_mode", "off"}}},
		{`password='it\'s pgretry_mode=off' host=a`, `password='it\'s pgretry_mode=off' host=a`, nil},
		{`password=a\ pgretry_mode=off pgretry_max_attempts=3`, `password=a\ pgretry_mode=off`, []dsnPair{{"pgretry_max_attempts", "3"}}},
		{`pgretry_base_delay='1\'s'`, "", []dsnPair{{"pgretry_base_delay", "1's"}}},
		{"host=a pgretry_mode='off", "host=a pgretry_mode='off", nil}, // the inner driver complains
		{"postgres://h/d", "postgres://h/d", nil},
		{"postgres://h/d?pgretry_mode=off", "postgres://h/d", []dsnPair{{"pgretry_mode", "off"}}},
		{"postgresql://h/d?a=b&pgretry_mode=off&c=%20d#f", "postgresql://h/d?a=b&c=%20d#f", []dsnPair{{"pgretry_mode", "off"}}},
		{"postgres://h/d?pgretry_base_delay=1%30ms&sslmode=disable", "postgres://h/d?sslmode=disable", []dsnPair{{"pgretry_base_delay", "10ms"}}},
		{"postgres://h/d?pgretry%5Fmode=off&pgretry_max_attempts=2", "postgres://h/d", []dsnPair{{"pgretry_mode", "off"}, {"pgretry_max_attempts", "2"}}},
		{"postgres://u:pgretry_mode=off@h/d", "postgres://u:pgretry_mode=off@h/d", nil},
		{"registeredConnConfig0", "registeredConnConfig0", nil},
	} {
		got, err := parseDSN(c.dsn)
		if err != nil {
			t.Errorf("%s: %v", c.dsn, err)
			continue
		}
		if strings.TrimSpace(got.inner) != c.inner || !slices.Equal(got.parameters, c.parameters) {
			t.Errorf("%s:\n got %q %v\nwant %q %v", c.dsn, got.inner, got.parameters, c.inner, c.parameters)
		}
	}
}

func TestDSNParametersConfigure(t *testing.T) {
	want := Policy{8, 20 * time.Millisecond, 2 * time.Second, time.Minute}
	for _, dsn := range []string{
		"host=a pgretry_max_attempts=8 pgretry_base_delay=20ms pgretry_max_delay=2s pgretry_max_elapsed=1m pgretry_mode=off pgretry_also_retry=55P03,23505 pgretry_statement_spans=true",
		"postgres://a/?pgretry_max_attempts=8&pgretry_base_delay=20ms&pgretry_max_delay=2s&pgretry_max_elapsed=1m&pgretry_mode=off&pgretry_also_retry=55P03%2C+23505&pgretry_statement_spans=true",
	} {
		connector, err := (&Driver{options: []Option{WithPolicy(Policy{MaxAttempts: 3}), WithMode(ModeClosure)}}).OpenConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		c := connector.(*Connector).config
		if c.policy != want || c.mode != ModeOff || !slices.Equal(c.alsoRetry, []string{"55P03", "23505"}) || !c.statementSpans {
			t.Errorf("%s gives %+v", dsn, c)
		}
	}
}

func TestOneDelayMovesTheOther(t *testing.T) {
	for dsn, want := range map[string][2]time.Duration{
		"pgretry_base_delay=5s":  {5 * time.Second, 5 * time.Second},
		"pgretry_max_delay=5ms":  {5 * time.Millisecond, 5 * time.Millisecond},
		"pgretry_max_delay=50ms": {10 * time.Millisecond, 50 * time.Millisecond},
	} {
		connector, err := (&Driver{}).OpenConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		p := connector.(*Connector).config.policy
		if got := [2]time.Duration{p.BaseDelay, p.MaxDelay}; got != want {
			t.Errorf("%s gives %v, want %v", dsn, got, want)
		}
	}
}

func TestAWrongParameterIsAnErrorOfSQLOpen(t *testing.T) {
	for parameter, want := range map[string]string{
		"pgretry_max_attempts=0":                      `DSN parameter pgretry_max_attempts is "0", allowed is a whole number of 1 or more`,
		"pgretry_max_attempts=-3":                     `pgretry_max_attempts is "-3"`,
		"pgretry_max_attempts=many":                   `pgretry_max_attempts is "many"`,
		"pgretry_max_attempts=99999999999":            `pgretry_max_attempts is "99999999999"`,
		"pgretry_base_delay=10":                       `DSN parameter pgretry_base_delay is "10", allowed is a positive duration such as 10ms`,
		"pgretry_base_delay=-1s":                      `pgretry_base_delay is "-1s"`,
		"pgretry_max_delay=0s":                        `pgretry_max_delay is "0s"`,
		"pgretry_max_elapsed=":                        `pgretry_max_elapsed is ""`,
		"pgretry_mode=on":                             `DSN parameter pgretry_mode is "on", allowed is replay, closure or off`,
		"pgretry_also_retry=40001":                    `pgretry_also_retry is "40001", allowed is a comma-separated list of 0A000`,
		"pgretry_statement_spans=yes":                 `pgretry_statement_spans is "yes", allowed is true or false`,
		"pgretry_attempts=3":                          `unknown DSN parameter pgretry_attempts="3", allowed are pgretry_allowed_functions, pgretry_also_retry, pgretry_base_delay`,
		"pgretry_mode=off&pgretry_mode=off":           `pgretry_mode="off" is given twice`,
		"pgretry_base_delay=2s&pgretry_max_delay=1s":  `pgretry_max_delay is "1s", allowed is no less than pgretry_base_delay, which is "2s"`,
		"pgretry_base_delay=1%zz&application_name=%7": `pgretry_base_delay is "1%zz"`,
	} {
		for _, dsn := range []string{
			"postgres://u:s3cret@127.0.0.1/d?" + parameter,
			"user=u password=s3cret host=127.0.0.1 " + strings.ReplaceAll(parameter, "&", " "),
		} {
			_, err := sql.Open(DriverName, dsn)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s:\n got %v\nwant %s", dsn, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the password is in %v", err)
			}
		}
	}
}

func TestAPasswordIsNeverInAnError(t *testing.T) {
	for _, dsn := range []string{
		"postgres://user:s3cret/x@127.0.0.1/d", // an unescaped slash
		"postgres://user:s3cret#x@127.0.0.1/d",
		"postgres://user:%zzs3cret@127.0.0.1/d",
		"postgres://user:s3cret@127.0.0.1:s3cret/d",
		"postgres://user: s3cret@127.0.0.1/d",
		"user=u password=a s3cret",
		"user=u password='s3cret",
		"password=s3cret port=no",
		"password=s3cret sslmode=no",
		`password=s3cret\`,
	} {
		db, err := sql.Open(DriverName, dsn)
		if err == nil {
			err = db.Ping()
			if closeErr := db.Close(); closeErr != nil {
				t.Error(closeErr)
			}
		}
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s gives %v, want an error without the password", dsn, err)
		}
	}
}

func TestTheEmptyDSNTakesTheEnvironment(t *testing.T) {
	t.Setenv("PGHOST", "127.0.0.9")
	t.Setenv("PGPORT", "4711")
	t.Setenv("PGDATABASE", "shop")
	connector, err := (&Driver{}).OpenConnector("")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range connector.(*Connector).config.attributes {
		got = append(got, string(a.Key)+"="+a.Value.String())
	}
	if want := []string{"db.namespace=shop", "server.address=127.0.0.9", "server.port=4711"}; !slices.Equal(got, want) {
		t.Errorf("attributes are %v, want %v", got, want)
	}
}

// oldDriver is a driver from before connectors.
type oldDriver struct{ opened *[]string }

func (d oldDriver) Open(name string) (driver.Conn, error) {
	*d.opened = append(*d.opened, name)
	return nil, errors.New("nobody home")
}

func TestWrapDriverKeepsOurParametersFromTheInnerDriver(t *testing.T) {
	var opened []string
	sql.Register("pgretry-test-old", WrapDriver(oldDriver{&opened}, WithPolicy(Policy{MaxAttempts: 2})))
	db, err := sql.Open("pgretry-test-old", "host=a pgretry_mode=off")
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Ping(); err == nil || err.Error() != "nobody home" {
		t.Errorf("Ping gives %v, want the inner driver's error", err)
	}
	if !slices.Equal(opened, []string{"host=a"}) {
		t.Errorf("the inner driver was asked for %q", opened)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func TestLibPQByAnyWayTellsWhereItConnectsTo(t *testing.T) {
	for name, d := range map[string]*Driver{"registered": {}, "wrapped": WrapDriver(&pq.Driver{}), "wrapped value": WrapDriver(pq.Driver{})} {
		connector, err := d.OpenConnector("postgres://u@db1:4711/shop")
		if err != nil {
			t.Fatal(err)
		}
		if n := len(connector.(*Connector).config.attributes); n != 3 {
			t.Errorf("%s: %d attributes, want 3", name, n)
		}
	}
}

func FuzzParseDSN(f *testing.F) {
	f.Add("host=a pgretry_mode=off")
	f.Add("postgres://u:p@h/d?pgretry_mode=off&x=y#z")
	f.Add(`pgretry_a='\`)
	f.Fuzz(func(t *testing.T, name string) {
		d, err := parseDSN(name)
		if err != nil {
			return
		}
		again, err := parseDSN(d.inner)
		if err != nil {
			t.Fatalf("%q leaves %q, which gives %v", name, d.inner, err)
		}
		if len(again.parameters) > 0 && len(d.parameters) > 0 {
			t.Errorf("%q leaves %q, in which there are still %v", name, d.inner, again.parameters)
		}
	})
}
