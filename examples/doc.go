// Package examples holds small complete programs to copy from, one in each folder.
// Each takes the DSN of a database as its argument and makes a table named account
// there. Its tests run them all.
package examples
