package script

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrNone is what a library's adapter returns for what the library does not have.
var ErrNone = errors.New("the library has none")

// errNo is the application's own reason to give up.
var errNo = errors.New("no")

// A step is one transaction of the application's.
type step struct {
	name string

	// generates says that the application is shown what the database makes anew in each
	// run, an id: if COMMIT fails after that, no replay can show the same.
	generates bool

	// do does the work. It says what it saw, and calls first and then second in between,
	// which lock two rows; a rival does so in the opposite order.
	do func(ctx context.Context, app App, tx Tx, s *scene) error

	// want says whether the error of the transaction is the one that it should have; nil
	// means none.
	want func(app App, err error) bool
}

// scene is what a step is given.
type scene struct {
	first, second func(ctx context.Context, tx Tx) error
	cancel        context.CancelFunc
	saw           []string
}

func (s *scene) see(format string, args ...any) {
	s.saw = append(s.saw, fmt.Sprintf(format, args...))
}

// both locks the two rows, one after the other.
func (s *scene) both(ctx context.Context, tx Tx) error {
	if err := s.first(ctx, tx); err != nil {
		return err
	}
	return s.second(ctx, tx)
}

var sample = Sample{
	ID: 1, Small: -7, Float: 0.1, Amount: "1234567.8900", Flag: true, Label: "straße; -- 'quoted'",
	Raw: []byte{0, 1, 0xff}, At: time.Date(2024, 2, 29, 23, 59, 59, 123456000, time.UTC),
	Doc: `{"a": [1, null, "é"]}`, Tags: []string{"x", `y"z`, ""},
}

func stock(prefix string, from, to int) []Stock {
	var list []Stock
	for i := from; i < to; i++ {
		list = append(list, Stock{fmt.Sprintf("%s-%02d", prefix, i), int64(i)})
	}
	return list
}

var steps = []step{
	{name: "create with returned ids", generates: true, do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		id, err := tx.CreateCustomer(ctx, "create-1")
		if err != nil {
			return err
		}
		other, err := tx.CreateCustomer(ctx, "create-2")
		if err != nil {
			return err
		}
		s.see("ids: %t, two: %t", id > 0, id != other)
		// An id that is shown after the first lock would be of a lock from before it.
		if _, err := tx.CreatePurchase(ctx, id, "pen"); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		_, err = tx.CreatePurchase(ctx, other, "ink")
		return err
	}},
	{name: "associations", generates: true, do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		created, err := tx.CreateWithPurchases(ctx, "associations-1", "pen", "paper")
		if err != nil {
			return err
		}
		if _, err := tx.CreateWithPurchases(ctx, "associations-2"); err != nil {
			return err
		}
		s.see("%s has an id: %t, purchases: %d", created.Name, created.ID > 0, len(created.Purchases))
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		loaded, err := tx.Customers(ctx, "associations-")
		if err != nil {
			return err
		}
		for _, c := range loaded {
			s.see("%s", c.Name)
			for _, p := range c.Purchases {
				s.see("%s has bought %s: %t", c.Name, p.Item, p.CustomerID == c.ID && p.ID > 0)
			}
		}
		return nil
	}},
	{name: "batch insert and upsert", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		if err := tx.InsertStock(ctx, stock("batch", 0, 10)); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		return tx.UpsertStock(ctx, stock("batch", 5, 15))
	}},
	{name: "nested transaction", do: func(ctx context.Context, app App, tx Tx, s *scene) error {
		if err := tx.InsertStock(ctx, stock("nested", 0, 1)); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		if err := tx.Nested(ctx, func(ctx context.Context, tx Tx) error {
			return tx.InsertStock(ctx, stock("nested", 3, 4))
		}); err != nil {
			return err
		}
		if err := tx.Nested(ctx, func(ctx context.Context, tx Tx) error {
			if err := tx.InsertStock(ctx, stock("nested", 2, 3)); err != nil {
				return err
			}
			return errNo
		}); !errors.Is(err, errNo) {
			return unless(err, "the application's own error did not arrive")
		}
		// The last, because after an error that was shown a conflict inside a further
		// savepoint is the application's.
		if err := tx.Nested(ctx, func(ctx context.Context, tx Tx) error {
			if err := tx.InsertStock(ctx, stock("nested", 1, 2)); err != nil {
				return err
			}
			return tx.InsertStock(ctx, stock("nested", 0, 1))
		}); !app.IsDuplicate(err) {
			return unless(err, "a duplicate in a nested transaction is no error")
		}
		s.see("a duplicate")
		return nil
	}},
	{name: "conflict in a nested transaction", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		if err := tx.InsertStock(ctx, stock("inside", 0, 1)); err != nil {
			return err
		}
		return tx.Nested(ctx, func(ctx context.Context, tx Tx) error {
			if err := s.both(ctx, tx); err != nil {
				return err
			}
			return tx.InsertStock(ctx, stock("inside", 1, 2))
		})
	}},
	{name: "raw SQL", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		affected, err := tx.RawExec(ctx, "batch-0", 100)
		if err != nil {
			return err
		}
		s.see("%d changed", affected)
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		list, err := tx.RawQuery(ctx, "batch-")
		s.see("%v", list)
		return err
	}},
	{name: "prepared statements", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		for range 2 { // so that one is executed before the conflict and after it
			quantities, err := tx.Prepared(ctx, "batch-01", "batch-02", "batch-12")
			if err != nil {
				return err
			}
			s.see("%v", quantities)
			if len(s.saw) == 1 {
				if err := s.both(ctx, tx); err != nil {
					return err
				}
			}
		}
		return nil
	}},
	{name: "streamed rows", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		sum := int64(0)
		if err := tx.Stream(ctx, "batch-", func(row Stock) error {
			sum += row.Quantity
			return nil
		}); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		seen := 0
		if err := tx.Stream(ctx, "batch-", func(Stock) error {
			if seen++; seen == 3 {
				return errNo
			}
			return nil
		}); !errors.Is(err, errNo) {
			return unless(err, "reading on after three rows")
		}
		s.see("%d in all, stopped after %d", sum, seen)
		return tx.InsertStock(ctx, []Stock{{"stream", sum}})
	}},
	{name: "types and columns", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		if err := tx.InsertSample(ctx, sample); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		loaded, err := tx.LoadSample(ctx, sample.ID)
		if err != nil {
			return err
		}
		loaded.At = loaded.At.UTC()
		s.see("%+v", loaded)
		return columns(ctx, tx, s)
	}},
	{name: "read for update, then write", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		balance, err := tx.Lock(ctx, 3)
		if err != nil {
			return err
		}
		s.see("the balance is %d", balance)
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		return tx.Pay(ctx, 3, balance/2+10)
	}},
	{name: "unique violation", do: func(ctx context.Context, app App, tx Tx, s *scene) error {
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		err := tx.InsertStock(ctx, stock("batch", 0, 1))
		if app.IsDuplicate(err) {
			s.see("a duplicate, SQLSTATE %s: %v", sqlState(err), err)
		}
		return err
	}, want: App.IsDuplicate},
	{name: "given up by the application", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		if err := tx.InsertStock(ctx, stock("given-up", 0, 1)); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		return errNo
	}, want: func(_ App, err error) bool { return errors.Is(err, errNo) }},
	{name: "cancelled", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		if err := tx.InsertStock(ctx, stock("cancelled", 0, 1)); err != nil {
			return err
		}
		if err := s.both(ctx, tx); err != nil {
			return err
		}
		s.cancel()
		err := tx.InsertStock(ctx, stock("cancelled", 1, 2))
		s.see("%t", errors.Is(err, context.Canceled))
		return err
	}, want: func(_ App, err error) bool { return errors.Is(err, context.Canceled) }},
	{name: "hooks", do: func(ctx context.Context, _ App, tx Tx, s *scene) error {
		noted, err := tx.Hooked(ctx, Stock{"hooked", 1})
		if err != nil && !errors.Is(err, ErrNone) {
			return err
		}
		s.see("%v, %v", noted, err)
		return s.both(ctx, tx)
	}},
}

