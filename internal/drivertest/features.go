package drivertest

import (
	"fmt"
	"strings"
)

// Features is a set of optional interfaces of database/sql/driver.
type Features uint32

// The optional interfaces, one bit each.
const (
	// ExecerContext to NamedValueChecker are interfaces of the connection.
	ExecerContext Features = 1 << iota
	QueryerContext
	Execer
	Queryer
	ConnPrepareContext
	ConnBeginTx
	Pinger
	SessionResetter
	Validator
	NamedValueChecker

	// StmtExecContext to StmtColumnConverter are interfaces of the statement.
	StmtExecContext
	StmtQueryContext
	StmtNamedValueChecker
	StmtColumnConverter

	// RowsNextResultSets to RowsPrecisionScale are interfaces of the rows.
	RowsNextResultSets
	RowsScanType
	RowsDatabaseTypeName
	RowsLength
	RowsNullable
	RowsPrecisionScale

	// DriverContext is an interface of the driver, ConnectorCloser (io.Closer)
	// one of the connector.
	DriverContext
	ConnectorCloser

	featuresEnd
)

// Shapes of drivers.
const (
	// ConnFeatures, StmtFeatures and RowsFeatures are all bits of one kind.
	ConnFeatures = ExecerContext | QueryerContext | Execer | Queryer | ConnPrepareContext | ConnBeginTx |
		Pinger | SessionResetter | Validator | NamedValueChecker
	StmtFeatures = StmtExecContext | StmtQueryContext | StmtNamedValueChecker | StmtColumnConverter
	RowsFeatures = RowsNextResultSets | RowsScanType | RowsDatabaseTypeName | RowsLength | RowsNullable | RowsPrecisionScale

	// NoFeatures is a driver of Go 1.0, AllFeatures one that has every interface.
	NoFeatures  Features = 0
	AllFeatures          = featuresEnd - 1

	// LibPQ has the interfaces of github.com/lib/pq 1.12.
	LibPQ = ConnFeatures | StmtExecContext | StmtQueryContext |
		(RowsFeatures &^ RowsNullable)
	// PGX has the interfaces of github.com/jackc/pgx/v5/stdlib.
	PGX = DriverContext | ConnFeatures&^(Execer|Queryer|Validator) | StmtExecContext | StmtQueryContext |
		(RowsFeatures &^ (RowsNullable | RowsNextResultSets))
	// Modern has every interface but those superseded by one with a context.
	// It is the default.
	Modern = AllFeatures &^ (Execer | Queryer | StmtColumnConverter | StmtNamedValueChecker)
)

var featureNames = [...]string{
	"ExecerContext", "QueryerContext", "Execer", "Queryer", "ConnPrepareContext", "ConnBeginTx",
	"Pinger", "SessionResetter", "Validator", "NamedValueChecker",
	"StmtExecContext", "StmtQueryContext", "StmtNamedValueChecker", "StmtColumnConverter",
	"RowsNextResultSets", "RowsScanType", "RowsDatabaseTypeName", "RowsLength", "RowsNullable", "RowsPrecisionScale",
	"DriverContext", "ConnectorCloser",
}

// Has reports whether every bit of g is in f.
func (f Features) Has(g Features) bool { return f&g == g }

// String lists the names of the bits, joined by "|".
func (f Features) String() string {
	var names []string
	for i, name := range featureNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if rest := f &^ AllFeatures; rest != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(rest)))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, "|")
}

// NamedFeatures is a set of features with a name fit for a subtest.
type NamedFeatures struct {
	Name     string
	Features Features
}

// FeatureSets lists the sets a table test should run over: everything, nothing,
// the shapes of real drivers, each interface alone, and each one missing. These,
// and those alone, have a connection type; any combination of statement, rows,
// driver and connector features goes with any of their connection features.
func FeatureSets() []NamedFeatures {
	sets := []NamedFeatures{
		{"all", AllFeatures},
		{"none", NoFeatures},
		{"modern", Modern},
		{"lib-pq", LibPQ},
		{"pgx", PGX},
		{"legacy", Execer | Queryer},
		{"all-but-exec", AllFeatures &^ (ExecerContext | Execer)},
		{"all-but-query", AllFeatures &^ (QueryerContext | Queryer)},
		{"all-but-reset-and-validate", AllFeatures &^ (SessionResetter | Validator)},
		{"modern-but-reset-and-validate", Modern &^ (SessionResetter | Validator)},
	}
	for i, name := range featureNames {
		bit := Features(1) << i
		sets = append(sets,
			NamedFeatures{"only-" + name, bit},
			NamedFeatures{"all-but-" + name, AllFeatures &^ bit})
		if Modern.Has(bit) {
			sets = append(sets, NamedFeatures{"modern-but-" + name, Modern &^ bit})
		}
	}
	return sets
}
