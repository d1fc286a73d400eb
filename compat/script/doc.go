// Package script is what every library does in the tests of compat: one application,
// written once, over an interface that each library implements in its own manner. It
// runs undisturbed, with transactions aborted on purpose below the driver, and in real
// deadlocks; what the application saw and what it left in the database must be the same.
package script
