package sqltext

import (
	"slices"
	"strings"
)

// Analyze looks at a text of any length and content in one pass and time
// proportional to it. Equal texts give equal answers.
func Analyze(text string) Info {
	var a analysis
	a.lexer.text = text
	a.frames = a.firstFrames[:1]
	a.lexer.suspicious = strings.IndexByte(text, 0) >= 0 // the server's text ends there
	for {
		t := a.lexer.next()
		if t.kind == tokenEnd {
			break
		}
		a.token(t)
	}
	a.endStatement()
	a.finish()
	return a.info
}

// frame is what is known about one level of parentheses or brackets.
type frame struct {
	open     byte // 0 at top level
	cast     bool // CAST(…)
	distinct bool // DISTINCT ON (…)
	rows     bool // a query or the arguments of a function: a name that follows is an alias
	setting  settingCall
	commas   uint8 // up to 3
	with     withState
}

// withState follows a WITH list, so that the column list of a common table
// expression is not taken for a function call.
type withState uint8

const (
	withNone      withState = iota
	withBegun               // WITH
	withName                // WITH RECURSIVE, or a comma: a name is next
	withAfterName           // the name, perhaps its columns
	withAs                  // AS, perhaps [NOT] MATERIALIZED
	withAfterBody           // the statement in parentheses
	withSearch              // SEARCH or CYCLE
	withSearchSet           // the SET of these
)

// nameRole is what a name can be, judged by what stands before it.
type nameRole uint8

const (
	roleExpression nameRole = iota // a column, a function, anything
	roleNoFunction                 // a relation, an alias, a common table expression
	roleType
)

type typeState uint8

const (
	typeNone     typeState = iota
	typeExpected           // after :: or the AS of a CAST
	typeSchema             // after pg_catalog there
)

// explainState follows an EXPLAIN up to the statement it explains.
type explainState uint8

const (
	explainNone    explainState = iota
	explainBegun                // EXPLAIN
	explainOptions              // inside the parentheses of its options
	explainWords                // after them, or ANALYZE VERBOSE
	explainInner                // in the statement
)

// headWords is how many words at the start of a statement decide its kind.
const headWords = 3

// analysis is the state of one pass. The fields of the second group belong to
// the current statement.
type analysis struct {
	lexer       lexer
	info        Info
	frames      []frame
	firstFrames [16]frame
	notRead     bool // something in the text is not understood or not harmless
	own         ownState
	// transactionCommand is the first in the text.
	transactionCommand Keyword

	head       [headWords]wordID
	headLength int
	headClosed bool // the head is over
	headDotted bool // by a dot: its last word begins a dotted name
	tokens     int
	// p1 is the token before the current one, p2 the one before that.
	p1, p2, p3 token

	nameStart int // of the dotted name that p1 ends, if it is a name
	nameParts int
	nameRole  nameRole

	typeState    typeState
	pendingDML   wordID // INSERT and the like, whose next word is awaited
	explain      explainState
	explainHead  wordID
	executes     bool // EXPLAIN with ANALYZE, or not known to be without
	modifies     bool // a word that may modify data or create a table
	locks        bool
	chains       bool // AND CHAIN was read
	bodyExpected bool // the next token begins a common table expression's statement
	copyAwaits   bool // COPY … FROM or TO was read
	copyFrom     bool
	copyKind     CopyKind
	holds        bool // WITH HOLD
	changesRows  bool // INSERT or the like begins the statement, or follows its WITH list
	where        bool // WHERE was read
	computes     bool // a CREATE has come to what it computes at once: a query, the bounds of a partition
	routine      bool // CREATE … FUNCTION or PROCEDURE
	concurrently bool // the word is in it
	atomicDepth  int  // BEGIN ATOMIC and the CASEs in it that have no END yet
}

func (a *analysis) top() *frame { return &a.frames[len(a.frames)-1] }

