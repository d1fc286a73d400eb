package pgretry

import (
	"fmt"
	"strings"
)

// functionPattern names a function, or all whose names begin alike.
type functionPattern struct {
	schema string // "" means any
	name   string
	prefix bool
}

// functionPatterns is a user's list of functions.
type functionPatterns []functionPattern

func newFunctionPatterns(option string, names []string) (functionPatterns, error) {
	patterns := make(functionPatterns, 0, len(names))
	for _, given := range names {
		name, prefix := strings.CutSuffix(given, "*")
		schema, own, qualified := strings.Cut(name, ".")
		if !qualified {
			schema, own = "", name
		}
		if own == "" && !prefix || qualified && schema == "" || strings.ContainsAny(name, "*\"() ,;") || strings.Contains(own, ".") {
			return nil, fmt.Errorf(`pgretry: %q given to %s is not the name of a function, allowed are names such as "send", "audit_*", "billing.charge"`, given, option)
		}
		patterns = append(patterns, functionPattern{schema: schema, name: own, prefix: prefix})
	}
	return patterns, nil
}

// match says whether a function is on the list. Its name is as sqltext.Info has it.
func (p functionPatterns) match(name string) bool {
	schema, own := splitFunction(name)
	for _, pattern := range p {
		if pattern.schema != "" && schema != "" && pattern.schema != schema {
			continue
		}
		if pattern.prefix && strings.HasPrefix(own, pattern.name) || !pattern.prefix && own == pattern.name {
			return true
		}
	}
	return false
}

// splitFunction takes a name apart at its last dot outside quotes.
func splitFunction(name string) (schema, own string) {
	if strings.HasSuffix(name, `"`) {
		// The own name holds a dot and so has kept its quotes.
		if i := strings.LastIndex(name, `."`); i >= 0 {
			schema, name = name[:i], name[i+1:]
		}
		return schema, strings.ReplaceAll(strings.Trim(name, `"`), `""`, `"`)
	}
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}
