package lockgraph

// Object is something that can be locked: the columns of pg_locks that together identify it, as text. What does not
// apply is empty. Objects are the same if and only if they are equal.
type Object struct {
	Type          string // locktype
	Database      string // 0 for an object shared by all databases
	Relation      string
	Page          string
	Tuple         string
	VirtualXID    string
	TransactionID string
	ClassID       string
	ObjID         string
	ObjSubID      string
}

// String names the object as the server does in the DETAIL of a deadlock, in English: "transaction 729", "tuple (0,2) of
// relation 16384 of database 5".
func (o Object) String() string {
	switch o.Type {
	case "relation":
		return "relation " + o.Relation + " of database " + o.Database
	case "extend":
		return "extension of relation " + o.Relation + " of database " + o.Database
	case "frozenid":
		return "pg_database.datfrozenxid of database " + o.Database
	case "page":
		return "page " + o.Page + " of relation " + o.Relation + " of database " + o.Database
	case "tuple":
		return "tuple (" + o.Page + "," + o.Tuple + ") of relation " + o.Relation + " of database " + o.Database
	case "transactionid":
		return "transaction " + o.TransactionID
	case "virtualxid":
		return "virtual transaction " + o.VirtualXID
	case "spectoken":
		if o.TransactionID == "" {
			// Where pg_locks has no form for it, it is shown like a database object.
			return "speculative token " + o.ClassID + " of transaction " + o.Database
		}
		return "speculative token " + o.ObjID + " of transaction " + o.TransactionID
	case "object":
		return "object " + o.ObjID + " of class " + o.ClassID + " of database " + o.Database
	case "userlock":
		return "user lock [" + o.Database + "," + o.ClassID + "," + o.ObjID + "]"
	case "advisory":
		return "advisory lock [" + o.Database + "," + o.ClassID + "," + o.ObjID + "," + o.ObjSubID + "]"
	case "applytransaction":
		return "remote transaction " + o.TransactionID + " of subscription " + o.ObjID + " of database " + o.Database
	}
	return "unrecognized locktag type " + o.Type
}

// betweenTransactions tells whether a leader and its parallel workers, which share one transaction and write nothing
// while they are several, never find one another in the way of this object.
func (o Object) betweenTransactions() bool {
	switch o.Type {
	case "tuple", "transactionid", "virtualxid", "spectoken":
		return true
	}
	return false
}
