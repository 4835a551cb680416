package sip

import (
	"fmt"

	"github.com/stead-dev/stead/internal/sip/codesign"
	"github.com/stead-dev/stead/internal/sip/entitlement"
	"github.com/stead-dev/stead/internal/sip/macho"
)

// Entitlements that undo a part of the hardened runtime.
const (
	allowDyld = "com.apple.security.cs.allow-dyld-environment-variables"
	disableLV = "com.apple.security.cs.disable-library-validation"
)

// arch is a slice with all that is decided upon.
type arch struct {
	macho.Arch
	image    *macho.Image
	sig      *codesign.Signature
	xml, der map[string]any // nil where the signature has none
}

// readArchs reads every slice of a file; an error names the offset in it.
func readArchs(data []byte) ([]arch, error) {
	f, err := macho.Read(data)
	if err != nil {
		return nil, err
	}
	var out []arch
	for i := range f.Slices {
		s := &f.Slices[i]
		a := arch{Arch: s.Arch}
		if a.image, err = s.Image(); err != nil {
			return nil, fmt.Errorf("slice %v: %w", s.Arch, err)
		}
		if a.sig, err = codesign.Read(a.image); err != nil {
			return nil, fmt.Errorf("slice %v: %w", s.Arch, err)
		}
		if a.sig != nil {
			if err := a.readEntitlements(); err != nil {
				return nil, fmt.Errorf("slice %v: %w", s.Arch, err)
			}
		}
		out = append(out, a)
	}
	return out, nil
}

func (a *arch) readEntitlements() (err error) {
	for _, r := range []struct {
		slot uint32
		read func([]byte) (map[string]any, error)
		to   *map[string]any
	}{
		{codesign.SlotEntitlements, entitlement.XML, &a.xml},
		{codesign.SlotEntitlementsDER, entitlement.DER, &a.der},
	} {
		b := a.sig.Blob(r.slot)
		if b == nil || len(b.Data) == 8 {
			continue // codesign writes an empty blob for none
		}
		if *r.to, err = r.read(b.Data[8:]); err != nil {
			return macho.Errorf(b.Offset+8, "slot %d: %v", r.slot, err)
		}
	}
	return nil
}

// entitled tells whether the program has the entitlement: true in each form that is there. A
// system goes by one of the two, and which one depends on its version.
func (a *arch) entitled(key string) bool {
	if a.xml == nil && a.der == nil {
		return false
	}
	for _, m := range []map[string]any{a.xml, a.der} {
		if m != nil && m[key] != true {
			return false
		}
	}
	return true
}

// entitlements are those that the report shows: the DER form, by which newer systems go.
func (a *arch) entitlements() map[string]any {
	switch {
	case a.der != nil:
		return a.der
	case a.xml != nil:
		return a.xml
	}
	return map[string]any{}
}

// flags are those of all CodeDirectories together. The kernel goes by the one with the best hash
// that it knows; to copy a program needlessly does less harm than to leave one that cannot be
// entered.
func (a *arch) flags() (f uint32) {
	if a.sig != nil {
		for _, d := range a.sig.Directories {
			f |= d.Flags
		}
	}
	return f
}

// apple tells a program of the system itself.
func (a *arch) apple() bool {
	if a.sig != nil {
		for _, d := range a.sig.Directories {
			if d.Platform != 0 {
				return true
			}
		}
	}
	return false
}

func (a *arch) restrictSegment() bool {
	for _, s := range a.image.Segments {
		if s.Name == restrictSegment {
			return true
		}
	}
	return false
}

// forMac tells whether a slice is built for macOS. Those of phones are arm64 too.
func (a *arch) forMac() bool {
	switch a.image.Platform {
	case 0, macho.PlatformMacOS, macho.PlatformCatalyst:
		return true
	}
	return false
}

// rank orders the slices that can be executed on a host by how much the kernel prefers them; 0 is
// one that cannot. patchable leaves out what runs only with Apple's signature.
func (a *arch) rank(host macho.CPU, patchable bool) int {
	s := a.Subtype & macho.SubtypeMask
	switch {
	case !a.forMac():
		return 0
	case host == macho.ARM64 && a.IsARM64E():
		if patchable || !a.apple() {
			return 0
		}
		return 4
	case host == macho.ARM64 && a.CPU == macho.ARM64 && s <= 1:
		return 3
	case host == macho.X86_64 && a.CPU == macho.X86_64 && s == macho.SubtypeHaswell:
		return 2
	case a.CPU == macho.X86_64 && s == macho.SubtypeX86_64:
		return 1 // on arm64 by Rosetta
	}
	return 0
}

// choose returns the slice that the host would run, or the one of which a copy can be made; nil
// where there is none.
func choose(archs []arch, host macho.CPU, patchable bool) *arch {
	var best *arch
	for i := range archs {
		if a := &archs[i]; a.rank(host, patchable) > 0 && (best == nil || a.rank(host, patchable) > best.rank(host, patchable)) {
			best = a
		}
	}
	return best
}

// judge tells whether the code of a slice drops DYLD_ variables or refuses our library, and why;
// what is told although nothing follows from it is among the reasons too.
func judge(a *arch) (protected bool, reasons []string) {
	because := func(format string, args ...any) {
		protected = true
		reasons = append(reasons, fmt.Sprintf(format, args...))
	}
	flags := a.flags()
	if a.apple() {
		because("signed by Apple as a part of macOS")
	}
	if flags&codesign.FlagRestrict != 0 {
		because("its signature has the flag CS_RESTRICT")
	}
	if a.restrictSegment() {
		because("it has a segment %s", restrictSegment)
	}
	dyld, lv := a.entitled(allowDyld), a.entitled(disableLV)
	hardened := flags&codesign.FlagRuntime != 0
	switch {
	case hardened && !dyld:
		because("hardened runtime (CS_RUNTIME) without the entitlement %s", allowDyld)
	case hardened && lv:
		reasons = append(reasons, "hardened runtime, but its entitlements allow DYLD_ variables and foreign libraries")
	}
	if (hardened && dyld || flags&(codesign.FlagRequireLV|codesign.FlagForcedLV) != 0) && !lv {
		because("library validation without the entitlement %s: our library would be refused", disableLV)
	}
	return protected, reasons
}
