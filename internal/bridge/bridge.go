// Package bridge leads packages of this module to what the root package does not
// export. Its init function sets the variables.
package bridge

import "context"

// Attempt returns which attempt of a closure runs under ctx, from 1, or 0 if none
// does.
var Attempt func(ctx context.Context) int
