package sqltext

import "strings"

type tokenKind uint8

const (
	tokenEnd       tokenKind = iota // the end of the text; in a statement's history: its start
	tokenWord                       // an unquoted identifier or keyword
	tokenQuoted                     // "…" or U&"…"
	tokenLiteral                    // a string of any kind, its continuations included
	tokenNumber                     //
	tokenParameter                  // $1
	tokenCast                       // ::
	tokenSymbol                     // any other single character
)

type token struct {
	kind       tokenKind
	symbol     byte // of a tokenSymbol
	word       word // of a tokenWord
	rows       bool // of a ')' that ends a frame with rows
	start, end int
}

func (t token) is(symbol byte) bool  { return t.kind == tokenSymbol && t.symbol == symbol }
func (t token) isWord(w wordID) bool { return t.kind == tokenWord && t.word.id == w }
func (t token) isName() bool         { return t.kind == tokenWord || t.kind == tokenQuoted }

// lexer cuts a text into tokens as PostgreSQL's scan.l does with
// standard_conforming_strings on and an encoding whose multi-byte characters
// consist of bytes above 0x7F only, such as UTF-8. A text whose literals would
// end elsewhere with standard_conforming_strings off is suspicious.
type lexer struct {
	text       string
	pos        int
	suspicious bool
}

// Characters by the part they can play.
const (
	charSpace      = 1 << iota
	charIdentStart // letters, '_' and every byte above 0x7F
	charDigit
	charSymbol // operators and punctuation
)

var charClass = func() (class [256]uint8) {
	for _, c := range " \t\n\r\f\v" {
		class[c] = charSpace
	}
	for c := range class {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= 0x80:
			class[c] = charIdentStart
		case c >= '0' && c <= '9':
			class[c] = charDigit
		}
	}
	for _, c := range "~!@#^&|`?+-*/%<>=,()[].;:" {
		class[c] = charSymbol
	}
	return class
}()

func (l *lexer) at(i int) byte {
	if i < len(l.text) {
		return l.text[i]
	}
	return 0
}

func (l *lexer) is(i int, class uint8) bool {
	return i < len(l.text) && charClass[l.text[i]]&class != 0
}

// name returns what a word or a quoted identifier says as the server compares
// it, uncut: folded or without its quotes. Escapes in U&"…" are left.
func (l *lexer) name(t token) string {
	s := l.text[t.start:t.end]
	switch {
	case t.kind == tokenWord:
		return lower(s)
	case t.kind == tokenQuoted && len(s) >= 2 && s[0] == '"':
		s = strings.TrimSuffix(s[1:], `"`)
		if strings.Contains(s, `""`) {
			s = strings.ReplaceAll(s, `""`, `"`)
		}
	}
	return s
}

// next returns the next token. It always moves forward until it returns
// tokenEnd.
func (l *lexer) next() token {
	l.skipBlank()
	start := l.pos
	if start >= len(l.text) {
		return token{start: start, end: start}
	}
	t := token{kind: tokenSymbol, start: start}
	c := l.text[start]
	switch class := charClass[c]; {
	case class&charIdentStart != 0:
		t.kind = l.wordOrPrefixed(c)
		if t.kind == tokenWord {
			t.word = lookupWord(l.text[start:l.pos])
		}
	case c == '\'':
		l.pos++
		l.literal(backslashMayEscape)
		t.kind = tokenLiteral
	case c == '"':
		l.pos++
		l.quotedIdentifier()
		t.kind = tokenQuoted
	case c == '$':
		t.kind = l.dollar()
		t.symbol = c
	case class&charDigit != 0, c == '.' && l.is(start+1, charDigit):
		l.number()
		t.kind = tokenNumber
	case c == ':' && l.at(start+1) == ':':
		l.pos += 2
		t.kind = tokenCast
	default:
		if class&charSymbol == 0 {
			l.suspicious = true // the server knows no such character outside quotes
		}
		l.pos++
		t.symbol = c
	}
	t.end = l.pos
	return t
}

// skipBlank moves past white space and comments.
func (l *lexer) skipBlank() {
	for l.pos < len(l.text) {
		switch c := l.text[l.pos]; {
		case charClass[c]&charSpace != 0:
			l.pos++
		case c == '-' && l.at(l.pos+1) == '-':
			l.lineComment()
		case c == '/' && l.at(l.pos+1) == '*':
			l.blockComment()
		default:
			return
		}
	}
}

func (l *lexer) lineComment() {
	for l.pos < len(l.text) && l.text[l.pos] != '\n' && l.text[l.pos] != '\r' {
		l.pos++
	}
}

// blockComment moves past a comment; they nest.
func (l *lexer) blockComment() {
	depth := 0
	for l.pos < len(l.text) {
		switch c := l.text[l.pos]; {
		case c == '/' && l.at(l.pos+1) == '*':
			depth++
			l.pos += 2
		case c == '*' && l.at(l.pos+1) == '/':
			depth--
			l.pos += 2
			if depth == 0 {
				return
			}
		default:
			l.pos++
		}
	}
	l.suspicious = true
}

