package sqltext

// isWhole judges the statement that is over: see Info.Whole. DO, CALL, VACUUM, REINDEX
// and what is done CONCURRENTLY commit parts of their work; databases, tablespaces and
// subscriptions are made outside transactions.
func (a *analysis) isWhole(k Keyword) bool {
	switch k {
	case Select, Insert, Update, Delete, Merge, With, Values, Table, Show, Truncate:
		return true
	case DDL:
		return !a.concurrently && a.isUsualDDL()
	}
	return false
}

// isUsualDDL goes by the word that says what is created, altered or dropped. What stands
// before it in CREATE may be left out.
func (a *analysis) isUsualDDL() bool {
	switch a.head[0] {
	case wordComment, wordGrant, wordRevoke:
		return true
	case wordCreate, wordAlter, wordDrop:
	default:
		return false
	}
	for _, id := range a.head[1:] {
		switch id {
		case wordOr, wordUnique, wordUnlogged, wordTemp, wordLocal, wordGlobal, wordMaterialized:
			continue
		case wordReplace, wordTable, wordIndex, wordSequence, wordView, wordType, wordDomain, wordSchema, wordFunction,
			wordProcedure, wordTrigger:
			return true
		}
		return false
	}
	return false
}
