package spantree

import (
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/list"
)

// String draws the tree, a line per span, without a line end after the last.
func (s *Span) String() string {
	drawing := list.NewWriter()
	drawing.SetStyle(list.StyleConnectedRounded)
	draw(drawing, s)
	return drawing.Render()
}

func draw(drawing list.Writer, s *Span) {
	drawing.AppendItem(s.line())
	if len(s.Children) == 0 && len(s.Events) == 0 {
		return
	}
	drawing.Indent()
	for _, child := range s.Children {
		draw(drawing, child)
	}
	for _, event := range s.Events {
		line := "event " + event.Name
		if cycle, ok := event.Attributes[cycleKey]; ok {
			line += fmt.Sprintf("  %v", cycle)
		}
		drawing.AppendItem(line)
	}
	drawing.UnIndent()
}

func (s *Span) line() string {
	words := []string{s.Name}
	if n, ok := s.Attributes[attemptKey]; ok && s.Name == attemptSpan {
		words[0] += fmt.Sprintf(" %v", n)
		// The transaction's span above them says that it is a closure.
		if kind, ok := s.Attributes[kindKey]; ok && kind != kindClosure {
			words[0] += fmt.Sprintf(" (%v)", kind)
		}
	}
	words = append(words, round(s.Duration).String())
	for _, key := range []string{nameKey, outcomeKey, sqlstateKey} {
		// The attempts repeat the transaction's name.
		if value, ok := s.Attributes[key]; ok && (key != nameKey || s.Name == transactionSpan) {
			words = append(words, fmt.Sprintf("%s=%v", key, value))
		}
	}
	if seconds, ok := s.Attributes[backoffKey].(float64); ok {
		words = append(words, fmt.Sprintf("%s=%v", backoffKey, round(time.Duration(seconds*float64(time.Second)))))
	}
	if s.Failed {
		words = append(words, "status=error")
	}
	return strings.Join(words, "  ")
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
