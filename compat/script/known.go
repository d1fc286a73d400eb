package script

import (
	"slices"
	"strings"
)

// knownSaw are parts of what the application sees in any run with any library. All runs
// are compared with one of the same library, which alone would not tell of a library that
// reads or writes something else than it is asked to.
var knownSaw = []string{
	`create with returned ids
  ids: true, two: true
associations
  associations-1 has an id: true, purchases: 2
  associations-1
  associations-1 has bought paper: true
  associations-1 has bought pen: true
  associations-2
batch insert and upsert
nested transaction
  a duplicate
conflict in a nested transaction
raw SQL
  10 changed
  [{batch-00 100} {batch-01 101} {batch-02 102} {batch-03 103} {batch-04 104} {batch-05 110} {batch-06 112} ` +
		`{batch-07 114} {batch-08 116} {batch-09 118} {batch-10 10} {batch-11 11} {batch-12 12} {batch-13 13} {batch-14 14}]
prepared statements
  [101 102 12]
  [101 102 12]
streamed rows
  1140 in all, stopped after 3
types and columns
  {ID:1 Small:-7 Float:0.1 Amount:1234567.8900 Flag:true Label:straße; -- 'quoted' Raw:[0 1 255] ` +
		`At:2024-02-29 23:59:59.123456 +0000 UTC Doc:{"a": [1, null, "é"]} Tags:[x y"z ] Note:<nil>}
`,
	`
read for update, then write
  the balance is 100
unique violation
  a duplicate, SQLSTATE `,
	`
given up by the application
cancelled
  true
hooks
`,
	`
outside transactions
  7 [{lone-00 10} {lone-01 11} {lone-02 14} {lone-03 16} {lone-04 18} {lone-05 15} {lone-06 16}]
  lone-00 lone-01 lone-02 lone-03 lone-04 lone-05 lone-06
`,
}

// knownLeft is what any run leaves in the database, but for the row of types and what a
// library's hooks were told of.
const knownLeft = `account 1 89
account 2 111
account 3 161
customer associations-1 paper
customer associations-1 pen
customer associations-2
customer create-1 pen
customer create-2 ink
customer lone
stock batch-00 100
stock batch-01 101
stock batch-02 102
stock batch-03 103
stock batch-04 104
stock batch-05 110
stock batch-06 112
stock batch-07 114
stock batch-08 116
stock batch-09 118
stock batch-10 10
stock batch-11 11
stock batch-12 12
stock batch-13 13
stock batch-14 14
stock inside-00 0
stock inside-01 1
stock lone-00 10
stock lone-01 11
stock lone-02 14
stock lone-03 16
stock lone-04 18
stock lone-05 15
stock lone-06 16
stock nested-00 0
stock nested-03 3
stock stream 1140`

// wantKnown checks the run with which the others are compared.
func (r *run) wantKnown(got result) {
	r.Helper()
	saw := strings.Join(got.saw, "\n") + "\n"
	for _, known := range knownSaw {
		if !strings.Contains(saw, known) {
			r.Errorf("the application saw\n%s\nwithout\n%s", saw, known)
		}
	}
	left := slices.DeleteFunc(slices.Clone(got.left), func(line string) bool {
		return line == "stock hooked 1" || strings.HasPrefix(line, "{")
	})
	r.differ("the database holds", left, strings.Split(knownLeft, "\n"))
}
