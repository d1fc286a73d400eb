package sqltext

import "strings"

// wordID tells apart the words that mean something to the analysis.
type wordID uint8

// wordClass says what a word can be where the server meets it unquoted.
type wordClass uint8

const (
	// classReserved words name neither functions nor types.
	classReserved wordClass = 1 << iota
	// classSyntax words are followed by a parenthesis without being functions,
	// and cannot be functions.
	classSyntax
	// classIntroducer words stand before an operand though they are not
	// reserved: what follows them begins an expression.
	classIntroducer
	// classExplainOption words may stand in the parentheses of EXPLAIN without
	// making it execute anything.
	classExplainOption
)

type word struct {
	id    wordID
	class wordClass
}

const (
	wordNone wordID = iota // any word not named below

	wordAbort
	wordAlter
	wordAnalyze
	wordAnd
	wordArray
	wordAs
	wordAtomic
	wordBegin
	wordBy
	wordCall
	wordCase
	wordCast
	wordChain
	wordCheckpoint
	wordClose
	wordCluster
	wordComment
	wordCommit
	wordConcurrently
	wordConflict
	wordConstraints
	wordCopy
	wordCreate
	wordCross
	wordCube
	wordCycle
	wordDeallocate
	wordDeclare
	wordDefault
	wordDelete
	wordDiscard
	wordDistinct
	wordDo
	wordDomain
	wordDrop
	wordEnd
	wordEscape
	wordExcept
	wordExecute
	wordExists
	wordExplain
	wordFalse
	wordFetch
	wordFilter
	wordFor
	wordForeign
	wordFrom
	wordFull
	wordFunction
	wordGlobal
	wordGrant
	wordGroup
	wordGrouping
	wordHaving
	wordHold
	wordIlike
	wordImport
	wordIndex
	wordInner
	wordInsert
	wordIntersect
	wordInto
	wordIs
	wordJoin
	wordKey
	wordLeft
	wordLike
	wordLimit
	wordListen
	wordLoad
	wordLocal
	wordLock
	wordMaterialized
	wordMerge
	wordMove
	wordNatural
	wordNo
	wordNot
	wordNothing
	wordNotify
	wordNowait
	wordNull
	wordOffset
	wordOn
	wordOnly
	wordOr
	wordOrder
	wordOuter
	wordOver
	wordPartition
	wordPrepare
	wordPrepared
	wordPrimary
	wordProcedure
	wordReassign
	wordRecursive
	wordReferences
	wordRefresh
	wordReindex
	wordRelease
	wordReplace
	wordReset
	wordReturning
	wordRevoke
	wordRight
	wordRollback
	wordRollup
	wordSavepoint
	wordSchema
	wordSearch
	wordSecurity
	wordSelect
	wordSequence
	wordSession
	wordSet
	wordSets
	wordShare
	wordShow
	wordStart
	wordStdin
	wordStdout
	wordSystem
	wordTable
	wordTemp
	wordThen
	wordTime
	wordTo
	wordTransaction
	wordTrigger
	wordTrue
	wordTruncate
	wordType
	wordUescape
	wordUnion
	wordUnique
	wordUnlisten
	wordUnlogged
	wordUpdate
	wordUpsert
	wordUsing
	wordVacuum
	wordValues
	wordVarying
	wordVerbose
	wordView
	wordWhere
	wordWindow
	wordWith
	wordWork
	wordZone
)

// modifiesOrWith reports whether a statement that begins with w can be one that
// modifies data.
func (w wordID) modifiesOrWith() bool {
	switch w {
	case wordInsert, wordUpdate, wordDelete, wordMerge, wordUpsert, wordWith:
		return true
	}
	return false
}

// words maps the words that matter, lower case, to what they are.
//
// Only words that PostgreSQL 12 and every later version treat alike are
// classReserved or classSyntax: a word that is free in one version can name a
// function of the user's there.
var words = buildWords()

