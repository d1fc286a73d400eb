package pgretry

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/lib/pq"
)

func deadlockError(detail, where string) error {
	return &pq.Error{Severity: "ERROR", Code: "40P01", Message: "deadlock detected", Detail: detail, Where: where}
}

func TestRecordedDeadlocksAreReadCompletely(t *testing.T) {
	read := 0
	for _, r := range recordedErrors(t) {
		deadlock, ok := ParseDeadlock(r.rebuild(t))
		if ok != (r.Code == "40P01") {
			t.Errorf("%v: a deadlock: %v", r, ok)
		}
		if !ok {
			continue
		}
		if r.Detail == "" { // Citus' distributed deadlock
			if len(deadlock.Edges) != 0 || deadlock.String() != "" {
				t.Errorf("%v: edges out of nothing: %v", r, deadlock)
			}
			continue
		}
		read++
		if want := 1 + strings.Count(r.Detail, "\n"); len(deadlock.Edges) != want {
			t.Errorf("%v: %d edges, want %d", r, len(deadlock.Edges), want)
			continue
		}
		for i, edge := range deadlock.Edges {
			if next := deadlock.Edges[(i+1)%len(deadlock.Edges)]; edge.BlockedBy != next.PID {
				t.Errorf("%v: the cycle is broken after %d", r, edge.PID)
			}
			line := fmt.Sprintf("Process %d waits for %s on %s; blocked by process %d.", edge.PID, edge.Mode, edge.Object, edge.BlockedBy)
			if !strings.Contains(r.Detail, line) {
				t.Errorf("%v: %q is not in the report", r, line)
			}
		}
		if strings.Contains(r.Context, "in relation ") != (deadlock.Relation != "") {
			t.Errorf("%v: relation %q in %q", r, deadlock.Relation, r.Context)
		}
	}
	if read == 0 {
		t.Fatal("no recorded deadlock has a report")
	}
}

func TestADeadlockIsReadFromItsReport(t *testing.T) {
	deadlock, ok := ParseDeadlock(fmt.Errorf("transfer: %w", deadlockError(
		"Process 30543 waits for ShareLock on transaction 729; blocked by process 30544.\n"+
			"Process 30544 waits for AccessExclusiveLock on tuple (0,2) of relation 16384 of database 5; blocked by process 30543.",
		"while updating tuple (0,2) in relation \"t\"\nSQL statement \"update t set v=v+1 where id=i\"")))
	if !ok {
		t.Fatal("not taken for a deadlock")
	}
	want := &Deadlock{
		Edges: []DeadlockEdge{
			{PID: 30543, Mode: "ShareLock", Object: "transaction 729", BlockedBy: 30544},
			{PID: 30544, Mode: "AccessExclusiveLock", Object: "tuple (0,2) of relation 16384 of database 5", BlockedBy: 30543},
		},
		Relation: "t",
	}
	if !reflect.DeepEqual(deadlock, want) {
		t.Errorf("got %+v, want %+v", deadlock, want)
	}
	const text = "30543 waits for ShareLock on transaction 729, blocked by 30544; " +
		"30544 waits for AccessExclusiveLock on tuple (0,2) of relation 16384 of database 5, blocked by 30543"
	if deadlock.String() != text {
		t.Errorf("got %q, want %q", deadlock, text)
	}
	if none := (*Deadlock)(nil); none.String() != "" {
		t.Errorf("no deadlock: %q", none)
	}
}

func TestEveryLockableObjectIsRead(t *testing.T) {
	for _, object := range []string{
		"relation 16411 of database 5",
		"extension of relation 16411 of database 5",
		"pg_database.datfrozenxid of database 5",
		"page 7 of relation 16411 of database 5",
		"tuple (0,2) of relation 16411 of database 5",
		"transaction 729",
		"virtual transaction 3/52",
		"virtual transaction -1/52",
		"speculative token 1 of transaction 729",
		"object 16411 of class 1259 of database 5",
		"user lock [5,0,2]",
		"advisory lock [5,0,2,1]",
		"remote transaction 8 of subscription 16500 of database 5",
		"unrecognized locktag type 77",
	} {
		for _, mode := range []string{
			"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
			"ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock", "SIReadLock",
		} {
			detail := fmt.Sprintf("Process 1 waits for %s on %s; blocked by process 2.", mode, object)
			deadlock, _ := ParseDeadlock(deadlockError(detail, ""))
			want := []DeadlockEdge{{PID: 1, Mode: mode, Object: object, BlockedBy: 2}}
			if !reflect.DeepEqual(deadlock.Edges, want) {
				t.Errorf("%s: got %v", detail, deadlock.Edges)
			}
		}
	}
}