// columns says what database/sql tells of the columns of a result.
func columns(ctx context.Context, tx Tx, s *scene) (err error) {
	rows, err := tx.Rows(ctx, `SELECT * FROM sample`)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	types, err := rows.ColumnTypes()
	if err != nil {
		return err
	}
	for _, t := range types {
		length, hasLength := t.Length()
		precision, scale, hasScale := t.DecimalSize()
		nullable, known := t.Nullable()
		s.see("%s %s %v %d %t %d %d %t %t %t", t.Name(), t.DatabaseTypeName(), t.ScanType(),
			length, hasLength, precision, scale, hasScale, nullable, known)
	}
	for rows.Next() {
		values, targets := make([]any, len(types)), make([]any, len(types))
		for i := range values {
			targets[i] = &values[i]
		}
		if err := rows.Scan(targets...); err != nil {
			return err
		}
		for _, v := range values {
			if at, ok := v.(time.Time); ok {
				v = at.UTC()
			}
			s.see("%T %v", v, v)
		}
	}
	return rows.Err()
}

// unless returns the error, if there is one, and else one that says what is wrong.
func unless(err error, wrong string) error {
	if err != nil {
		return err
	}
	return errors.New(wrong)
}

// sqlState returns the SQLSTATE of a server's error, or "".
func sqlState(err error) string {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState()
	}
	return ""
}

// lone is what the application does outside transactions of its own.
func lone(ctx context.Context, tx Tx) (saw []string, err error) {
	if _, err := tx.CreateCustomer(ctx, "lone"); err != nil {
		return nil, err
	}
	if err := tx.InsertStock(ctx, stock("lone", 0, 5)); err != nil {
		return nil, err
	}
	if err := tx.UpsertStock(ctx, stock("lone", 2, 7)); err != nil {
		return nil, err
	}
	affected, err := tx.RawExec(ctx, "lone-", 10)
	if err != nil {
		return nil, err
	}
	list, err := tx.RawQuery(ctx, "lone-")
	if err != nil {
		return nil, err
	}
	var streamed []string
	if err := tx.Stream(ctx, "lone-", func(row Stock) error {
		streamed = append(streamed, row.SKU)
		return nil
	}); err != nil {
		return nil, err
	}
	return []string{fmt.Sprint(affected, list), strings.Join(streamed, " ")}, tx.Pay(ctx, 3, 1)
}
