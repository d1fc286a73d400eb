package gate

import "container/heap"

// queue holds the tickets that wait, the oldest transaction first and, among those
// that began at the same time, the one that came first.
type queue []*Ticket

var _ heap.Interface = (*queue)(nil)

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if order := q[i].since.Compare(q[j].since); order != 0 {
		return order < 0
	}
	return q[i].number < q[j].number
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push is heap's; use add.
func (q *queue) Push(ticket any) {
	t := ticket.(*Ticket)
	t.place = len(*q)
	*q = append(*q, t)
}

// Pop is heap's; use remove.
func (q *queue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return t
}

func (q *queue) add(t *Ticket)    { heap.Push(q, t) }
func (q *queue) remove(t *Ticket) { heap.Remove(q, t.place) }
