package sqltext

import (
	"strings"
	"sync"
)

// Cache remembers what Analyze found out about texts. It is safe for concurrent
// use, and a hit allocates nothing.
//
// It keeps two generations: new texts enter the young one, and when that is
// full it becomes the old one, whose texts are forgotten unless they were asked
// for again. So what is in use stays, at no cost on a hit.
type Cache struct {
	maxEntries   int
	maxTextBytes int

	mu         sync.RWMutex
	young, old map[string]*cached
}

// cached holds its own key, so that it can move between the generations.
type cached struct {
	text string
	info Info
}

// NewCache returns a cache of at most maxEntries texts of at most maxTextBytes
// bytes each. If either is zero or negative, nothing is kept.
func NewCache(maxEntries, maxTextBytes int) *Cache {
	return &Cache{maxEntries: maxEntries, maxTextBytes: maxTextBytes, young: make(map[string]*cached)}
}

// Analyze returns what the function Analyze does, from memory if possible. The
// result is shared: it must not be changed. Texts that are too long are
// analysed each time.
func (c *Cache) Analyze(text string) *Info {
	if c.maxEntries <= 0 || len(text) > c.maxTextBytes || c.maxTextBytes <= 0 {
		info := Analyze(text)
		return &info
	}
	c.mu.RLock()
	entry, young := c.young[text]
	if !young {
		entry = c.old[text]
	}
	c.mu.RUnlock()
	if young {
		return &entry.info
	}
	if entry == nil {
		// The text may be a small part of something large that is not to be
		// kept alive. The names found in it are parts of it in turn.
		entry = &cached{text: strings.Clone(text)}
		entry.info = Analyze(entry.text)
	}
	return &c.keep(entry).info
}

// keep puts an entry into the young generation, unless another call was faster,
// and returns what is there.
func (c *Cache) keep(entry *cached) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first, ok := c.young[entry.text]; ok {
		return first
	}
	if first, ok := c.old[entry.text]; ok {
		entry = first
		delete(c.old, entry.text)
	}
	if len(c.young) >= max(1, c.maxEntries/2) {
		c.young, c.old = make(map[string]*cached), c.young
		if c.maxEntries == 1 {
			c.old = nil
		}
	}
	c.young[entry.text] = entry
	return entry
}
