package parity_test

import (
	"testing"

	"github.com/pgretry/pgretry/internal/drivertest/parity"
)

func TestABareDriverEqualsItselfWithEveryFeatureSet(t *testing.T) {
	parity.RunScripted(t, bare)
}
