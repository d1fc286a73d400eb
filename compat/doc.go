// Package compat runs pgretry with the drivers and libraries that people use, on a
// real server and in real conflicts. It is a module of its own, so that none of
// them reaches a user of pgretry. All it has is tests.
package compat
