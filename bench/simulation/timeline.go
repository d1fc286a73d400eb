package main

import "time"

// kind is what happens in an event.
type kind uint8

const (
	begins          kind = iota // an attempt
	readArrives                 // at the row
	writeArrives                // at the row
	answerArrives               // at the client: its write succeeded
	conflictArrives             // at the client: its write failed
	expires                     // its patience at the gate
)

type event struct {
	at      time.Duration
	client  int32
	attempt int32 // of the client, for expires
	kind    kind
}

// timeline holds the events to come: a heap of four branches, which is flatter than one of
// two. With ten thousand clients and no backoff it is what takes the time.
type timeline []event

func (t *timeline) push(e event) {
	*t = append(*t, e)
	at := len(*t) - 1
	for at > 0 {
		parent := (at - 1) / 4
		if (*t)[parent].at <= e.at {
			break
		}
		(*t)[at] = (*t)[parent]
		at = parent
	}
	(*t)[at] = e
}

func (t *timeline) pop() event {
	h := *t
	first := h[0]
	last := h[len(h)-1]
	h = h[:len(h)-1]
	*t = h
	if len(h) == 0 {
		return first
	}
	at := 0
	for {
		child := 4*at + 1
		if child >= len(h) {
			break
		}
		for other := child + 1; other < min(child+4, len(h)); other++ {
			if h[other].at < h[child].at {
				child = other
			}
		}
		if last.at <= h[child].at {
			break
		}
		h[at] = h[child]
		at = child
	}
	h[at] = last
	return first
}
