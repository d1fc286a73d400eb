package sqltext

import (
	"reflect"
	"strings"
	"testing"
)

func FuzzAnalyze(f *testing.F) {
	for _, text := range provenReads {
		f.Add(text)
	}
	cache := NewCache(8, 200)
	f.Fuzz(func(t *testing.T, text string) {
		info := Analyze(text)
		if again := Analyze(strings.Clone(text)); !reflect.DeepEqual(info, again) {
			t.Errorf("first %+v, then %+v", info, again)
		}
		for range 2 {
			if cached := cache.Analyze(text); !reflect.DeepEqual(info, *cached) {
				t.Errorf("the cache says %+v, not %+v", *cached, info)
			}
		}
		tokens := tokensOf(t, text)
		checkFields(t, info, len(tokens))
		if info.Suspicious {
			return
		}
		commented := insertBetween(text, tokens, " /* ; commit' /* $$ */ \" */ ")
		if got := Analyze(commented); !reflect.DeepEqual(info, got) {
			t.Errorf("%+v, and with comments between the tokens, in %q, %+v", info, commented, got)
		}
		commented = insertBetween(text, tokens, " -- ; commit ' $$ \" /*\n/**/")
		if got := Analyze(commented); !reflect.DeepEqual(info, got) {
			t.Errorf("%+v, and with comments between the tokens, in %q, %+v", info, commented, got)
		}
		// A statement before or after is noticed, whatever the text is.
		for _, two := range []string{text + "\n;commit", "commit;" + text} {
			got := Analyze(two)
			if got.ProvenRead && info.Statements > 0 || !got.EndsTx || got.Statements != info.Statements+1 {
				t.Errorf("%q: %+v", two, got)
			}
		}
	})
}

// checkFields checks what must hold between the fields of any result.
func checkFields(t *testing.T, info Info, tokens int) {
	t.Helper()
	if info.Statements > tokens {
		t.Errorf("%d statements of %d tokens", info.Statements, tokens)
	}
	if (info.Statements == 0) != (info.Keyword == None) || info.Statements > 0 && !info.Keywords.Has(info.Keyword) ||
		info.Keywords.Len() > info.Statements {
		t.Errorf("%d statements, first %v, all %b", info.Statements, info.Keyword, info.Keywords)
	}
	if info.ProvenRead && (info.Suspicious || info.Statements != 1 || info.TxControl || info.DataModifying ||
		!info.CallsOnlyHarmless() || !KeywordsOf(Select, Values, Table, With, Show, Explain).Has(info.Keyword)) {
		t.Errorf("no proven read: %+v", info)
	}
	if (info.BeginsTx || info.EndsTx) && !info.TxControl {
		t.Errorf("no transaction control: %+v", info)
	}
	if info.AndChain && (!info.BeginsTx || !info.EndsTx) {
		t.Errorf("a chain that does not end or begin: %+v", info)
	}
}

// tokensOf returns the tokens of a text, which do not overlap and leave only
// white space and comments between them.
func tokensOf(t *testing.T, text string) []token {
	t.Helper()
	l := lexer{text: text}
	var tokens []token
	end := 0
	for {
		next := l.next()
		if next.start < end || next.end > len(text) || next.kind != tokenEnd && next.end <= next.start {
			t.Fatalf("after %d the token %+v", end, next)
		}
		end = next.end
		if next.kind == tokenEnd {
			return tokens
		}
		tokens = append(tokens, next)
	}
}

// insertBetween returns the tokens of a text with something else around them.
func insertBetween(text string, tokens []token, between string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString(between)
		b.WriteString(text[t.start:t.end])
	}
	b.WriteString(between)
	return b.String()
}
