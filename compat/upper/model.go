package upper

import (
	"time"

	"github.com/upper/db/v4"
	"github.com/upper/db/v4/adapter/postgresql"

	"github.com/pgretry/pgretry/compat/script"
)

type account struct {
	ID      int64 `db:"id"`
	Balance int64 `db:"balance"`
}

type customer struct {
	ID   int64  `db:"id,omitempty"`
	Name string `db:"name"`
}

type purchase struct {
	ID         int64  `db:"id,omitempty"`
	CustomerID int64  `db:"customer_id"`
	Item       string `db:"item"`
}

// bought is a row of a join.
type bought struct {
	ID         int64   `db:"id"`
	Name       string  `db:"name"`
	PurchaseID *int64  `db:"purchase_id"`
	Item       *string `db:"item"`
}

type stock struct {
	SKU      string `db:"sku"`
	Quantity int64  `db:"quantity"`

	noted *[]string // by the hooks
}

// sample has upper's own types where it would make something else of Go's.
type sample struct {
	ID     int64                  `db:"id"`
	Small  int16                  `db:"small"`
	Float  float64                `db:"float"`
	Amount string                 `db:"amount"`
	Flag   bool                   `db:"flag"`
	Label  string                 `db:"label"`
	Raw    postgresql.Bytea       `db:"raw"`
	At     time.Time              `db:"at"`
	Doc    string                 `db:"doc"`
	Tags   postgresql.StringArray `db:"tags"`
	Note   *string                `db:"note"`
}

// Store says which table a record belongs to, as the others do.
func (*customer) Store(sess db.Session) db.Store { return sess.Collection("customer") }

// Store is the table purchase.
func (*purchase) Store(sess db.Session) db.Store { return sess.Collection("purchase") }

// Store is the table stock.
func (*stock) Store(sess db.Session) db.Store { return sess.Collection("stock") }

// Validate is called before anything else.
func (s *stock) Validate() error { return s.note("validate") }

// BeforeCreate is a hook.
func (s *stock) BeforeCreate(db.Session) error { return s.note("before create") }

// AfterCreate is one, too. It reads what was written.
func (s *stock) AfterCreate(sess db.Session) error {
	found := stock{}
	if err := sess.Get(&found, db.Cond{"sku": s.SKU}); err != nil {
		return err
	}
	found.noted = s.noted
	return found.note("found after create")
}

func (s *stock) note(hook string) error {
	*s.noted = append(*s.noted, hook+" "+s.SKU)
	return nil
}

func plainStock(rows []stock) (list []script.Stock) {
	for _, s := range rows {
		list = append(list, script.Stock{SKU: s.SKU, Quantity: s.Quantity})
	}
	return list
}
