package sqltext

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
)

func TestCacheRemembersAText(t *testing.T) {
	cache := NewCache(10, 100)
	first := cache.Analyze("select now()")
	if second := cache.Analyze(strings.Clone("select now()")); first != second {
		t.Error("the same text was analysed twice")
	}
	if want := Analyze("select now()"); !reflect.DeepEqual(*first, want) {
		t.Errorf("%+v, want %+v", *first, want)
	}
}

func TestCacheHitAllocatesNothing(t *testing.T) {
	cache := NewCache(10, 1000)
	cache.Analyze(ormSelect)
	if n := testing.AllocsPerRun(100, func() { cache.Analyze(ormSelect) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCacheNeverHoldsMoreThanItMay(t *testing.T) {
	for _, limit := range []int{1, 2, 3, 10, 64} {
		cache := NewCache(limit, 100)
		for i := range 500 {
			cache.Analyze(fmt.Sprintf("select %d", i))
			if n := len(cache.young) + len(cache.old); n > limit {
				t.Fatalf("%d texts in a cache for %d", n, limit)
			}
		}
	}
}

func TestCacheKeepsWhatIsInUse(t *testing.T) {
	cache := NewCache(10, 100)
	used := cache.Analyze("select 'used'")
	for i := range 500 {
		cache.Analyze(fmt.Sprintf("select %d", i))
		if again := cache.Analyze("select 'used'"); used != again {
			t.Fatalf("a text in use was forgotten after %d others", i+1)
		}
	}
}

func TestCacheDoesNotKeepLongTexts(t *testing.T) {
	cache := NewCache(10, 20)
	long := "select 1, " + strings.Repeat(" ", 20)
	if first := cache.Analyze(long); first == cache.Analyze(long) {
		t.Error("a long text was kept")
	}
	if len(cache.young)+len(cache.old) != 0 {
		t.Error("a long text is in the cache")
	}
	if !reflect.DeepEqual(*cache.Analyze(long), Analyze(long)) {
		t.Error("a long text is not analysed as usual")
	}
}

func TestCacheWithoutRoomStillAnalyses(t *testing.T) {
	for _, cache := range []*Cache{NewCache(0, 100), NewCache(-1, 100), NewCache(10, 0), NewCache(10, -1)} {
		for _, text := range []string{"", "select 1"} {
			if !reflect.DeepEqual(*cache.Analyze(text), Analyze(text)) {
				t.Errorf("%q is not analysed as usual", text)
			}
		}
		if len(cache.young)+len(cache.old) != 0 {
			t.Error("a cache without room keeps something")
		}
	}
}

func TestCacheServesManyAtOnce(t *testing.T) {
	cache := NewCache(8, 100)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for i := range 2000 {
				text := fmt.Sprintf("select f%d()", i%20)
				if got := cache.Analyze(text).Functions; len(got) != 1 || got[0] != text[7:len(text)-2] {
					t.Errorf("%q: %q", text, got)
					return
				}
			}
		})
	}
	wait.Wait()
}
