package gate

// levels are the limits that are tried, the last meaning none. They lie about a factor
// of 1.4 apart: closer ones could not be told from each other by what they bring.
var levels = [...]int{1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 0}

// level is an index of levels.
type level int

const unlimited = level(len(levels) - 1)

// limit is how many may be inside; 0 means any number.
func (l level) limit() int { return levels[l] }

// levelFor returns the highest level that lets no more than n in, or the lowest.
func levelFor(n int) level {
	found := level(0)
	for l := range unlimited {
		if levels[l] <= n {
			found = l
		}
	}
	return found
}
