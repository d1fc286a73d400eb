package gate
import ("testing";"time";"fmt")
func TestDBG(t *testing.T){
	s := newShop(func(limit int) float64 { return 1000 / float64(limit) })
	s.serve(100 * time.Millisecond)
	for s.Limit() != 1 {
		s.deadlock(time.Second)
	}
	fmt.Println(s.now.Sub(epochStart))
	last:=-1
	for range 2900 { s.serve(10*time.Millisecond); if s.Limit()!=last { last=s.Limit(); fmt.Println(s.now.Sub(epochStart), last, s.control.phase, s.control.riseWait)}}
}
