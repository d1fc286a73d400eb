// Package spantree shows the spans of one transaction, as an OpenTelemetry backend would, in plain
// text.
package spantree

import (
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// The names and keys under which the library describes an attempt.
const (
	transactionSpan = "pgretry.transaction"
	attemptSpan     = "pgretry.attempt"
	// applicationSpan is the application's own.
	applicationSpan = "POST /greeting"

	nameKey     = "pgretry.transaction.name"
	attemptKey  = "pgretry.attempt"
	kindKey     = "pgretry.attempt.kind"
	outcomeKey  = "pgretry.outcome"
	backoffKey  = "pgretry.backoff"
	cycleKey    = "pgretry.deadlock.cycle"
	sqlstateKey = "db.response.status_code"

	kindClosure = "closure"
)

// Span is one span and what happened within it.
type Span struct {
	Name string `json:"name"`
	// Start is the time since the tree's root began.
	Start      time.Duration  `json:"start_nanoseconds"`
	Duration   time.Duration  `json:"duration_nanoseconds"`
	Failed     bool           `json:"failed"`
	Attributes map[string]any `json:"attributes,omitempty"`
	Events     []Event        `json:"events,omitempty"`
	Children   []*Span        `json:"children,omitempty"`
}

// Event is something that happened at one moment of a span.
type Event struct {
	Name       string         `json:"name"`
	Attributes map[string]any `json:"attributes,omitempty"`
}

func (s *Span) attempts() []*Span {
	var attempts []*Span
	for _, child := range s.Children {
		if child.Name == attemptSpan {
			attempts = append(attempts, child)
		}
	}
	return attempts
}

// build arranges spans under the one among them that has the root's name.
func build(stubs tracetest.SpanStubs, rootName string) (*Span, error) {
	at := slices.IndexFunc(stubs, func(s tracetest.SpanStub) bool { return s.Name == rootName })
	if at < 0 {
		return nil, fmt.Errorf("no span %s was recorded", rootName)
	}
	root := stubs[at]
	slices.SortStableFunc(stubs, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	children := map[trace.SpanID][]tracetest.SpanStub{}
	for _, s := range stubs {
		if s.SpanContext.TraceID() == root.SpanContext.TraceID() {
			children[s.Parent.SpanID()] = append(children[s.Parent.SpanID()], s)
		}
	}
	var convert func(tracetest.SpanStub) *Span
	convert = func(s tracetest.SpanStub) *Span {
		span := &Span{
			Name:       s.Name,
			Start:      s.StartTime.Sub(root.StartTime),
			Duration:   s.EndTime.Sub(s.StartTime),
			Failed:     s.Status.Code == codes.Error,
			Attributes: values(s.Attributes),
		}
		for _, e := range s.Events {
			span.Events = append(span.Events, Event{Name: e.Name, Attributes: values(e.Attributes)})
		}
		for _, child := range children[s.SpanContext.SpanID()] {
			span.Children = append(span.Children, convert(child))
		}
		return span
	}
	span := convert(root)
	if len(span.attempts()) == 0 {
		return nil, fmt.Errorf("no span %s was recorded below %s", attemptSpan, rootName)
	}
	return span, nil
}

func values(attributes []attribute.KeyValue) map[string]any {
	values := make(map[string]any, len(attributes))
	for _, a := range attributes {
		values[string(a.Key)] = a.Value.AsInterface()
	}
	return values
}
