package xorm

import (
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/compat/script"
)

type account struct {
	ID      int64 `xorm:"pk"`
	Balance int64 `xorm:"notnull"`
}

type customer struct {
	ID   int64  `xorm:"pk autoincr"`
	Name string `xorm:"text notnull unique"`
}

// A purchase has its customer's id. To load a customer in its place xorm would query
// while the rows of purchases are open, which lib/pq refuses in a transaction.
type purchase struct {
	ID         int64  `xorm:"pk autoincr"`
	CustomerID int64  `xorm:"notnull index"`
	Item       string `xorm:"text notnull"`
}

// bought is a row of a join.
type bought struct {
	Customer customer `xorm:"extends"`
	Purchase purchase `xorm:"extends"`
}

type stock struct {
	SKU      string `xorm:"text pk"`
	Quantity int64  `xorm:"notnull"`

	noted *[]string // by the hooks
}

type sample struct {
	ID     int64     `xorm:"pk"`
	Small  int16     `xorm:"smallint"`
	Float  float64   `xorm:"double"`
	Amount string    `xorm:"numeric(12,4)"`
	Flag   bool      `xorm:"bool"`
	Label  string    `xorm:"text"`
	Raw    []byte    `xorm:"bytea"`
	At     time.Time `xorm:"timestampz"`
	Doc    string    `xorm:"jsonb"`
	Tags   tags      `xorm:"text"`
	Note   *string   `xorm:"text"`
}

func (account) TableName() string  { return "account" }
func (customer) TableName() string { return "customer" }
func (purchase) TableName() string { return "purchase" }
func (stock) TableName() string    { return "stock" }
func (sample) TableName() string   { return "sample" }

// tags is converted as xorm has it done, which takes no driver.Valuer that is a slice.
type tags pq.StringArray

// FromDB reads what the server sent.
func (t *tags) FromDB(text []byte) error { return (*pq.StringArray)(t).Scan(text) }

// ToDB makes the text of an array.
func (t *tags) ToDB() ([]byte, error) {
	value, err := (*pq.StringArray)(t).Value()
	text, _ := value.(string)
	return []byte(text), err
}

func rows(list []script.Stock) (rows []stock) {
	for _, s := range list {
		rows = append(rows, stock{SKU: s.SKU, Quantity: s.Quantity})
	}
	return rows
}

func plainStock(rows []stock) (list []script.Stock) {
	for _, s := range rows {
		list = append(list, s.plain())
	}
	return list
}

func (s stock) plain() script.Stock { return script.Stock{SKU: s.SKU, Quantity: s.Quantity} }
