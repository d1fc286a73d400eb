package sqltext

import (
	"slices"
	"strings"
)

// invalidating commands may change what the names in other statements refer to, or what
// the session has prepared.
var invalidatingCommands = KeywordsOf(Other, Execute, Deallocate, Call, Do, Set, SetLocal, Reset, Discard, Load, DDL)

// InvalidatesPrepared reports whether executing the text may change what another
// statement that the session has prepared means, or drop it: DDL, SELECT INTO, temporary
// objects; SET, RESET and set_config, of search_path or the role for example; DISCARD and
// DEALLOCATE; DO, CALL, EXECUTE; a statement this package knows nothing about; a function
// whose effect is not known, unless allowed, which is given names as in Functions, accepts
// it. nil accepts none. text is the one that the Info is of.
func (i *Info) InvalidatesPrepared(text string, allowed func(name string) bool) bool {
	if i.ProvenRead {
		return false
	}
	if i.Suspicious || i.Temporary || i.Keywords.Intersects(invalidatingCommands) {
		return true
	}
	if i.Keywords.Intersects(KeywordsOf(Select, With, Explain)) && !i.DataModifying {
		if lower := strings.ToLower(text); strings.Contains(lower, "into") || i.Keywords.Has(Explain) && strings.Contains(lower, "create") {
			return true
		}
	}
	return slices.ContainsFunc(i.Functions, func(name string) bool {
		if name == settingNames[settingBare] || name == settingNames[settingQualified] {
			return true
		}
		return effectOf(name) == effectOnSession|effectHidden && (allowed == nil || !allowed(name))
	})
}
