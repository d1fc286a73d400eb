package pgretrytest

import (
	"strings"
	"time"
)

// span is the time that a run took.
type span struct{ from, to time.Time }

// clockSlack is by how much the server's clock may be off, and a time rounded.
const clockSlack = time.Second

func (s span) holds(at time.Time) bool { return s.holdsBy(at, 0) }

func (s span) holdsBy(at time.Time, slack time.Duration) bool {
	slack += clockSlack
	return !at.Before(s.from.Add(-slack)) && !at.After(s.to.Add(slack))
}

const (
	zoneStep = 15 * time.Minute // between time zones
	zoneMost = 14 * time.Hour   // from UTC
)

// holdsText is true of a time, as PostgreSQL shows it in ISO style, that lies in the span;
// where it is without a time zone, in that of some place.
func (s span) holdsText(typ, text string) bool {
	layouts := map[string][]string{
		"timestamptz": {"2006-01-02 15:04:05.999999Z07:00:00", "2006-01-02 15:04:05.999999Z07:00", "2006-01-02 15:04:05.999999Z07"},
		"timestamp":   {"2006-01-02 15:04:05.999999"},
		"date":        {"2006-01-02"},
		"timetz":      {"15:04:05.999999Z07:00", "15:04:05.999999Z07"},
		"time":        {"15:04:05.999999"},
	}[typ]
	for _, layout := range layouts {
		at, err := time.Parse(layout, strings.TrimSpace(text))
		if err != nil {
			continue
		}
		switch typ {
		case "timestamptz":
			return s.holds(at)
		case "date": // its noon
			return s.holdsBy(at.Add(12*time.Hour), 12*time.Hour+zoneMost)
		case "timestamp":
			return s.holdsBy(at, zoneMost) && s.holdsModulo(at, zoneStep)
		case "timetz":
			return s.holdsModulo(at, 24*time.Hour)
		case "time":
			return s.holdsModulo(at, zoneStep)
		}
	}
	return false
}

// holdsModulo says whether the span holds a time that is a multiple of step away.
func (s span) holdsModulo(at time.Time, step time.Duration) bool {
	first := s.from.Add(-clockSlack)
	after := (time.Duration(at.Unix()-first.Unix())%(step/time.Second)*time.Second + time.Duration(at.Nanosecond()-first.Nanosecond()) + step) % step
	return !first.Add(after).After(s.to.Add(clockSlack))
}
