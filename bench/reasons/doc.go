// Package reasons measures what decisions of the driver rest on: what would be gained or
// lost by doing it in another way.
//
//	go test -run '^$' -bench . ./bench/reasons
package reasons
