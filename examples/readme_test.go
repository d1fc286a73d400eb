package examples

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTheREADMEListsEveryFolder(t *testing.T) {
	var listed, folders []string
	for _, row := range regexp.MustCompile(`(?m)^\| \[(.*?)\]\((.*?)\) \| \S.* \|$`).FindAllStringSubmatch(readme(t), -1) {
		if row[1] != row[2] {
			t.Errorf("%s leads to %s", row[1], row[2])
		}
		listed = append(listed, row[2])
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			folders = append(folders, entry.Name())
		}
	}
	slices.Sort(listed)
	if !slices.Equal(listed, folders) {
		t.Errorf("it lists %q, the folders are %q", listed, folders)
	}
}

// What the tests do in paste is what the README tells.
func TestTheREADMETellsHowToPasteAProgram(t *testing.T) {
	for _, line := range []string{
		"go mod init closure",
		"go mod edit -replace " + modulePath + "=../pgretry",
		"go mod tidy",
		"go run . \"",
	} {
		if !strings.Contains(readme(t), "\n"+line) {
			t.Errorf("it has no line %q", line)
		}
	}
	if name := modFile(t, "ent").Module.Path; !strings.Contains(readme(t), "called `"+name+"`") {
		t.Errorf("it does not say that ent's module is called %s", name)
	}
}

func readme(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
