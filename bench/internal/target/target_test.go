package target

import "testing"

func TestAddressesAreFoundAndReplacedInBothPlaces(t *testing.T) {
	for _, test := range []struct{ dsn, address, via string }{
		{"postgres://me@db:5433/d?sslmode=disable", "db:5433", "postgres://me@relay:1/d?sslmode=disable"},
		{"postgres://me:a%20b@db/d", "db:5432", "postgres://me:a%20b@relay:1/d"},
		{"postgres://me@[::1]:5433/d", "[::1]:5433", "postgres://me@relay:1/d"},
		{"postgres:///?dbname=d&host=db&port=5433&user=a%20b", "db:5433", "postgres://relay:1/?dbname=d&user=a%20b"},
		{"postgres:///?host=%2Frun%2Fpostgresql", "", ""},
		{"postgres:///d", "", ""},
	} {
		address, ok := Address(test.dsn)
		if address != test.address || ok != (test.address != "") {
			t.Errorf("%s: got %q %t, want %q", test.dsn, address, ok, test.address)
		}
		if !ok {
			continue
		}
		if via, err := Via(test.dsn, "relay:1"); err != nil || via != test.via {
			t.Errorf("%s: got %q, %v, want %q", test.dsn, via, err, test.via)
		}
	}
}

func TestSettingsAreAddedToBothFormsOfConnectionStrings(t *testing.T) {
	settings := Settings{"search_path": "s", "deadlock_timeout": "10ms"}
	for dsn, want := range map[string]string{
		"postgres://me@db/d?search_path=public": "postgres://me@db/d?deadlock_timeout=10ms&search_path=s",
		"host=/tmp user=me":                     "host=/tmp user=me deadlock_timeout=10ms search_path=s",
	} {
		if got := with(dsn, settings); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
