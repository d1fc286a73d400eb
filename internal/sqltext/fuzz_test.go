package sqltext

import (
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzAnalyze(f *testing.F) {
	for _, text := range provenReads {
		f.Add(text)
	}
	for text := range effectsOfTexts {
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
		fingerprint := Fingerprint(text)
		commented := insertBetween(text, tokens, " /* ; commit' /* $$ */ \" */ ")
		if got := Analyze(commented); !reflect.DeepEqual(info, got) {
			t.Errorf("%+v, and with comments between the tokens, in %q, %+v", info, commented, got)
		}
		commented = insertBetween(text, tokens, " -- ; commit ' $$ \" /*\n/**/")
		if got := Analyze(commented); !reflect.DeepEqual(info, got) {
			t.Errorf("%+v, and with comments between the tokens, in %q, %+v", info, commented, got)
		}
		if got := Fingerprint(commented); got != fingerprint {
			t.Errorf("the fingerprint %s, and with comments between the tokens, in %q, %s", fingerprint, commented, got)
		}
		// A statement before or after is noticed, whatever the text is.
		for _, two := range []string{text + "\n;commit", "commit;" + text} {
			got := Analyze(two)
			if got.ProvenRead && info.Statements > 0 || !got.EndsTx || got.Statements != info.Statements+1 {
				t.Errorf("%q: %+v", two, got)
			}
			if info.Statements > 0 && (got.Hazard != HazardTxControl || got.OwnRows || got.Savepoint != "") {
				t.Errorf("%q: %+v", two, got)
			}
			if got.SessionState != info.SessionState || got.HiddenEffect != info.HiddenEffect {
				t.Errorf("%q: %+v, but alone %+v", two, got, info)
			}
		}
		for _, two := range []string{text + "\n;set a = 1; notify c", "set a = 1; notify c;" + text} {
			if got := Analyze(two); !got.SessionState || !got.HiddenEffect {
				t.Errorf("%q: %+v", two, got)
			}
		}
	})
}

func FuzzFingerprint(f *testing.F) {
	for _, text := range []string{ormSelect, ormInsert, ormUpdate} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fingerprint := Fingerprint(text)
		if again := Fingerprint(strings.Clone(text)); again != fingerprint || len(again) != 16 || strings.Trim(again, "0123456789abcdef") != "" {
			t.Errorf("first %s, then %s", fingerprint, again)
		}
		tokens := tokensOf(t, text)
		if Analyze(text).Suspicious {
			return
		}
		// Other data, in other white space, with other capitals.
		var b strings.Builder
		for _, token := range tokens {
			b.WriteString("\n")
			switch token.kind {
			case tokenLiteral:
				b.WriteString("/**/ 'x'")
			case tokenNumber:
				b.WriteString("7")
			case tokenParameter:
				b.WriteString("$8")
			case tokenWord:
				b.WriteString(capitals(text[token.start:token.end]))
			default:
				b.WriteString(text[token.start:token.end])
			}
		}
		b.WriteString(";")
		if got := Fingerprint(b.String()); got != fingerprint {
			t.Errorf("%s, and of %q: %s", fingerprint, b.String(), got)
		}
	})
}

// capitals is the opposite of lower.
func capitals(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

func FuzzSavepoint(f *testing.F) {
	for _, name := range []string{"s", "Sp1", `a"b`, strings.Repeat("\u00e9", 40)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clipped := clipName(name)
		if len(clipped) > longestName || !strings.HasPrefix(name, clipped) || utf8.ValidString(name) && !utf8.ValidString(clipped) ||
			len(name) > len(clipped) && len(clipped) < longestName-utf8.UTFMax {
			t.Errorf("%q is cut to %q", name, clipped)
		}
		quoted := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		want := clipped
		if strings.Contains(name, "\x00") {
			want = "" // where the server's text ends
		}
		for _, command := range []string{"savepoint", "release", "release savepoint", "rollback to", "rollback work to savepoint"} {
			if got := Analyze(command + quoted).Savepoint; got != want {
				t.Errorf("%s%s: %q, want %q", command, quoted, got, want)
			}
			// Unquoted it is a name only if it reads as one.
			got := Analyze(command + " " + name)
			if got.Savepoint != "" && strings.IndexByte(name, '"') < 0 &&
				!strings.Contains(lower(name), got.Savepoint) && got.Savepoint != "savepoint" && got.Savepoint != "to" {
				t.Errorf("%s %s: %q", command, name, got.Savepoint)
			}
		}
	})
}