// The sentences are those of PostgreSQL's own translations.
func TestTranslatedDeadlocksAreRead(t *testing.T) {
	for _, test := range []struct{ language, detail, object, where string }{
		{"German", "Prozess 123 wartet auf ShareLock-Sperre auf Transaktion 729; blockiert von Prozess 124.", "Transaktion 729", "beim Aktualisieren von Tupel (0,2) in Relation »konten«"},
		{"German", "Prozess 123 wartet auf ShareLock-Sperre auf Tupel (0, 2) von Relation 16384 von Datenbank 5; blockiert von Prozess 124.", "Tupel (0, 2) von Relation 16384 von Datenbank 5", "beim Sperren von Tupel (0,2) in Relation »konten«"},
		{"Spanish", "El proceso 123 espera ShareLock en transacción 729; bloqueado por proceso 124.", "transacción 729", "mientras se actualizaba la tupla (0,2) en la relación «konten»"},
		{"French", "Le processus 123 attend ShareLock sur transaction 729 ; bloqué par le processus 124.", "transaction 729", "lors de la mise à jour de la ligne (0,2) dans la relation « konten »"},
		{"French", "Le processus 123 attend ShareLock sur ligne (0,2) de la relation 16384 de la base de données 5\u00a0; bloqué par le processus 124.", "ligne (0,2) de la relation 16384 de la base de données 5", "lors du verrouillage de la ligne (0,2) dans la relation «\u00a0konten\u00a0»"},
		{"Italian", "Il processo 123 è in attesa di ShareLock su la transazione 729; bloccato dal processo 124.", "la transazione 729", "durante la modifica della tupla (0,2) nella relazione \"konten\""},
		{"Japanese", "プロセス 123 は ShareLock を トランザクション 729 で待機していましたが、プロセス 124 でブロックされました", "トランザクション 729", "リレーション\"konten\"のタプル(0,2)の更新中"},
		{"Japanese", "プロセス 123 は ShareLock を データベース5のリレーション16384のタプル(2,0) で待機していましたが、プロセス 124 でブロックされました", "データベース5のリレーション16384のタプル(2,0)", "リレーション\"konten\"のタプル(0,2)のロック中"},
		{"Korean", "123 프로세스가 ShareLock 상태로 지연되고 있음(해당 작업: 트랜잭션 729); 124 프로세스에 의해 블록킹되었음", "트랜잭션 729", "0,2 튜플(해당 릴레이션 \"konten\")을 갱신하는 중에 발생"},
		{"Russian", "Процесс 123 ожидает в режиме ShareLock блокировку \"транзакция 729\"; заблокирован процессом 124.", "транзакция 729", "при изменении кортежа (0,2) в отношении \"konten\""},
		{"Swedish", "Process 123 väntar på ShareLock för transaktion 729; blockerad av process 124.", "transaktion 729", "vid uppdatering av tupel (0,2) i relation \"konten\""},
		{"Ukrainian", "Процес 123 очікує в режимі ShareLock блокування \"транзакція 729\"; заблокований процесом 124.", "транзакція 729", "при оновленні кортежу (0,2) в зв'язку \"konten\""},
		{"Chinese", "进程123等待在事务 729上的ShareLock; 由进程124阻塞.", "事务 729", "当更新关系\"konten\"的元组(0, 2)时"},
	} {
		// The second line closes the cycle, as the server's does.
		back := strings.NewReplacer("123", "124", "124", "123").Replace(test.detail)
		deadlock, ok := ParseDeadlock(deadlockError(test.detail+"\n"+back, test.where))
		want := &Deadlock{
			Edges: []DeadlockEdge{
				{PID: 123, Mode: "ShareLock", Object: test.object, BlockedBy: 124},
				{PID: 124, Mode: "ShareLock", Object: test.object, BlockedBy: 123},
			},
			Relation: "konten",
		}
		if !ok || !reflect.DeepEqual(deadlock, want) {
			t.Errorf("%s: got %+v, want %+v", test.language, deadlock, want)
		}
	}
}

func TestTextThatCannotBeReadIsLeftOut(t *testing.T) {
	const whole = "Process 1 waits for ShareLock on transaction 729; blocked by process 2."
	for length := range len(whole) {
		cut := whole[:length]
		deadlock, ok := ParseDeadlock(deadlockError(whole+"\n"+cut, ""))
		if !ok || len(deadlock.Edges) != 1 {
			t.Errorf("cut to %q: %v", cut, deadlock)
		}
	}
	const german = "Prozess 1 wartet auf ShareLock-Sperre auf Transaktion 729; blockiert von Prozess 2."
	for length := range len(german) {
		if deadlock, ok := ParseDeadlock(deadlockError(german[:length], "")); !ok || len(deadlock.Edges) != 0 {
			t.Errorf("cut to %q: %v", german[:length], deadlock)
		}
	}
	for _, detail := range []string{
		"",
		"Process 99999999999999999999999 waits for ShareLock on transaction 1; blocked by process 2.",
		"Process 1 waits for ShareLock on transaction 1; blocked by process 99999999999999999999999.",
		"Transaction 3fa85f64 aborted due to a deadlock", // YugabyteDB
		"1; 2;",
		"\xff\xfe ShareLock 1; 2.",
	} {
		if deadlock, ok := ParseDeadlock(deadlockError(detail, detail)); !ok || len(deadlock.Edges) != 0 || deadlock.Relation != "" {
			t.Errorf("%q: %+v, %v", detail, deadlock, ok)
		}
	}
	for _, err := range []error{nil, pqAnswer("ERROR", "40001", "deadlock detected"), fmt.Errorf("deadlock detected (40P01)")} {
		if deadlock, ok := ParseDeadlock(err); ok || deadlock != nil {
			t.Errorf("%v: taken for a deadlock", err)
		}
	}
}

