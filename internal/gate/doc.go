// Package gate limits how many transactions of one kind run at once, when and only
// when that helps.
//
// Transactions that deadlock cost far more than they do: each deadlock holds its locks
// for a deadlock_timeout, and whoever wants one of them waits as long. Waiting longer
// before the next attempt does not cure that, fewer at once does. How many is found
// out while the application runs:
//
//   - A kind of transaction begins without a limit. A deadlock halves how many may be
//     inside, once per generation: deadlocks of transactions that were let in before
//     the last cut say nothing about it, unless nothing but deadlocks happens.
//   - Commits per second are measured at each level. A level is kept only if it brings
//     no less than the one before, deadlocks and all. So a limit that does not help is
//     let go, and a level that deadlocks now and then is kept if it is still the better.
//   - After a stretch without trouble one more level is tried. What trials cost decides
//     how long the next one has to wait, so that looking for something better never
//     takes more than about a twentieth of the time.
//   - Who waits is let in by age, the oldest transaction first, so that the loser of a
//     deadlock goes before newcomers.
//
// A gate is a hint, not a lock: every wait ends after a while, and the transaction
// passes anyway. A program that opens a second transaction of a kind while it holds the
// first would stop itself otherwise.
//
// [Limiter] is the algorithm; it never blocks and is told the time, so that it can be
// simulated. [Gate] is what goroutines wait at.
package gate