// wordOrPrefixed reads an identifier, or a literal or quoted identifier whose
// prefix looks like one.
func (l *lexer) wordOrPrefixed(c byte) tokenKind {
	next := l.at(l.pos + 1)
	switch c {
	case 'e', 'E':
		if next == '\'' {
			l.pos += 2
			l.literal(backslashEscapes)
			return tokenLiteral
		}
	case 'n', 'N':
		if next == '\'' {
			l.pos += 2
			l.literal(backslashMayEscape)
			return tokenLiteral
		}
	case 'b', 'B', 'x', 'X':
		if next == '\'' {
			l.pos += 2
			l.literal(backslashIsPlain)
			return tokenLiteral
		}
	case 'u', 'U':
		if next != '&' {
			break
		}
		switch l.at(l.pos + 2) {
		case '\'': // refused if standard_conforming_strings is off
			l.pos += 3
			l.literal(backslashIsPlain)
			return tokenLiteral
		case '"':
			// Its escapes, with a character of the author's choice, can spell
			// any name at all.
			l.suspicious = true
			l.pos += 3
			l.quotedIdentifier()
			return tokenQuoted
		}
	}
	for l.is(l.pos, charIdentStart|charDigit) || l.at(l.pos) == '$' {
		l.pos++
	}
	return tokenWord
}

// backslash says what one does in a literal.
type backslash uint8

const (
	backslashIsPlain   backslash = iota
	backslashEscapes             // E'…'
	backslashMayEscape           // '…', if standard_conforming_strings is off
)

// literal moves past a string whose opening quote has been read, and past its
// continuations: string parts with nothing but white space and a new line
// between them are one string, and the later parts keep the escapes of the
// first.
func (l *lexer) literal(b backslash) {
	for {
		if !l.literalPart(b) {
			l.suspicious = true
			return
		}
		after := l.continuation()
		if after < 0 {
			return
		}
		l.pos = after
	}
}

// literalPart moves past the closing quote. It reports whether there was one.
func (l *lexer) literalPart(b backslash) bool {
	for l.pos < len(l.text) {
		c := l.text[l.pos]
		l.pos++
		switch {
		case c == '\'' && l.at(l.pos) == '\'':
			l.pos++
		case c == '\'':
			return true
		case c == '\\' && b != backslashIsPlain:
			// Where it may or may not escape, it matters only before a quote:
			// otherwise both readings go on after the next character alike.
			if b == backslashMayEscape && l.at(l.pos) == '\'' {
				l.suspicious = true
				continue
			}
			l.pos = min(l.pos+1, len(l.text))
		}
	}
	return false
}

// continuation returns where the text of a continuation part begins, or -1.
func (l *lexer) continuation() int {
	newLine := false
	for i := l.pos; i < len(l.text); i++ {
		switch c := l.text[i]; {
		case c == '\n' || c == '\r':
			newLine = true
		case charClass[c]&charSpace != 0:
		case c == '-' && l.at(i+1) == '-':
			for i+1 < len(l.text) && l.text[i+1] != '\n' && l.text[i+1] != '\r' {
				i++
			}
		case c == '\'' && newLine:
			return i + 1
		default:
			return -1
		}
	}
	return -1
}

func (l *lexer) quotedIdentifier() {
	for l.pos < len(l.text) {
		c := l.text[l.pos]
		l.pos++
		switch {
		case c == '"' && l.at(l.pos) == '"':
			l.pos++
		case c == '"':
			return
		}
	}
	l.suspicious = true
}

// dollar reads a parameter or a dollar-quoted string.
func (l *lexer) dollar() tokenKind {
	l.pos++
	if l.is(l.pos, charDigit) {
		for l.is(l.pos, charDigit) {
			l.pos++
		}
		if l.is(l.pos, charIdentStart) {
			l.suspicious = true // "$1abc": two tokens before PostgreSQL 15, an error since
		}
		return tokenParameter
	}
	i := l.pos
	if l.is(i, charIdentStart) {
		for l.is(i, charIdentStart|charDigit) {
			i++
		}
	}
	if l.at(i) != '$' {
		l.suspicious = true
		return tokenSymbol
	}
	tag := l.text[l.pos-1 : i+1]
	body := l.text[i+1:]
	length := strings.Index(body, tag)
	if length < 0 {
		l.suspicious = true
		l.pos = len(l.text)
	} else {
		l.pos = i + 1 + length + len(tag)
	}
	return tokenLiteral
}

// number reads a number in any server version's spelling. What follows it
// immediately and looks like a word is one on old servers, a part of the number
// on new ones, and an error in between.
func (l *lexer) number() {
	start := l.pos
	for l.is(l.pos, charDigit) {
		l.pos++
	}
	if l.at(l.pos) == '.' && l.at(l.pos+1) != '.' {
		l.pos++
		for l.is(l.pos, charDigit) {
			l.pos++
		}
	}
	if c := l.at(l.pos); (c == 'e' || c == 'E') && l.pos > start {
		i := l.pos + 1
		if l.at(i) == '+' || l.at(i) == '-' {
			i++
		}
		if l.is(i, charDigit) {
			for l.is(i, charDigit) {
				i++
			}
			l.pos = i
		}
	}
	if l.is(l.pos, charIdentStart) {
		l.suspicious = true
	}
}
