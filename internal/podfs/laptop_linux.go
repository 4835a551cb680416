package podfs

import (
	"context"
	"path"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// laptopNode is a file of this machine's shown in the tree (Virtual.Laptop), for programs that have
// no mount namespace in which it could be bound there. Few come here: what is known by its path to
// be this machine's is opened there. It is for links of the pod's that lead into such a place, and
// for those who go down from a directory of the pod's.
type laptopNode struct {
	*fs.LoopbackNode
	f *FS
}

var (
	_ = (fs.NodeLookuper)((*laptopNode)(nil))
	_ = (fs.NodeWrapChilder)((*laptopNode)(nil))
)

// laptop makes the node for this machine's file at p, a border of the tree.
func (n *node) laptop(ctx context.Context, p string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Lstat(p, &st); err != nil {
		return nil, fs.ToErrno(err)
	}
	out.Attr.FromStat(&st)
	root := &fs.LoopbackRoot{Path: p}
	l := &laptopNode{LoopbackNode: &fs.LoopbackNode{RootData: root}, f: n.f}
	root.RootNode = l
	return n.NewInode(ctx, l, fs.StableAttr{Mode: st.Mode & syscall.S_IFMT, Ino: st.Ino ^ st.Dev<<32, Gen: laptopGeneration}), 0
}

// laptopGeneration keeps this machine's inode numbers apart from the pod's, which have none.
const laptopGeneration = 1

func (n *laptopNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	if l, ok := child.(*fs.LoopbackNode); ok {
		return &laptopNode{LoopbackNode: l, f: n.f}
	}
	return child
}

func (n *laptopNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if len(n.f.pods) > 0 {
		p := path.Join(n.RootData.Path, n.Path(n.RootData.RootNode.EmbeddedInode()), name)
		if n.f.pods[p] {
			return n.f.lookup(ctx, n.EmbeddedInode(), p, out)
		}
	}
	return n.LoopbackNode.Lookup(ctx, name, out)
}

// lookup makes the node for the pod's file at p.
func (f *FS) lookup(ctx context.Context, parent *fs.Inode, p string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	a, errno := f.attrOf(ctx, p)
	if errno != 0 {
		return nil, errno
	}
	f.fill(&a, &out.Attr)
	return parent.NewInode(ctx, &node{f: f, path: p}, stable(p, &a)), 0
}