func (a *analysis) token(t token) {
	if t.is(';') && len(a.frames) == 1 && a.atomicDepth == 0 {
		a.endStatement()
		return
	}
	if a.tokens == 0 {
		a.info.Statements++
	}
	a.tokens++
	a.readHead(t)
	a.checkAwaited(t)
	a.ownRows(t)
	switch t.kind {
	case tokenWord, tokenQuoted:
		a.name(t)
		if t.kind == tokenWord {
			a.word(t)
		} else if a.explain == explainOptions {
			a.executes = true // EXPLAIN ("analyze") is EXPLAIN (ANALYZE)
		}
		a.withName(t)
		if a.copyKind != CopyNone {
			a.copyOption(t)
		}
	case tokenLiteral:
		a.beforeLiteral()
	case tokenCast:
		a.typeState = typeExpected
	case tokenSymbol:
		t = a.symbol(t)
	}
	if a.explain == explainBegun && !t.isWord(wordExplain) {
		a.explain = explainWords
	}
	a.p3, a.p2, a.p1 = a.p2, a.p1, t
}

// readHead keeps the words a statement begins with.
func (a *analysis) readHead(t token) {
	switch {
	case a.headClosed:
	case t.kind == tokenWord && a.headLength < headWords:
		a.head[a.headLength] = t.word.id
		a.headLength++
		if a.headLength == 1 && t.word.id == wordExplain && len(a.frames) == 1 {
			a.explain = explainBegun
		}
	case t.is('(') && a.headLength == 0:
	default:
		a.headClosed = true
		a.headDotted = t.is('.')
	}
}

// checkAwaited looks at what the token before asked for.
func (a *analysis) checkAwaited(t token) {
	if dml := a.pendingDML; dml != wordNone {
		a.pendingDML = wordNone
		if dml == wordUpdate && t.isName() || dml == wordDelete && t.isWord(wordFrom) ||
			(dml == wordInsert || dml == wordMerge || dml == wordUpsert) && t.isWord(wordInto) {
			a.info.DataModifying = a.info.DataModifying || a.explain == explainNone || a.executes
			a.changesRows = a.changesRows || len(a.frames) == 1
		}
	}
	switch a.typeState {
	case typeExpected:
		a.typeState = typeNone
		switch name := a.partName(t); {
		case !t.isName():
			a.notRead = true
		case name == "pg_catalog":
			a.typeState = typeSchema
		case !builtinTypes[name]:
			a.notRead = true
		}
	case typeSchema:
		a.typeState = typeExpected
		if !t.is('.') {
			a.typeState = typeNone
			a.notRead = true
		}
	default:
		if t.is('.') && a.p1.isName() && a.nameRole == roleType {
			a.notRead = true // what looked like a type is a schema
		}
	}
	if a.bodyExpected {
		a.bodyExpected = false
		switch t.word.id {
		case wordSelect, wordValues, wordTable, wordWith:
		case wordInsert, wordUpdate, wordDelete, wordMerge: // seen elsewhere
		default:
			a.notRead = a.notRead || !t.is('(')
		}
	}
	if a.copyAwaits {
		a.copyAwaits = false
		a.copyKind = CopyOnServer
		if t.isWord(wordStdin) || t.isWord(wordStdout) { // the server takes either for either
			a.copyKind = CopyToClient
			if a.copyFrom {
				a.copyKind = CopyFromClient
			}
		}
	}
}

// partName returns a name's token as the server compares it, without quotes.
func (a *analysis) partName(t token) string { return a.lexer.name(t) }

// name begins or continues a dotted name.
func (a *analysis) name(t token) {
	if a.p1.is('.') && a.p2.isName() {
		a.nameParts++
		return
	}
	a.nameStart = t.start
	a.nameParts = 1
	a.nameRole = a.roleOfName()
}

// roleOfName judges by the token before a name.
func (a *analysis) roleOfName() nameRole {
	if a.p1.kind == tokenCast {
		return roleType
	}
	if a.p1.kind != tokenWord || a.dotted(1) {
		return roleExpression
	}
	switch a.p1.word.id {
	case wordAs:
		if a.top().cast {
			return roleType
		}
		return roleNoFunction
	case wordInto, wordReferences:
		return roleNoFunction
	case wordCopy:
		if a.tokens == 2 {
			return roleNoFunction
		}
	case wordTable:
		if a.head[0] == wordCreate {
			return roleNoFunction
		}
	case wordExists:
		if a.head[0] == wordCreate && a.p2.isWord(wordNot) {
			return roleNoFunction
		}
	}
	return roleExpression
}