// The server writes the name as it is: a table created as "a""b c" is `a"b c`.
func TestTheLockedRelationIsNamed(t *testing.T) {
	for where, want := range map[string]string{
		`while updating tuple (0,2) in relation "t"`:                                 "t",
		`while deleting tuple (230,34) in relation "s"`:                              "s",
		`while inserting index tuple (0,3) in relation "u_pkey"`:                     "u_pkey",
		`while updating tuple (0,2) in relation "a"b c"`:                             `a"b c`,
		`while updating tuple (0,2) in relation "Straße (1,2)"`:                      "Straße (1,2)",
		"while locking tuple (0,1) in relation \"d_102428\"\nwhile executing…":       "d_102428",
		"PL/pgSQL function f() line 1\nwhile updating tuple (0,2) in relation \"t\"": "t",
		`SQL statement "select point '(1,2)' from "x""`:                              "",
		`SQL statement "update t set v = (0,2)" in relation "t"`:                     "",
		`COPY t, line 1, column a: "(1,2)"`:                                          "",
		"":                                                                           "",
	} {
		if got := lockedRelation(where); got != want {
			t.Errorf("%q: got %q, want %q", where, got, want)
		}
	}
}

func TestTheReasonOfASerializationFailureIsFound(t *testing.T) {
	for detail, want := range map[string]string{
		"Reason code: Canceled on identification as a pivot, during commit attempt.": "Canceled on identification as a pivot, during commit attempt",
		"Reason code: Canceled on conflict out to pivot 872, during read.":           "Canceled on conflict out to pivot 872, during read",
		"Reason code: Canceled on identification as a pivot, during write.\nmore":    "Canceled on identification as a pivot, during write",
		"Key (id)=(1) already exists.":                                               "",
		"":                                                                           "",
	} {
		if got := serializationReason(detail); got != want {
			t.Errorf("%q: got %q, want %q", detail, got, want)
		}
	}
	found := 0
	for _, r := range recordedErrors(t) {
		if strings.HasPrefix(r.Detail, "Reason code: ") {
			found++
			if got := serializationReason(r.Detail); "Reason code: "+got+"." != r.Detail {
				t.Errorf("%v: got %q of %q", r, got, r.Detail)
			}
		}
	}
	if found == 0 {
		t.Error("no recorded error has a reason")
	}
}

func FuzzParseDeadlock(f *testing.F) {
	f.Add("Process 1 waits for ShareLock on transaction 729; blocked by process 2.", `while updating tuple (0,2) in relation "t"`)
	f.Add("Prozess 1 wartet auf ShareLock-Sperre auf Transaktion 729; blockiert von Prozess 2.", "beim Sperren von Tupel (0,2) in Relation »t«")
	f.Add("进程1等待在事务 729上的ShareLock; 由进程2阻塞.", "当更新关系\"t\"的元组(0, 2)时")
	f.Add("1 프로세스가 ShareLock 상태로 지연되고 있음(해당 작업: 트랜잭션 729); 2 프로세스에", "")
	f.Fuzz(func(t *testing.T, detail, where string) {
		deadlock, ok := ParseDeadlock(deadlockError(detail, where))
		if !ok {
			t.Fatal("a 40P01 is not taken for a deadlock")
		}
		if len(deadlock.Edges) > 1+strings.Count(detail, "\n") {
			t.Fatalf("%d edges from %q", len(deadlock.Edges), detail)
		}
		for _, edge := range deadlock.Edges {
			if edge.PID < 0 || edge.BlockedBy < 0 || !strings.HasSuffix(edge.Mode, "Lock") && !strings.Contains(detail, edge.Mode) {
				t.Fatalf("%+v from %q", edge, detail)
			}
			if !strings.Contains(detail, edge.Object) {
				t.Fatalf("object %q is not in %q", edge.Object, detail)
			}
		}
		if !strings.Contains(where, deadlock.Relation) {
			t.Fatalf("relation %q is not in %q", deadlock.Relation, where)
		}
		_ = deadlock.String()
	})
}
