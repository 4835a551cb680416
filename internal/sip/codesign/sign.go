package codesign

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
)

// Params say what a signature is to be. The zero Layout is the one of codesign and of Go's linker.
type Params struct {
	Identifier   string
	Flags        uint32
	CodeLimit    uint64 // bytes that are hashed: all before the signature
	ExecSegBase  uint64 // __TEXT in the file
	ExecSegLimit uint64
	ExecSegFlags uint64
	Info         []byte    // Info.plist inside the program, hashed as slot 1; nil for none
	Blobs        []NewBlob // what goes beside the CodeDirectory, by slot
	Layout       Layout
}

// NewBlob is a blob to be written: Data is what follows its magic and length.
type NewBlob struct {
	Slot, Magic uint32
	Data        []byte
}

// Layout is where the parts of a signature are put.
type Layout struct {
	BlobAlign int // of the first blob in the SuperBlob; 0 is none
	HashAlign int // of the first hash in the SuperBlob; 0 is none
}

// LLD is the layout of ld64.lld.
var LLD = Layout{BlobAlign: 8, HashAlign: 16}

// AdhocBlobs are the blobs that `codesign -s -` writes: a set of no requirement and a wrapper of
// no CMS signature.
func AdhocBlobs() []NewBlob {
	return []NewBlob{
		{Slot: SlotRequirements, Magic: magicRequirements, Data: make([]byte, 4)},
		{Slot: SlotCMS, Magic: magicWrapper},
	}
}

// Entitlements returns the blobs of entitlements in XML and DER; nil is left out.
func Entitlements(xml, der []byte) (b []NewBlob) {
	if xml != nil {
		b = append(b, NewBlob{Slot: SlotEntitlements, Magic: magicEntitlements, Data: xml})
	}
	if der != nil {
		b = append(b, NewBlob{Slot: SlotEntitlementsDER, Magic: magicEntitlementsD, Data: der})
	}
	return b
}

// The pages that are hashed one by one: both CPUs accept pages of 4 KiB.
const (
	PageBits = 12            // binary logarithm of PageSize, as a CodeDirectory has it
	PageSize = 1 << PageBits // bytes

	directorySize = 88 // of version 0x20400
)

// Hash is the hash of a page.
type Hash = [sha256.Size]byte

// plan is where everything goes.
type plan struct {
	blobs             []NewBlob
	directory         int // offset of the CodeDirectory
	ident, hash       int // in the CodeDirectory
	special, code     int
	directoryEnd, end int
}

func (p *Params) plan() plan {
	var l plan
	l.blobs = slices.Clone(p.Blobs)
	slices.SortStableFunc(l.blobs, func(a, b NewBlob) int { return int(a.Slot) - int(b.Slot) })
	for _, b := range l.blobs {
		if b.Slot <= maxSpecial {
			l.special = max(l.special, int(b.Slot))
		}
	}
	if p.Info != nil {
		l.special = max(l.special, SlotInfo)
	}
	l.code = int(pages(p.CodeLimit, PageBits))
	l.directory = alignUp(12+8*(1+len(l.blobs)), p.Layout.BlobAlign)
	l.ident = directorySize
	first := l.directory + l.ident + len(p.Identifier) + 1
	l.hash = alignUp(first, p.Layout.HashAlign) - l.directory + l.special*sha256.Size
	l.directoryEnd = l.directory + l.hash + l.code*sha256.Size
	l.end = l.directoryEnd
	for _, b := range l.blobs {
		l.end += 8 + len(b.Data)
	}
	return l
}

// Size returns how many bytes the signature takes.
func (p *Params) Size() int { return p.plan().end }

// Encode returns the signature of code whose pages (of PageSize, the last one may be shorter)
// have these hashes.
func (p *Params) Encode(pages []Hash) ([]byte, error) {
	l := p.plan()
	if len(pages) != l.code {
		return nil, fmt.Errorf("sign %s: %d page hashes for %d pages", p.Identifier, len(pages), l.code)
	}
	if l.end > math.MaxUint32 {
		return nil, fmt.Errorf("sign %s: a signature of %d bytes", p.Identifier, l.end)
	}
	out := make([]byte, l.end)
	be := binary.BigEndian
	be.PutUint32(out, magicSuperBlob)
	be.PutUint32(out[4:], uint32(l.end))
	be.PutUint32(out[8:], uint32(1+len(l.blobs)))
	be.PutUint32(out[12:], SlotDirectory)
	be.PutUint32(out[16:], uint32(l.directory))

	d := out[l.directory:l.directoryEnd]
	special := func(slot uint32, data []byte) {
		h := sha256.Sum256(data)
		copy(d[l.hash-int(slot)*sha256.Size:], h[:])
	}
	at := l.directoryEnd
	for i, b := range l.blobs {
		be.PutUint32(out[20+8*i:], b.Slot)
		be.PutUint32(out[24+8*i:], uint32(at))
		end := at + 8 + len(b.Data)
		be.PutUint32(out[at:], b.Magic)
		be.PutUint32(out[at+4:], uint32(end-at))
		copy(out[at+8:], b.Data)
		if b.Slot <= maxSpecial {
			special(b.Slot, out[at:end])
		}
		at = end
	}
	if p.Info != nil {
		special(SlotInfo, p.Info)
	}

	be.PutUint32(d, magicDirectory)
	be.PutUint32(d[4:], uint32(len(d)))
	be.PutUint32(d[8:], versionExecSeg)
	be.PutUint32(d[12:], p.Flags)
	be.PutUint32(d[16:], uint32(l.hash))
	be.PutUint32(d[20:], uint32(l.ident))
	be.PutUint32(d[24:], uint32(l.special))
	be.PutUint32(d[28:], uint32(l.code))
	if p.CodeLimit <= math.MaxUint32 {
		be.PutUint32(d[32:], uint32(p.CodeLimit))
	} else {
		be.PutUint32(d[32:], math.MaxUint32)
		be.PutUint64(d[56:], p.CodeLimit)
	}
	d[36], d[37], d[39] = sha256.Size, byte(SHA256), PageBits
	be.PutUint64(d[64:], p.ExecSegBase)
	be.PutUint64(d[72:], p.ExecSegLimit)
	be.PutUint64(d[80:], p.ExecSegFlags)
	copy(d[l.ident:], p.Identifier)
	for i := range pages {
		copy(d[l.hash+i*sha256.Size:], pages[i][:])
	}
	return out, nil
}

// HashPages returns the hashes of data's pages, on all CPUs. guard runs each worker's part: it is
// there for data that is mapped and may vanish.
func HashPages(data []byte, guard func(func()) error) ([]Hash, error) {
	out := make([]Hash, pages(uint64(len(data)), PageBits))
	const chunk = 256 // pages, 1 MiB
	workers := min(runtime.GOMAXPROCS(0), (len(out)+chunk-1)/chunk)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		next int
		err  error
	)
	for range workers {
		wg.Go(func() {
			e := guard(func() {
				for {
					mu.Lock()
					from := next
					next += chunk
					mu.Unlock()
					if from >= len(out) {
						return
					}
					for i := from; i < min(from+chunk, len(out)); i++ {
						out[i] = sha256.Sum256(data[i*PageSize : min((i+1)*PageSize, len(data))])
					}
				}
			})
			if e != nil {
				mu.Lock()
				err = e
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out, err
}

func alignUp(n, to int) int {
	if to == 0 {
		return n
	}
	return (n + to - 1) / to * to
}