// dotted reports whether p1 (n = 1) or p2 (n = 2) follows a dot and is
// therefore a column or the like, whatever keyword it looks like.
func (a *analysis) dotted(n int) bool {
	if n == 1 {
		return a.p2.is('.')
	}
	return a.p3.is('.')
}

// word looks at an unquoted word that may be a keyword.
func (a *analysis) word(t token) {
	if a.p1.is('.') {
		return
	}
	id := t.word.id
	if a.explain != explainNone {
		a.explainWord(t)
	}
	if a.head[0] == wordCreate {
		a.routineWord(id)
	}
	switch id {
	case wordInsert, wordUpdate, wordDelete, wordMerge, wordUpsert:
		a.modifies = true
		if a.p1.isWord(wordFor) {
			a.locks = true
		} else if a.mayBeginStatement() {
			a.pendingDML = id
		}
	case wordConcurrently:
		a.concurrently = true
	case wordInto:
		a.modifies = true
	case wordShare:
		a.locks = a.locks || a.p1.isWord(wordFor)
	case wordKey:
		a.locks = a.locks || a.p1.isWord(wordFor)
	case wordNo:
		a.locks = a.locks || a.p1.isWord(wordFor)
	case wordAs:
		if a.top().cast {
			a.typeState = typeExpected
		}
		a.computes = a.computes || a.head[0] == wordCreate && len(a.frames) == 1 && a.makesTable()
	case wordSelect, wordWith:
		a.top().rows = a.top().rows || a.p1.is('(')
	case wordValues:
		a.top().rows = a.top().rows || a.p1.is('(')
		a.computes = a.computes || a.head[0] == wordCreate && a.p1.isWord(wordFor)
	case wordWhere:
		a.where = true
	case wordExecute:
		// CREATE TABLE … AS EXECUTE, EXPLAIN EXECUTE: what it executes was prepared.
		if a.head[0] == wordCreate && a.p1.isWord(wordAs) || a.head[0] == wordExplain && (a.p1.isWord(wordAs) || a.explainHead == wordExecute) {
			a.info.Keywords |= KeywordsOf(Execute)
		}
	case wordChain:
		a.chains = a.chains || a.p1.isWord(wordAnd)
	case wordHold:
		a.holds = a.holds || a.head[0] == wordDeclare && a.p1.isWord(wordWith)
	case wordReturning:
		// After AS it is a label, in parentheses a clause of a JSON function
		// or of a statement in a WITH list.
		if a.changesRows && len(a.frames) == 1 && !a.p1.isWord(wordAs) {
			a.info.Returning = a.info.Returning || a.head[0].modifiesOrWith()
		}
	case wordTemp:
		switch a.p1.word.id {
		case wordCreate, wordReplace, wordInto, wordLocal, wordGlobal:
			a.info.Temporary = true
		}
	case wordFrom, wordTo:
		if a.head[0] == wordCopy && len(a.frames) == 1 && a.tokens > 2 && a.copyKind == CopyNone {
			a.copyAwaits, a.copyFrom = true, id == wordFrom
		}
	}
}

// copyOption looks for the option FREEZE, quoted or not, after the source of a
// COPY: bare as in old versions, or first in an item of the list in
// parentheses. What value it is given does not matter.
func (a *analysis) copyOption(t token) {
	if len(a.frames) == 1 && t.kind == tokenWord || len(a.frames) == 2 && (a.p1.is('(') || a.p1.is(',')) {
		a.info.CopyFreeze = a.info.CopyFreeze || a.partName(t) == "freeze"
	}
}

// mayBeginStatement reports whether INSERT or the like, as the current token,
// can be the first word of a statement, judged by what stands before it.
func (a *analysis) mayBeginStatement() bool {
	if a.p1.kind == tokenEnd || a.p1.is('(') {
		return true
	}
	switch a.head[0] {
	case wordSelect, wordWith, wordValues, wordTable, wordInsert, wordUpdate, wordDelete, wordMerge, wordUpsert,
		wordExplain, wordCopy, wordDeclare:
	default:
		return false
	}
	switch a.p1.word.id {
	case wordDo, wordAs:
		return false
	case wordKey:
		return !a.p2.isWord(wordNo)
	}
	return true
}

