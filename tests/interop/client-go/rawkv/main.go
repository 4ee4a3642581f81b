// Command rawkv asks a cluster for everything that the raw client of client-go offers, and ends with "ok", or with the first
// answer that is wrong and exit code 1.
//
//	rawkv PD_ADDRESS ROUNDS
//
// The regions of its keys may be split, moved and led by others meanwhile: client-go retries what it can, and whatever it
// hands to its caller counts as wrong.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"
)

const (
	// Keys of a round. The test's regions have some twenty keys each.
	keys = 400
	// More than the client asks of one region at a time.
	step = 64
)

func key(i int) []byte { return []byte(fmt.Sprintf("go-%06d", i)) }

func value(i, round int) []byte { return []byte(fmt.Sprintf("value-%d-%d", i, round)) }

// all are the keys from `from` up to `to`, exclusive.
func all(from, to int) (list [][]byte) {
	for i := from; i < to; i++ {
		list = append(list, key(i))
	}
	return list
}

func must(err error, what string) {
	if err != nil {
		fail("%s: %v", what, err)
	}
}

func fail(format string, words ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", words...)
	os.Exit(1)
}

func same(what string, got, want []byte) {
	if !bytes.Equal(got, want) {
		fail("%s is %q and should be %q", what, got, want)
	}
}

func main() {
	if len(os.Args) != 3 {
		fail("usage: rawkv PD_ADDRESS ROUNDS")
	}
	rounds, err := strconv.Atoi(os.Args[2])
	must(err, "rounds")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	client, err := rawkv.NewClient(ctx, []string{os.Args[1]}, config.DefaultConfig().Security)
	must(err, "a client")
	defer client.Close()
	for round := 1; round <= rounds; round++ {
		single(ctx, client, round)
		batches(ctx, client, round)
		scans(ctx, client, round)
		deletes(ctx, client)
	}
	swaps(ctx, client)
	fmt.Println("ok")
}

func single(ctx context.Context, client *rawkv.Client, round int) {
	for i := 0; i < keys; i++ {
		must(client.Put(ctx, key(i), value(i, round)), "put")
	}
	for i := 0; i < keys; i++ {
		got, err := client.Get(ctx, key(i))
		must(err, "get")
		same(string(key(i)), got, value(i, round))
	}
	got, err := client.Get(ctx, []byte("go-absent"))
	must(err, "get of an absent key")
	if got != nil {
		fail("an absent key has the value %q", got)
	}
}

func batches(ctx context.Context, client *rawkv.Client, round int) {
	var values [][]byte
	for i := 0; i < keys; i++ {
		values = append(values, value(i, round+1))
	}
	must(client.BatchPut(ctx, all(0, keys), values), "batch put")
	got, err := client.BatchGet(ctx, append(all(0, keys), []byte("go-absent")))
	must(err, "batch get")
	if len(got) != keys+1 || got[keys] != nil {
		fail("a batch get has %d values", len(got))
	}
	for i := 0; i < keys; i++ {
		same(string(key(i)), got[i], values[i])
	}
}

func scans(ctx context.Context, client *rawkv.Client, round int) {
	at, found := key(0), 0
	for {
		names, values, err := client.Scan(ctx, at, key(keys), step)
		must(err, "scan")
		for i := range names {
			same("a scan's key", names[i], key(found))
			same("its value", values[i], value(found, round+1))
			found++
		}
		if len(names) < step {
			break
		}
		at = append(names[len(names)-1], 0)
	}
	if found != keys {
		fail("scans find %d keys of %d", found, keys)
	}
	names, _, err := client.ReverseScan(ctx, key(keys), key(0), keys)
	must(err, "reverse scan")
	if len(names) != keys {
		fail("a reverse scan finds %d keys of %d", len(names), keys)
	}
	for i := range names {
		same("a reverse scan's key", names[i], key(keys-1-i))
	}
	names, values, err := client.Scan(ctx, key(0), key(10), step, rawkv.ScanKeyOnly())
	must(err, "scan of keys only")
	if len(names) != 10 || len(values[0]) != 0 {
		fail("a scan of keys only has %d keys, the first with the value %q", len(names), values[0])
	}
	sum, err := client.Checksum(ctx, key(0), key(keys))
	must(err, "checksum")
	if sum.TotalKvs != keys {
		fail("a checksum is of %d keys", sum.TotalKvs)
	}
}

func deletes(ctx context.Context, client *rawkv.Client) {
	must(client.Delete(ctx, key(0)), "delete")
	must(client.BatchDelete(ctx, all(1, 20)), "batch delete")
	must(client.DeleteRange(ctx, key(20), key(keys/2)), "delete of a range")
	names, _, err := client.Scan(ctx, key(0), key(keys), keys)
	must(err, "scan after deletes")
	if len(names) != keys-keys/2 {
		fail("%d keys are left of %d", len(names), keys-keys/2)
	}
	same("the first key that is left", names[0], key(keys/2))
}

func swaps(ctx context.Context, client *rawkv.Client) {
	client.SetAtomicForCAS(true)
	name, one, other := []byte("go-swap"), []byte("one"), []byte("other")
	must(client.Delete(ctx, name), "delete")
	for _, step := range []struct {
		previous, next, found []byte
		swapped               bool
	}{{nil, one, nil, true}, {nil, other, one, false}, {one, other, one, true}} {
		found, swapped, err := client.CompareAndSwap(ctx, name, step.previous, step.next)
		must(err, "swap")
		same("what a swap finds", found, step.found)
		if swapped != step.swapped {
			fail("a swap from %q to %q: %v", step.previous, step.next, swapped)
		}
	}
	got, err := client.Get(ctx, name)
	must(err, "get")
	same("what was swapped in", got, other)
}
