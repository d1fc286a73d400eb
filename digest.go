package pgretry

import (
	"database/sql/driver"
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/bits"
	"math/rand/v2"
	"reflect"
	"time"
	"unsafe"
)

// digest stands for what a statement has shown, in the order in which it was shown.
// Two that are equal were made of the same values with the same types, but for a
// chance of one in 2⁶⁴; the keys are drawn anew in every process, so nobody can choose
// values that collide.
type digest uint64

var (
	digestSeed = maphash.MakeSeed()
	digestKeys = [4]uint64{rand.Uint64() | 1, rand.Uint64() | 1, rand.Uint64() | 1, rand.Uint64() | 1}
)

// digestTag tells apart values that would otherwise look alike: NULL, "", false
// and 0 are four different things.
type digestTag uint64

const (
	tagNull digestTag = iota + 1
	tagInt
	tagFloat
	tagFalse
	tagTrue
	tagBytes
	tagString
	tagTime
	tagTimeUTC
	tagZone
	tagOther
	tagColumn
	tagColumnType
	tagSet
	tagAffected
	tagNoCount
	tagState
	tagConstraint
	tagInputs
)

// with is a step of wyhash: the product of the value and of what there is so far,
// folded.
func (d digest) with(tag digestTag, value uint64) digest {
	high, low := bits.Mul64(value^digestKeys[0], (uint64(d)+uint64(tag))^digestKeys[1])
	return digest(high ^ low)
}

// pair makes one value of two, as a step of wyhash does. Neither the digest so far nor a tag
// takes part: xored with a value, they could make up for a difference in it.
func pair(first, second uint64) uint64 {
	high, low := bits.Mul64(first^digestKeys[2], second^digestKeys[3])
	return high ^ low
}

// shortText is how many bytes are added without calling maphash.
const shortText = 32

// short adds up to shortText bytes, in one step or two. All of them are in the parts, which
// overlap unless they are full; the length tells apart what fills them alike.
func short(d digest, tag digestTag, b []byte) digest {
	n := len(b)
	tag |= digestTag(n) << 8
	switch {
	case n >= 8:
		if n > 16 {
			d = d.with(tag, pair(binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[n-16:])))
		}
		return d.with(tag, pair(binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[n-8:])))
	case n >= 4:
		return d.with(tag, pair(uint64(binary.NativeEndian.Uint32(b)), uint64(binary.NativeEndian.Uint32(b[n-4:]))))
	case n > 0:
		return d.with(tag, uint64(b[0])|uint64(b[n>>1])<<8|uint64(b[n-1])<<16)
	}
	return d.with(tag, 0)
}

// withText and withBytes add a string or bytes.
func withText(d digest, tag digestTag, s string) digest {
	return withBytes(d, tag, unsafe.Slice(unsafe.StringData(s), len(s))) //nolint:gosec // it is only read
}

func withBytes(d digest, tag digestTag, b []byte) digest {
	if len(b) <= shortText {
		return short(d, tag, b)
	}
	return d.with(tag, maphash.Bytes(digestSeed, b))
}

func (d *digest) add(tag digestTag, value uint64) { *d = d.with(tag, value) }

func (d *digest) addString(tag digestTag, s string) {
	*d = withText(*d, tag, s)
}

// addValue adds a cell. It is false if the value's type is none that can be compared.
func (d *digest) addValue(value driver.Value) bool {
	switch value := value.(type) {
	case nil:
		d.add(tagNull, 0)
	case int64:
		d.add(tagInt, uint64(value))
	case string:
		d.addString(tagString, value)
	case []byte:
		*d = withBytes(*d, tagBytes, value)
	case bool:
		if value {
			d.add(tagTrue, 0)
		} else {
			d.add(tagFalse, 0)
		}
	case float64:
		d.add(tagFloat, math.Float64bits(value))
	case time.Time:
		d.addTime(value)
	default:
		return d.addOther(value)
	}
	return true
}