// explainWord follows the words of an EXPLAIN.
func (a *analysis) explainWord(t token) {
	id := t.word.id
	if id == wordAnalyze {
		a.executes = true
	}
	switch a.explain {
	case explainOptions:
		switch {
		case t.word.class&classExplainOption != 0:
		case a.p1.is('(') && (id == wordSelect || id == wordValues || id == wordTable || id == wordWith):
			a.explain, a.explainHead = explainInner, id // no options: EXPLAIN (SELECT …)
		default:
			a.executes = true
		}
	case explainBegun, explainWords:
		if id != wordAnalyze && id != wordVerbose && id != wordExplain {
			a.explain, a.explainHead = explainInner, id
		}
	}
}

// routineWord follows CREATE FUNCTION and CREATE PROCEDURE, whose bodies may
// hold semicolons between BEGIN ATOMIC and END.
func (a *analysis) routineWord(id wordID) {
	if a.atomicDepth == 0 {
		switch id {
		case wordFunction, wordProcedure:
			a.routine = a.routine || a.p1.isWord(wordCreate) || a.p1.isWord(wordReplace)
		case wordAtomic:
			if a.routine && a.p1.isWord(wordBegin) {
				a.atomicDepth = 1
			}
		}
		return
	}
	switch id {
	case wordCase:
		if !a.p1.isWord(wordAs) {
			a.atomicDepth++
		}
	case wordEnd:
		if !a.p1.isWord(wordAs) {
			a.atomicDepth--
		}
	case wordCommit, wordRollback, wordAbort, wordBegin, wordStart, wordPrepare:
		// No routine's body holds these. If one seems to, the body is over
		// and a column named CASE hid its end.
		if a.p1.is(';') {
			a.info.TxControl, a.info.BeginsTx, a.info.EndsTx = true, true, true
			a.unknownEffects()
		}
	case wordSet, wordReset, wordDiscard, wordListen, wordUnlisten, wordNotify, wordLoad, wordDo, wordCall, wordExecute,
		wordDeallocate, wordDeclare, wordCopy, wordCreate, wordAlter:
		if a.p1.is(';') { // the same goes for these
			a.unknownEffects()
		}
	}
}

// withName moves the WITH list of the current level along with a name.
func (a *analysis) withName(t token) {
	f := a.top()
	id := t.word.id
	if id == wordWith && !a.p1.is('.') && t.kind == tokenWord {
		f.with = withBegun
		return
	}
	switch f.with {
	case withNone:
	case withBegun:
		if id == wordRecursive {
			f.with = withName
		} else {
			a.withEntry(t)
		}
	case withName:
		a.withEntry(t)
	case withAfterName:
		f.with = withNone
		if id == wordAs {
			f.with = withAs
		}
	case withAs:
		if id != wordNot && id != wordMaterialized {
			f.with = withNone
		}
	case withAfterBody:
		f.with = withNone
		if id == wordSearch || id == wordCycle {
			f.with = withSearch
		}
	case withSearch:
		if id == wordSet {
			f.with = withSearchSet
		}
	case withSearchSet:
		switch id {
		case wordSelect, wordValues, wordTable, wordInsert, wordUpdate, wordDelete, wordMerge, wordUpsert:
			f.with = withNone
		}
	}
}

func (a *analysis) withEntry(t token) {
	f := a.top()
	f.with = withNone
	if t.word.class&classReserved == 0 {
		f.with = withAfterName
		a.nameRole = roleNoFunction
	}
}

// beforeLiteral looks at what stands before a string: type 'text' is a cast.
func (a *analysis) beforeLiteral() {
	switch a.p1.kind {
	case tokenQuoted:
		a.notRead = true
	case tokenWord:
		if a.nameParts == 1 {
			if a.p1.word.class&(classReserved|classSyntax) != 0 {
				return // not a type, or a built-in one
			}
			switch a.p1.word.id {
			case wordBy, wordLike, wordIlike, wordEscape, wordUescape, wordZone:
				return
			}
		}
		if a.nameParts > 1 || !builtinTypes[a.partName(a.p1)] {
			a.notRead = true
		}
	}
}

