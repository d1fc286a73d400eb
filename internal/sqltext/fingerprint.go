package sqltext

import (
	"bytes"
	"fmt"
	"hash/fnv"
)

// Fingerprint returns 16 hexadecimal digits that texts share if they differ
// only in their data: literals, numbers with their signs, NULL, TRUE, FALSE and
// parameters are all the same, lists of nothing else are as good as their first
// element, and equal rows after VALUES or in a list as good as one. Case,
// quotes that a name does not need, white space, comments and empty statements
// do not matter. Nothing of the data is in it, and it is the same in every
// process and on every machine.
func Fingerprint(text string) string {
	n := normalization{lexer: lexer{text: text}, groups: make([]group, 1, 8)}
	for t := n.lexer.next(); t.kind != tokenEnd; t = n.lexer.next() {
		n.token(t)
	}
	h := fnv.New64a()
	_, _ = h.Write(n.out) // never fails
	return fmt.Sprintf("%016x", h.Sum64())
}

// The kinds of token in a normal form. Each is written before what tells it
// from others of its kind, with a zero byte after.
const (
	normalWord   = 'w'
	normalQuoted = 'q'
	normalSymbol = 's'
	normalValue  = 'v'
)

// symbolLength is that of a symbol of one character in a normal form.
const symbolLength = 3

// group is an open pair of parentheses or brackets, or what is outside all.
type group struct {
	start    int  // of its opening symbol in the normal form
	values   int  // directly in it
	others   int  // what is in it but values and commas
	mayBeRow bool // it stands where a row does

	lastRowStart, lastRowEnd int // of the last row directly in it, in the normal form
}

// normalization writes the normal form of a text.
type normalization struct {
	lexer     lexer
	out       []byte
	groups    []group
	p1, p2    token // the tokens before the current one, in its statement
	semicolon bool  // is owed if another statement follows
}

func (n *normalization) top() *group { return &n.groups[len(n.groups)-1] }

func (n *normalization) write(kind byte, s string) {
	n.out = append(n.out, kind)
	n.out = append(n.out, s...)
	n.out = append(n.out, 0)
}

func (n *normalization) token(t token) {
	if t.is(';') && len(n.groups) == 1 {
		n.semicolon = len(n.out) > 0
		n.p1, n.p2 = token{}, token{}
		n.groups[0] = group{}
		return
	}
	if n.semicolon {
		n.semicolon = false
		n.write(normalSymbol, ";")
	}
	switch {
	case t.is('('), t.is('['):
		n.open(t)
	case (t.is(')') || t.is(']')) && len(n.groups) > 1:
		n.close(t)
	case n.isValue(t):
		n.value(t)
	default:
		if !t.is(',') {
			n.top().others++
		}
		n.write(n.normal(t))
	}
	n.p2, n.p1 = n.p1, t
}

func (n *normalization) open(t token) {
	outer := n.top()
	outer.others++
	inner := group{start: len(n.out)}
	inner.mayBeRow = n.p1.isWord(wordValues) || n.p1.is('(') || n.p1.is('[') || n.followsRow()
	n.write(normalSymbol, string(t.symbol))
	n.groups = append(n.groups, inner)
}

// followsRow reports whether nothing but a comma is between the last row in the
// current group and the current token.
func (n *normalization) followsRow() bool {
	g := n.top()
	return n.p1.is(',') && g.lastRowEnd > 0 && len(n.out) == g.lastRowEnd+symbolLength
}

func (n *normalization) close(t token) {
	g := *n.top()
	n.groups = n.groups[:len(n.groups)-1]
	if g.values > 1 && g.others == 0 {
		n.out = n.out[:g.start+symbolLength]
		n.write(normalValue, "")
	}
	n.write(normalSymbol, string(t.symbol))
	if !g.mayBeRow {
		return
	}
	outer := n.top()
	if g.start == outer.lastRowEnd+symbolLength && outer.lastRowEnd > 0 &&
		bytes.Equal(n.out[outer.lastRowStart:outer.lastRowEnd], n.out[g.start:]) {
		n.out = n.out[:outer.lastRowEnd]
		return
	}
	outer.lastRowStart, outer.lastRowEnd = g.start, len(n.out)
}

// isValue reports whether t is data or a place for it.
func (n *normalization) isValue(t token) bool {
	switch t.kind {
	case tokenLiteral, tokenNumber, tokenParameter:
		return true
	}
	switch t.word.id {
	case wordNull, wordTrue, wordFalse: // unless an operator, a constraint or a name
		return !n.p1.isWord(wordIs) && !n.p1.isWord(wordNot) && !n.p1.isWord(wordAs) && !n.p1.is('.')
	case wordDefault: // in a row
		return n.p1.is('(') || n.p1.is(',')
	}
	return false
}

func (n *normalization) value(t token) {
	g := n.top()
	if t.kind == tokenNumber && n.isSign() {
		n.out = n.out[:len(n.out)-symbolLength]
		g.others--
	}
	g.values++
	n.write(normalValue, "")
}

// isSign reports whether the token before a number is its sign.
func (n *normalization) isSign() bool {
	if n.p1.kind != tokenSymbol || n.p2.kind != tokenSymbol || n.p1.symbol != '-' && n.p1.symbol != '+' {
		return false
	}
	switch n.p2.symbol {
	case '(', '[', ',', '=', '<', '>':
		return true
	}
	return false
}

// normal returns a token that is no value such that equal ones are equal.
func (n *normalization) normal(t token) (kind byte, s string) {
	s = n.lexer.text[t.start:t.end]
	switch t.kind {
	case tokenWord:
		return normalWord, clipName(lower(s))
	case tokenQuoted:
		name := clipName(n.lexer.name(t))
		if lookupWord(name) == (word{}) && s[0] == '"' {
			return normalWord, name // the same as unquoted, if that is lower case
		}
		return normalQuoted, name
	}
	return normalSymbol, s
}
