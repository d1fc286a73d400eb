// Package overhead measures what the driver costs. Its benchmarks run the same
// transaction over a scripted driver that does nothing, once bare and once wrapped,
// so that the difference is the wrapper's own:
//
//	go test -run '^$' -bench Overhead ./bench/overhead
package overhead