// symbol looks at punctuation. It returns the token to remember, which differs
// from t where a closing parenthesis does not end an operand.
func (a *analysis) symbol(t token) token {
	switch t.symbol {
	case '(':
		a.openParenthesis()
	case '[':
		a.openBracket()
	case ')', ']':
		return a.close(t)
	case ',':
		f := a.top()
		f.commas = min(f.commas+1, 3)
		switch f.with {
		case withAfterBody, withSearchSet:
			f.with = withName
		case withSearch:
		default:
			f.with = withNone
		}
	case '.':
		if a.p1.isName() && a.nameParts <= 2 && strings.HasPrefix(a.partName(a.p1), "pg_temp") {
			a.info.Temporary = true // pg_temp_3 too, and within the database's name
		}
	}
	return t
}

func (a *analysis) openParenthesis() {
	outer := a.top()
	inner := frame{open: '('}
	switch {
	case a.p1.isWord(wordCast) && !a.dotted(1):
		inner.cast = true
	case a.p1.isWord(wordOn) && a.p2.isWord(wordDistinct):
		inner.distinct = true
	}
	switch outer.with {
	case withNone, withAfterName: // columns
	case withAs:
		outer.with = withAfterBody
		a.bodyExpected = true
	default:
		outer.with = withNone
	}
	if a.explain == explainBegun {
		a.explain = explainOptions
	}
	if a.isFunction() {
		name := a.function()
		inner.rows = a.p1.word.class&classIntroducer == 0 // no OPERATOR(…) before an operand
		inner.setting = a.noteCall(name)
	}
	a.frames = append(a.frames, inner)
}

func (a *analysis) openBracket() {
	// After anything else an opening bracket is not PostgreSQL's, and
	// CockroachDB has statements of all kinds in brackets.
	switch {
	case a.p1.kind == tokenWord && (a.p1.isWord(wordArray) || a.operand(a.p1, a.dotted(1))):
	case a.p1.kind == tokenQuoted, a.p1.kind == tokenParameter, a.p1.is(')'), a.p1.is(']'), a.p1.is('['):
	case a.p1.is(',') && a.top().open == '[':
	default:
		a.notRead = true
	}
	a.frames = append(a.frames, frame{open: '['})
}

func (a *analysis) close(t token) token {
	f := a.top()
	if (t.symbol == ')') != (f.open == '(') || f.open == 0 {
		a.lexer.suspicious = true
		if f.open == 0 {
			return t
		}
	}
	if f.setting != settingNone && !a.isLocalSetting(f) {
		a.info.addStateFunction(settingNames[f.setting])
	}
	a.frames = a.frames[:len(a.frames)-1]
	if a.explain == explainOptions && len(a.frames) == 1 {
		a.explain = explainWords
	}
	if f.distinct {
		return token{kind: tokenWord, word: word{id: wordDistinct, class: classReserved}, start: t.start, end: t.end}
	}
	t.rows = f.rows
	return t
}

// operand reports whether t ends an operand, so that a word after it is an
// operator or a clause rather than a function. When in doubt it does not.
func (a *analysis) operand(t token, dotted bool) bool {
	switch t.kind {
	case tokenQuoted, tokenLiteral, tokenNumber, tokenParameter:
		return true
	case tokenWord:
		return dotted || t.word.class&(classReserved|classIntroducer) == 0
	case tokenSymbol:
		return t.symbol == ')' || t.symbol == ']'
	}
	return false
}