func FuzzHazardOfFunction(f *testing.F) {
	f.Add("pg_catalog", "setval")
	f.Add("amqp", "publish")
	f.Add("a.b", "pg_advisory_lock_shared")
	f.Fuzz(func(t *testing.T, schema, name string) {
		quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
		info := Analyze("select " + quote(schema) + "." + quote(name) + "(1)")
		if strings.Contains(schema+name, "\x00") {
			if info.Hazard != HazardUnreadable {
				t.Errorf("%+v", info)
			}
			return
		}
		if len(info.Functions) != 1 {
			t.Fatalf("%+v", info)
		}
		var want Hazard
		switch dotted := strings.Contains(name, "."); {
		case dotted || strings.HasSuffix(name, `"`): // no function is called so
		case hazardousSchemas[schema] || hazardousInSchema[schema+"."+name] && !strings.Contains(schema, "."):
			want = HazardOutside
		default:
			want = HazardOfFunction(name)
		}
		if got := HazardOfFunction(info.Functions[0]); got != want || info.Hazard != want || (info.HazardName == "") != (want == HazardNone) {
			t.Errorf("%q: %v, in the text %v in %q, want %v", info.Functions[0], got, info.Hazard, info.HazardName, want)
		}
		if want != HazardNone && (info.CallsOnlyHarmless() || info.ProvenRead || info.OwnRows) {
			t.Errorf("%+v", info)
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
		(info.Keywords&^KeywordsOf(Execute)).Len() > info.Statements { // Execute also for one inside another statement
		t.Errorf("%d statements, first %v, all %b", info.Statements, info.Keyword, info.Keywords)
	}
	if info.ProvenRead && (info.Suspicious || info.Statements != 1 || info.TxControl || info.DataModifying ||
		!info.CallsOnlyHarmless() || !KeywordsOf(Select, Values, Table, With, Show, Explain).Has(info.Keyword)) {
		t.Errorf("no proven read: %+v", info)
	}
	if (info.BeginsTx || info.EndsTx) && !info.TxControl {
		t.Errorf("no transaction control: %+v", info)
	}
	checkHazard(t, info)
	checkEffects(t, info)
	single := info.Statements == 1 && !info.Suspicious
	if info.Savepoint != "" && (!single || !KeywordsOf(Savepoint, Release, RollbackTo).Has(info.Keyword) ||
		len(info.Savepoint) > longestName || info.Hazard != HazardNone) {
		t.Errorf("no savepoint: %+v", info)
	}
	if info.OwnRows && (!single || info.Hazard != HazardNone || info.TxControl || info.DataModifying == (info.Keyword == Select) ||
		!KeywordsOf(Insert, Update, Delete, Select).Has(info.Keyword) || (info.ProvenRead || info.LocksRows) && info.DataModifying) {
		t.Errorf("not its own rows: %+v", info)
	}
	if info.Returning && !info.DataModifying {
		t.Errorf("nothing to return: %+v", info)
	}
	if info.CopyFreeze && !info.Keywords.Has(Copy) || (info.Copy == CopyNone) == info.Keywords.Has(Copy) {
		t.Errorf("no copy: %+v", info)
	}
	if info.AndChain && (!info.BeginsTx || !info.EndsTx) {
		t.Errorf("a chain that does not end or begin: %+v", info)
	}
}

// checkHazard checks that the hazard follows from the other fields.
func checkHazard(t *testing.T, info Info) {
	t.Helper()
	if info.Suspicious != (info.Hazard == HazardUnreadable) ||
		(info.HazardName == "") != (info.Hazard == HazardNone || info.Hazard == HazardUnreadable) {
		t.Errorf("hazard %v in %q of %+v", info.Hazard, info.HazardName, info)
	}
	if control := info.Statements > 1 && info.Keywords.Intersects(transactionCommands); !info.Suspicious &&
		control != (info.Hazard == HazardTxControl) {
		t.Errorf("hazard %v of %+v", info.Hazard, info)
	}
	if info.Hazard != HazardNone {
		return
	}
	if info.WithHold || info.Keywords.Intersects(KeywordsOf(Prepare, Deallocate, Load, Discard, PrepareTransaction,
		CommitPrepared, RollbackPrepared)) || info.Copy == CopyOnServer {
		t.Errorf("no hazard in %+v", info)
	}
	for _, name := range info.Functions {
		if h := HazardOfFunction(name); h != HazardNone {
			t.Errorf("%s: %v, and yet none in %+v", name, h, info)
		}
	}
}

// checkEffects checks that the effects follow from the other fields.
func checkEffects(t *testing.T, info Info) {
	t.Helper()
	nobody := func(string) bool { return false }
	everybody := func(string) bool { return true }
	if info.LeavesSessionState(nil) != info.SessionState || info.LeavesSessionState(nobody) != info.SessionState ||
		info.LeavesSessionState(everybody) && !info.SessionState {
		t.Errorf("session state depends on who asks: %+v", info)
	}
	if command := info.Suspicious || info.WithHold || info.Temporary || info.Keywords.Intersects(KeywordsOf(Set, Reset, Discard,
		Listen, Unlisten, Prepare, Deallocate, Load, Do, Call, Execute)); command && !info.LeavesSessionState(everybody) {
		t.Errorf("no session state: %+v", info)
	}
	if (info.Suspicious || info.Keywords.Intersects(KeywordsOf(Notify, Do, Call, Execute))) && !info.HiddenEffect {
		t.Errorf("no hidden effect: %+v", info)
	}
	harmless := info.CallsOnlyHarmless()
	if harmless && info.SessionState != info.LeavesSessionState(everybody) {
		t.Errorf("session state by functions that are harmless: %+v", info)
	}
	if info.ProvenRead && (info.SessionState && !info.Temporary || info.HiddenEffect) {
		t.Errorf("a proven read with an effect: %+v", info)
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
