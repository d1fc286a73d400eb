package sqltext

import "unicode/utf8"

// longestName is how many bytes of an identifier the server keeps, unless it
// was built with another NAMEDATALEN.
const longestName = 63

// clipName cuts a name as the server does: never within a character. What is
// not UTF-8 the server refuses anyway.
func clipName(name string) string {
	if len(name) <= longestName {
		return name
	}
	end := longestName
	for end > longestName-utf8.UTFMax && !utf8.RuneStart(name[end]) {
		end--
	}
	return name[:end]
}

// savepointName returns the name in the statement that is over, of kind k, if
// the grammar has a place for one as its last token: every word before belongs
// to the command. RELEASE SAVEPOINT without a name is about a savepoint called
// so, for SAVEPOINT is no reserved word.
func (a *analysis) savepointName(k Keyword) string {
	words := 0 // of the command, before the name
	switch k {
	case Savepoint:
		words = 1
	case Release:
		words = 1
	case RollbackTo:
		words = 2
		if a.head[0] != wordRollback {
			return "" // ABORT knows no TO
		}
		if a.head[1] != wordTo {
			words = 3
		}
	default:
		return ""
	}
	if k != Savepoint && a.tokens == words+2 && a.p2.isWord(wordSavepoint) {
		words++
	}
	if a.tokens != words+1 || !a.p1.isName() || a.p1.word.class&classReserved != 0 ||
		a.p1.kind == tokenQuoted && a.lexer.text[a.p1.start] != '"' {
		return ""
	}
	return clipName(a.partName(a.p1))
}