// isFunction reports whether p1, before an opening parenthesis, can be the name
// of a function.
func (a *analysis) isFunction() bool {
	if !a.p1.isName() || a.nameRole != roleExpression {
		return false
	}
	if a.nameParts > 1 || a.p1.kind == tokenQuoted {
		return true
	}
	if a.p1.word.class&(classReserved|classSyntax) != 0 {
		return false
	}
	if a.p2.kind == tokenEnd {
		return false // VACUUM (…), EXPLAIN (…)
	}
	p2 := a.p2.word.id
	switch a.p1.word.id {
	case wordJoin:
		switch p2 {
		case wordLeft, wordRight, wordFull, wordInner, wordOuter, wordCross, wordNatural:
			return false
		}
		return !a.operand(a.p2, a.dotted(2))
	case wordLike, wordIlike, wordSet:
		if a.p1.isWord(wordSet) && p2 == wordUpdate {
			return false
		}
		return !a.operand(a.p2, a.dotted(2))
	case wordOver, wordFilter:
		return !a.p2.is(')')
	case wordBy:
		return p2 != wordGroup && p2 != wordOrder && p2 != wordPartition
	case wordKey:
		return p2 != wordPrimary && p2 != wordForeign
	case wordConflict:
		return p2 != wordOn
	case wordSets:
		return p2 != wordGrouping
	case wordRollup, wordCube:
		return p2 != wordBy || !a.p3.isWord(wordGroup)
	case wordInsert:
		return p2 != wordThen
	case wordVarying:
		return a.p2.kind != tokenWord || a.p2.word.class&classSyntax == 0
	case wordMaterialized:
		return a.top().with != withAfterBody // the parenthesis has just made it so
	}
	return true
}

// function records the name that p1 ends, and returns it.
func (a *analysis) function() string {
	var name string
	if a.nameParts == 1 {
		name = a.functionPart(a.p1)
	} else {
		l := lexer{text: a.lexer.text[:a.p1.end], pos: a.nameStart}
		var b strings.Builder
		for t := l.next(); t.kind != tokenEnd; t = l.next() {
			if t.isName() {
				b.WriteString(a.functionPart(t))
			} else {
				b.WriteByte('.')
			}
		}
		name = b.String()
	}
	if !slices.Contains(a.info.Functions, name) {
		a.info.Functions = append(a.info.Functions, name)
	}
	return name
}

// functionPart is partName, with its quotes if it would be ambiguous without.
func (a *analysis) functionPart(t token) string {
	if t.kind == tokenQuoted && strings.IndexByte(a.lexer.text[t.start:t.end], '.') >= 0 {
		return a.lexer.text[t.start:t.end]
	}
	return a.partName(t)
}

// endStatement concludes the statement that is over and makes ready for the
// next.
func (a *analysis) endStatement() {
	if a.tokens == 0 {
		return
	}
	keyword := a.keyword()
	if a.info.Statements == 1 {
		a.info.Keyword = keyword
		a.info.ProvenRead = a.reads(keyword)
	}
	a.info.Keywords |= KeywordsOf(keyword)
	switch keyword {
	case Begin:
		a.info.TxControl, a.info.BeginsTx, a.info.LeavesTxOpen = true, true, true
	case Commit, Rollback:
		a.info.TxControl, a.info.EndsTx, a.info.LeavesTxOpen = true, true, a.chains
		if a.chains {
			a.info.AndChain, a.info.BeginsTx = true, true
		}
	case PrepareTransaction:
		a.info.TxControl, a.info.EndsTx, a.info.LeavesTxOpen = true, true, false
	case CommitPrepared, RollbackPrepared:
		a.info.TxControl = true
	case Copy:
		if a.copyKind == CopyNone {
			a.copyKind = CopyOnServer // not understood
		}
		if a.info.Copy == CopyNone {
			a.info.Copy = a.copyKind
		}
	}
	a.info.LocksRows = a.info.LocksRows || a.locks
	a.info.WithHold = a.info.WithHold || a.holds
	if a.info.Statements == 1 {
		a.info.Savepoint = a.savepointName(keyword)
	}
	a.info.Whole = a.info.Statements == 1 && a.isWhole(keyword)
	a.noteHazard(keyword)
	a.noteEffects(keyword)
	if len(a.frames) > 1 || a.atomicDepth != 0 {
		a.lexer.suspicious = true // only the end of the text comes here so
	}
	*a.top() = frame{}
	a.resetStatement()
}

