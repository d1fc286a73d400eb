package compat

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// modulesOf are the modules of the libraries in the README's table.
var modulesOf = map[string]string{
	"gorm": "gorm.io/gorm", "ent": "entgo.io/ent", "bun": "github.com/uptrace/bun", "sqlx": "github.com/jmoiron/sqlx",
	"sqlboiler": "github.com/aarondl/sqlboiler/v4", "xorm": "xorm.io/xorm", "upper/db": "github.com/upper/db/v4",
	"squirrel": "github.com/Masterminds/squirrel", "goose": "github.com/pressly/goose/v3",
	"golang-migrate": "github.com/golang-migrate/migrate/v4", "pgx inside": "github.com/jackc/pgx/v5",
}

// tableBelow returns the cells of the first table below a heading of the README, row by row.
func tableBelow(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, below, _ := strings.Cut(string(readme), "\n"+heading+"\n")
	for line := range strings.Lines(below) {
		if !strings.HasPrefix(line, "|") {
			if len(rows) > 0 {
				break
			}
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), " | ") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("there is no table below %s", heading)
	}
	return rows[2:]
}

var (
	linkText = regexp.MustCompile(`\[([^]]*)\]\([^)]*\)`)
	testName = regexp.MustCompile("`(Test\\w+)`")
)

// testsHere returns the names of all tests in the repository's files.
func testsHere(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	definition := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	for _, pattern := range []string{"../*_test.go", "../*/*_test.go", "../*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range definition.FindAllStringSubmatch(string(content), -1) {
				found[match[1]] = filepath.Dir(file)
			}
		}
	}
	return found
}

func TestTheREADMEsTableOfLibrariesIsTrue(t *testing.T) {
	tests := testsHere(t)
	seen := make(map[string]bool)
	for _, row := range tableBelow(t, "## With what you use") {
		name, version, where := linkText.ReplaceAllString(row[0], "$1"), row[1], row[len(row)-1]
		seen[name] = true
		if module := modulesOf[name]; module != "" {
			list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", module)
			list.Env = append(os.Environ(), "GOWORK=off")
			out, err := list.Output()
			if used := strings.TrimSpace(string(out)); err != nil || used != version {
				t.Errorf("%s is run in version %s, the README says %s, %v", name, used, version, err)
			}
		}
		named := testName.FindAllStringSubmatch(where, -1)
		if len(named) == 0 && name != "pgx inside" {
			t.Errorf("%s names no test", name)
		}
		for _, test := range named {
			if dir, ok := tests[test[1]]; !ok || strings.Contains(where, "](compat/") && !strings.Contains(where, "]("+strings.TrimPrefix(filepath.ToSlash(filepath.Join("compat", dir)), "./")+")") {
				t.Errorf("%s: the test %s is in %q", name, test[1], dir)
			}
		}
	}
	for name := range modulesOf {
		if !seen[name] {
			t.Errorf("%s is not in the table", name)
		}
	}
	// Every library that has a package is in the table.
	packages, err := filepath.Glob("*/app_test.go")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range packages {
		if !strings.Contains(string(readme), "](compat/"+filepath.ToSlash(filepath.Dir(file))+")") {
			t.Errorf("%s is not in the table", filepath.Dir(file))
		}
	}
}

func TestTheREADMEsTableOfEnginesNamesTestsThatAreThere(t *testing.T) {
	tests := testsHere(t)
	for _, row := range tableBelow(t, "### On what it runs") {
		where := row[len(row)-1]
		if len(row) != 4 {
			t.Errorf("%s has %d cells", row[0], len(row))
		}
		for _, test := range testName.FindAllStringSubmatch(where, -1) {
			if _, ok := tests[test[1]]; !ok {
				t.Errorf("%s: there is no test %s", row[0], test[1])
			}
		}
		if row[1] != "not run" && where != "all" && !strings.Contains(where, "`./check`") && !testName.MatchString(where) {
			t.Errorf("%s names no test", row[0])
		}
	}
}

// The version of sqlc is its generator's, which writes it into what it generates.
func TestTheREADMEsVersionOfSQLCIsTheGenerators(t *testing.T) {
	generated, err := os.ReadFile("sqlc/store/query.sql.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range tableBelow(t, "## With what you use") {
		if linkText.ReplaceAllString(row[0], "$1") == "sqlc" {
			if !strings.Contains(string(generated), "sqlc "+row[1]+"\n") {
				t.Errorf("the README says %s", row[1])
			}
			return
		}
	}
	t.Error("sqlc is not in the table")
}
