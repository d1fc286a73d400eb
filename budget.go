package pgretry

import "sync/atomic"

// The figures of the AWS SDKs' standard retry mode: with a full bucket a hundred
// retries in a row are free, afterwards one in six requests may be a retry.
const (
	budgetTokens     = 500
	budgetRetryCost  = 5
	budgetSuccessFee = 1
)

// retryBudget is a token bucket per connector that limits retries after
// unavailability, so that a sick server is not kept down by its clients' good
// manners. Conflicts do not draw on it: they are ordinary work for a server that
// is well.
type retryBudget struct {
	spent atomic.Int64 // counts from a full bucket, so that the zero value is one
}

// take removes the price of one retry and says whether there was enough.
func (b *retryBudget) take() bool {
	for {
		spent := b.spent.Load()
		if spent+budgetRetryCost > budgetTokens {
			return false
		}
		if b.spent.CompareAndSwap(spent, spent+budgetRetryCost) {
			return true
		}
	}
}

// succeeded returns a token after a transaction that was committed.
func (b *retryBudget) succeeded() {
	for {
		spent := b.spent.Load()
		if spent == 0 {
			return
		}
		if b.spent.CompareAndSwap(spent, max(0, spent-budgetSuccessFee)) {
			return
		}
	}
}