func (a *analysis) resetStatement() {
	a.head = [headWords]wordID{}
	a.headLength, a.headClosed, a.headDotted, a.tokens = 0, false, false, 0
	a.p1, a.p2, a.p3 = token{}, token{}, token{}
	a.nameStart, a.nameParts, a.nameRole = 0, 0, roleExpression
	a.typeState, a.pendingDML = typeNone, wordNone
	a.explain, a.explainHead = explainNone, wordNone
	a.executes, a.modifies, a.locks, a.chains = false, false, false, false
	a.bodyExpected, a.copyAwaits, a.copyFrom, a.copyKind = false, false, false, CopyNone
	a.holds, a.changesRows, a.where, a.computes = false, false, false, false
	a.routine, a.atomicDepth, a.concurrently = false, 0, false
}

// reads reports whether the statement, the first one, reads only, apart from
// what the rest of the text will say.
func (a *analysis) reads(k Keyword) bool {
	switch k {
	case Select, Values, Table, With:
		return !a.modifies && !a.locks
	case Show:
		return true
	case Explain:
		if a.executes {
			return false
		}
		switch a.explainHead {
		case wordSelect, wordValues, wordTable, wordWith, wordInsert, wordUpdate, wordDelete, wordMerge:
			return true
		}
	}
	return false
}

func (a *analysis) finish() {
	a.info.Suspicious = a.lexer.suspicious
	understood := a.info.Statements == 1 && !a.notRead && !a.info.Suspicious
	a.info.ProvenRead = a.info.ProvenRead && understood && a.info.CallsOnlyHarmless()
	a.info.Whole = a.info.Whole && a.info.Statements == 1 && !a.info.Suspicious && !a.info.TxControl
	a.info.OwnRows = a.own.proven() && understood && a.showsOwnValues()
	if a.info.Statements != 1 || a.info.Suspicious {
		a.info.Savepoint = ""
	}
	a.finishHazard()
	a.finishEffects()
}

// keyword judges the kind of the statement by its head.
func (a *analysis) keyword() Keyword {
	first, second, third := a.head[0], a.head[1], a.head[2]
	switch first {
	case wordSelect:
		return Select
	case wordValues:
		return Values
	case wordTable:
		return Table
	case wordWith:
		return With
	case wordInsert:
		return Insert
	case wordUpdate:
		return Update
	case wordDelete:
		return Delete
	case wordMerge:
		return Merge
	case wordBegin, wordStart:
		return Begin
	case wordCommit, wordEnd:
		if second == wordPrepared {
			return CommitPrepared
		}
		return Commit
	case wordRollback, wordAbort:
		if second == wordWork || second == wordTransaction {
			second = third
		}
		switch second {
		case wordTo:
			return RollbackTo
		case wordPrepared:
			return RollbackPrepared
		}
		return Rollback
	case wordSavepoint:
		return Savepoint
	case wordRelease:
		return Release
	case wordPrepare:
		if second == wordTransaction {
			return PrepareTransaction
		}
		return Prepare
	case wordSet:
		if a.headDotted {
			// SET local.x and SET SESSION transaction.x are about parameters.
			if a.headLength == 2 {
				return Set
			}
			third = wordNone
		}
		if second == wordConstraints {
			return SetConstraints
		}
		if second == wordTransaction || (second == wordLocal || second == wordSession) && third == wordTransaction {
			return SetTransaction
		}
		if second == wordLocal {
			return SetLocal
		}
		return Set
	}
	if k, ok := firstWords[first]; ok {
		return k
	}
	return Other
}

// firstWords holds the words that decide alone.
var firstWords = map[wordID]Keyword{
	wordExecute: Execute, wordDeallocate: Deallocate, wordDeclare: Declare, wordFetch: Fetch, wordMove: Move, wordClose: Close,
	wordCopy: Copy, wordCall: Call, wordDo: Do, wordReset: Reset, wordShow: Show, wordDiscard: Discard, wordLoad: Load,
	wordListen: Listen, wordUnlisten: Unlisten, wordNotify: Notify, wordLock: Lock, wordExplain: Explain,
	wordAlter: DDL, wordComment: DDL, wordCreate: DDL, wordDrop: DDL, wordGrant: DDL, wordImport: DDL, wordReassign: DDL,
	wordRefresh: DDL, wordRevoke: DDL, wordSecurity: DDL,
	wordTruncate: Truncate, wordVacuum: Vacuum, wordAnalyze: AnalyzeTables, wordCluster: Cluster, wordReindex: Reindex,
	wordCheckpoint: Checkpoint,
}