func buildWords() map[string]word {
	m := make(map[string]word, 320)
	for name, id := range map[string]wordID{
		"abort": wordAbort, "alter": wordAlter, "analyse": wordAnalyze, "analyze": wordAnalyze, "and": wordAnd,
		"array": wordArray, "as": wordAs, "atomic": wordAtomic, "begin": wordBegin, "by": wordBy, "call": wordCall,
		"case": wordCase, "cast": wordCast, "chain": wordChain, "checkpoint": wordCheckpoint, "close": wordClose,
		"cluster": wordCluster, "comment": wordComment, "commit": wordCommit, "conflict": wordConflict,
		"constraints": wordConstraints, "copy": wordCopy, "create": wordCreate, "cross": wordCross, "cube": wordCube,
		"cycle": wordCycle, "deallocate": wordDeallocate, "declare": wordDeclare, "delete": wordDelete,
		"discard": wordDiscard, "distinct": wordDistinct, "do": wordDo, "domain": wordDomain, "drop": wordDrop, "end": wordEnd,
		"escape": wordEscape, "execute": wordExecute, "exists": wordExists, "explain": wordExplain, "fetch": wordFetch,
		"filter": wordFilter, "for": wordFor, "foreign": wordForeign, "from": wordFrom, "full": wordFull,
		"function": wordFunction, "global": wordGlobal, "grant": wordGrant, "group": wordGroup,
		"grouping": wordGrouping, "hold": wordHold, "ilike": wordIlike, "import": wordImport, "index": wordIndex, "inner": wordInner,
		"insert": wordInsert, "into": wordInto, "join": wordJoin, "key": wordKey, "left": wordLeft, "like": wordLike,
		"listen": wordListen, "load": wordLoad, "local": wordLocal, "lock": wordLock, "materialized": wordMaterialized,
		"merge": wordMerge, "move": wordMove, "natural": wordNatural, "no": wordNo, "not": wordNot,
		"notify": wordNotify, "on": wordOn, "order": wordOrder, "outer": wordOuter, "over": wordOver,
		"partition": wordPartition, "prepare": wordPrepare, "prepared": wordPrepared, "primary": wordPrimary,
		"procedure": wordProcedure, "reassign": wordReassign, "recursive": wordRecursive,
		"references": wordReferences, "refresh": wordRefresh, "reindex": wordReindex, "release": wordRelease,
		"replace": wordReplace, "reset": wordReset, "revoke": wordRevoke, "right": wordRight, "rollback": wordRollback,
		"rollup": wordRollup, "savepoint": wordSavepoint, "search": wordSearch, "security": wordSecurity,
		"select": wordSelect, "session": wordSession, "set": wordSet, "sets": wordSets, "share": wordShare,
		"show": wordShow, "start": wordStart, "stdin": wordStdin, "stdout": wordStdout, "table": wordTable,
		"temp": wordTemp, "temporary": wordTemp, "then": wordThen, "to": wordTo, "transaction": wordTransaction,
		"truncate": wordTruncate, "uescape": wordUescape, "unlisten": wordUnlisten, "update": wordUpdate,
		"upsert": wordUpsert, "vacuum": wordVacuum, "values": wordValues, "varying": wordVarying, "verbose": wordVerbose, "with": wordWith,
		"work": wordWork, "zone": wordZone,
		"except": wordExcept, "having": wordHaving, "intersect": wordIntersect, "is": wordIs, "limit": wordLimit,
		"nothing": wordNothing, "nowait": wordNowait, "offset": wordOffset, "only": wordOnly,
		"returning": wordReturning, "system": wordSystem, "time": wordTime, "union": wordUnion, "using": wordUsing,
		"where": wordWhere, "window": wordWindow, "null": wordNull, "true": wordTrue, "false": wordFalse,
		"default":      wordDefault,
		"concurrently": wordConcurrently, "or": wordOr, "schema": wordSchema, "sequence": wordSequence,
		"trigger": wordTrigger, "type": wordType, "unique": wordUnique, "unlogged": wordUnlogged, "view": wordView,
	} {
		m[name] = word{id: id}
	}
	for class, names := range map[wordClass]string{
		classReserved: `all analyse analyze and any array as asc asymmetric both case cast check collate column
			constraint create current_catalog current_date current_role current_time current_timestamp current_user
			default deferrable desc distinct do else end except false fetch for foreign from grant group having in
			initially intersect into lateral leading limit localtime localtimestamp not null offset on only or order
			placing primary references returning select session_user some symmetric table then to trailing true union
			unique user using variadic when where window with`,
		classSyntax: `between bigint bit boolean char character coalesce dec decimal exists extract float greatest
			grouping inout int integer interval least national nchar none nullif numeric out overlay position precision
			real row setof smallint substring time timestamp trim values varchar`,
		classIntroducer: `between by cross escape first full groups ilike inner is isnull join left like natural next
			notnull operator outer overlaps range return right rows set similar uescape update values verbose zone`,
		classExplainOption: `buffers costs false format generic_plan json memory none off on settings summary text
			timing true verbose wal xml yaml`,
	} {
		for _, name := range strings.Fields(names) {
			w := m[name]
			w.class |= class
			m[name] = w
		}
	}
	return m
}

// longestWord is the length in bytes of the longest key of words.
const longestWord = 17

// lookupWord returns what is known of an unquoted word in any case. It does not
// allocate.
func lookupWord(s string) word {
	if len(s) > longestWord {
		return word{}
	}
	var buffer [longestWord]byte
	for i := range len(s) {
		buffer[i] = lowerByte(s[i])
	}
	return words[string(buffer[:len(s)])]
}

// lowerByte folds as the server does in a multi-byte encoding: ASCII only.
func lowerByte(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// lower folds the ASCII letters of s. It allocates only if there is one to fold.
func lower(s string) string {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				b[j] = lowerByte(b[j])
			}
			return string(b)
		}
	}
	return s
}
