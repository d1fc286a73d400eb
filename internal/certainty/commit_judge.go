package certainty

import (
	"errors"
	"fmt"

	"github.com/pgretry/pgretry"
)

// commitClaim is what the outcome of a transaction says about it.
type commitClaim uint8

const (
	commitDenied   commitClaim = iota // nothing of it is there, or ever will be
	commitAffirmed                    // it is there, once
	commitOpen                        // it may be there, once
)

// commitClaimed returns what an error claims. Only two make no claim: whoever meets
// any other may take it for granted that nothing was committed. That includes
// [database/sql/driver.ErrBadConn], at whose sight database/sql does it again.
func commitClaimed(err error) commitClaim {
	if err == nil {
		return commitAffirmed
	}
	if _, ok := errors.AsType[*pgretry.CommitUnknownError](err); ok {
		return commitOpen
	}
	if lost, ok := errors.AsType[*pgretry.ConnectionLostError](err); ok && !lost.RolledBack {
		return commitOpen
	}
	return commitDenied
}

// commitTruth is how often what a transaction did is there: most and least of its
// parts, which differ only if it is there by halves.
type commitTruth struct{ least, most int }

// commitJudgement says what is wrong with a claim, "" if nothing is.
func commitJudgement(claim commitClaim, truth commitTruth) string {
	switch {
	case truth.most > 1:
		return fmt.Sprintf("it is there %d times", truth.most)
	case claim == commitAffirmed && truth.least == 0:
		return "it was reported committed and is not there"
	case claim == commitDenied && truth.most > 0:
		return "it was reported not committed and is there"
	default:
		return ""
	}
}