// addTime adds the instant and what is shown of its zone.
func (d *digest) addTime(t time.Time) {
	if t.Location() == time.UTC {
		*d = d.with(tagTimeUTC, pair(uint64(t.Unix()), uint64(t.Nanosecond())))
		return
	}
	d.add(tagTime, uint64(t.Unix()))
	name, offset := t.Zone()
	d.add(tagZone, uint64(offset)<<32|uint64(t.Nanosecond()))
	d.addString(tagZone, name)
}

// addOther adds values of types that database/sql does not name but drivers return.
func (d *digest) addOther(value driver.Value) bool {
	v := reflect.ValueOf(value)
	d.addString(tagOther, v.Type().String())
	switch v.Kind() {
	case reflect.Bool:
		return d.addValue(v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return d.addValue(v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.add(tagInt, v.Uint())
	case reflect.Float32, reflect.Float64:
		return d.addValue(v.Float())
	case reflect.String:
		return d.addValue(v.String())
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.IsNil() {
			d.add(tagNull, 1)
			return true
		}
		d.add(tagOther, uint64(v.Len()))
		for i := range v.Len() {
			if !v.Index(i).CanInterface() || !d.addValue(v.Index(i).Interface()) {
				return false
			}
		}
	default:
		return false
	}
	return true
}

// addError adds what of a server's error a replay must show again.
func (d *digest) addError(err error) {
	server, _ := asServerError(err)
	d.addString(tagState, server.code)
	d.addString(tagConstraint, server.constraint)
}

// addResult adds the number of rows that a statement affected and returns it, 0 if
// the driver does not tell.
func (d *digest) addResult(result driver.Result) int64 {
	n, err := result.RowsAffected()
	if err != nil {
		d.add(tagNoCount, 0)
		return 0
	}
	d.add(tagAffected, uint64(n))
	return n
}

// shown is what the application was shown of a statement's result so far.
type shown struct {
	digest  digest
	rows    int     // of the current result set
	end     bool    // of the current result set was seen
	earlier []shows // of the result sets before it
}

// shows is how much of a result set was seen.
type shows struct {
	rows int
	end  bool
}

// columns adds the names and types of the columns of a result set. real are the
// inner driver's own rows, which know the types.
func (s *shown) columns(names []string, real driver.Rows) {
	s.digest.add(tagSet, uint64(len(names)))
	types, _ := real.(driver.RowsColumnTypeDatabaseTypeName)
	for i, name := range names {
		s.digest.addString(tagColumn, name)
		if types != nil {
			s.digest.addString(tagColumnType, types.ColumnTypeDatabaseTypeName(i))
		}
	}
}

// row adds a row. It is false if it has a value that cannot be compared.
func (s *shown) row(values []driver.Value) bool {
	s.rows++
	sum := s.digest // in a register, since rows are many
	for i := range values {
		switch value := values[i].(type) {
		case int64:
			sum = sum.with(tagInt, uint64(value))
		case string:
			sum = withText(sum, tagString, value)
		case []byte:
			sum = withBytes(sum, tagBytes, value)
		case time.Time:
			if value.Location() == time.UTC {
				sum = sum.with(tagTimeUTC, pair(uint64(value.Unix()), uint64(value.Nanosecond())))
				continue
			}
			other := sum
			other.addTime(value)
			sum = other
		default:
			other := sum
			if !other.addValue(value) {
				return false
			}
			sum = other
		}
	}
	s.digest = sum
	return true
}

// nextSet goes on to the next result set.
func (s *shown) nextSet() {
	s.earlier = append(s.earlier, shows{s.rows, s.end})
	s.rows, s.end = 0, false
}

// failed ends the result with an error. Whether a statement that shows no rows fails
// at once or when its rows are asked for is chance.
func (s *shown) failed(err error) {
	if s.rows == 0 && len(s.earlier) == 0 {
		*s = shown{}
	}
	s.digest.addError(err)
}

// sets returns how much was seen of each result set.
func (s *shown) sets() []shows {
	return append(s.earlier[:len(s.earlier):len(s.earlier)], shows{s.rows, s.end})
}
