package sqltext

// ownState follows a statement whose rows may prove to be the transaction's
// own. Any word that could bring in another relation, or rows that are not
// locked, ends it in ownNever.
type ownState uint8

const (
	ownStart ownState = iota
	ownNever

	ownInsert       // INSERT
	ownInsertTarget // INTO: VALUES or SELECT is awaited
	ownUpdate       // UPDATE
	ownDelete       // DELETE
	ownBody         // what follows in one of these; nothing more is needed, and FROM is no good

	ownSelect       // SELECT: FROM is awaited; without any it reads nothing
	ownFrom         // FROM: perhaps ONLY
	ownFromOnly     // ONLY: the relation's name
	ownFromName     // the name or a part of it, perhaps * and an alias
	ownFromDot      // the dot in the name
	ownFromStar     // *
	ownFromAs       // AS
	ownFromAlias    // the alias: a clause is next
	ownTail         // WHERE and what follows
	ownLock         // FOR
	ownLockNo       // NO
	ownLockNoKey    // KEY
	ownLocked       // UPDATE or SHARE: the end, NOWAIT or a clause is next
	ownTailOfLocked // ownTail, after a locking clause
)

// proven reports whether a statement that ends in this state shows nothing but
// rows of its own.
func (s ownState) proven() bool {
	return s == ownBody || s == ownSelect || s == ownLocked || s == ownTailOfLocked
}

// ownRows moves along with a token, before p1 becomes it.
func (a *analysis) ownRows(t token) {
	if a.own == ownNever || a.info.Statements > 1 {
		return
	}
	if a.p1.isWord(wordWith) && !a.dotted(1) && !t.isWord(wordTime) {
		a.own = ownNever // no TIMESTAMP WITH TIME ZONE
		return
	}
	id := t.word.id // wordNone unless an unquoted word
	if a.p1.is('.') {
		id = wordNone
	}
	switch id {
	case wordUnion, wordIntersect, wordExcept, wordUsing, wordTable, wordMerge, wordGroup, wordHaving, wordWindow:
		a.own = ownNever
		return
	case wordNothing:
		if a.p1.isWord(wordDo) {
			a.own = ownNever
			return
		}
	}
	a.own = a.nextOwn(t, id)
}

// nextOwn returns the state after a token; id is that of a word that is not
// part of a dotted name.
func (a *analysis) nextOwn(t token, id wordID) ownState {
	outermost := len(a.frames) == 1
	switch a.own {
	case ownStart:
		switch id {
		case wordInsert:
			return ownInsert
		case wordUpdate:
			return ownUpdate
		case wordDelete:
			return ownDelete
		case wordSelect:
			return ownSelect
		}
		return ownNever
	case ownInsert:
		return when(id == wordInto, ownInsertTarget)
	case ownInsertTarget:
		switch {
		case (id == wordValues || id == wordSelect) && outermost:
			return ownBody
		case id == wordSelect, id == wordFrom, id == wordValues:
			return ownNever
		}
		return ownInsertTarget
	case ownUpdate:
		return when(t.isName(), ownBody)
	case ownDelete:
		return when(id == wordFrom, ownBody)
	case ownBody:
		return when(!a.mayBringRows(id), ownBody)

	case ownSelect:
		if id == wordFrom && outermost && !a.comparesWithFrom() {
			return ownFrom
		}
		return when(!a.mayBringRows(id) && id != wordInto, ownSelect)
	case ownTail, ownTailOfLocked:
		if id == wordFor && outermost {
			return ownLock
		}
		return when(!a.mayBringRows(id) && id != wordInto, a.own)
	case ownLock:
		switch id {
		case wordUpdate, wordShare:
			return ownLocked
		case wordNo:
			return ownLockNo
		}
		return ownNever
	case ownLockNo:
		return when(id == wordKey, ownLockNoKey)
	case ownLockNoKey:
		return when(id == wordUpdate, ownLocked)
	case ownLocked:
		switch id {
		case wordNowait:
			return ownLocked
		case wordFor:
			return ownLock
		case wordLimit, wordOffset, wordFetch:
			return ownTailOfLocked
		}
		return ownNever
	}
	return a.nextOwnFrom(t, id)
}

// nextOwnFrom follows the single relation in the FROM of a SELECT.
func (a *analysis) nextOwnFrom(t token, id wordID) ownState {
	switch a.own {
	case ownFrom:
		if id == wordOnly {
			return ownFromOnly
		}
		return when(t.isName() && t.word.class&classReserved == 0, ownFromName) // CURRENT_USER is a function
	case ownFromOnly, ownFromDot:
		return when(t.isName(), ownFromName)
	case ownFromName:
		switch {
		case t.is('.'):
			return ownFromDot
		case t.is('*'):
			return ownFromStar
		}
	case ownFromAs:
		return when(t.isName(), ownFromAlias)
	}
	switch id {
	case wordWhere, wordOrder, wordLimit, wordOffset, wordFetch:
		return ownTail
	case wordFor:
		return ownLock
	case wordAs:
		return when(a.own != ownFromAlias, ownFromAs)
	}
	return when(t.isName() && a.own != ownFromAlias, ownFromAlias)
}

// mayBringRows reports whether a word, where an expression or a clause may
// stand, can begin a query or a list of further relations. EXTRACT and its like
// have a FROM in their parentheses that is harmless without SELECT.
func (a *analysis) mayBringRows(id wordID) bool {
	switch id {
	case wordSelect, wordValues:
		return true
	case wordFrom:
		return len(a.frames) == 1 && !a.comparesWithFrom()
	}
	return false
}

// comparesWithFrom reports whether FROM, as the current token, ends an IS [NOT]
// DISTINCT FROM.
func (a *analysis) comparesWithFrom() bool {
	return a.p1.isWord(wordDistinct) && (a.p2.isWord(wordIs) || a.p2.isWord(wordNot))
}

func when(condition bool, s ownState) ownState {
	if condition {
		return s
	}
	return ownNever
}

// showsOwnValues reports whether every function named leaves what is shown a
// matter of the transaction: the numbers of sequences are its own, pg_notify
// shows nothing, what is told of the catalog is not.
func (a *analysis) showsOwnValues() bool {
	for _, name := range a.info.Functions {
		if !Harmless(name) && !ownFunctions[name] || catalogFunctions[name] {
			return false
		}
	}
	return true
}

// ownFunctions are those that are not harmless, and show nothing that others may change.
var ownFunctions = withCatalog(`nextval currval lastval pg_notify`)

// catalogFunctions are harmless ones that show what others may change.
var catalogFunctions = withCatalog(`col_description current_schema current_schemas enum_first enum_last enum_range
	format_type has_any_column_privilege has_column_privilege has_database_privilege has_function_privilege
	has_schema_privilege has_sequence_privilege has_table_privilege obj_description pg_function_is_visible
	pg_get_constraintdef pg_get_expr pg_get_functiondef pg_get_indexdef pg_get_ruledef pg_get_serial_sequence
	pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role pg_is_in_recovery pg_table_is_visible
	pg_type_is_visible shobj_description to_regclass to_regnamespace to_regproc to_regprocedure to_regrole to_regtype`)

func withCatalog(list string) map[string]bool {
	m := set(list)
	for name := range set(list) {
		m["pg_catalog."+name] = true
	}
	return m
}
