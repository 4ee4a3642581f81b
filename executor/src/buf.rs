//! Memory that a disk can be written from without a copy.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// The unit of [`AlignedBuf`] and of [`LogFile`](crate::LogFile): offsets, lengths and addresses are multiples of it.
pub const ALIGNMENT: usize = 4096;

/// Zeroed bytes at an address and of a length that are multiples of [`ALIGNMENT`], as `O_DIRECT` demands.
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its memory, and nothing in it is bound to a thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Zeroed memory of `len` bytes, rounded up to a multiple of [`ALIGNMENT`]; at least one unit.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let len = len.max(1).next_multiple_of(ALIGNMENT);
        let layout = layout(len);
        // SAFETY: `layout` is never of size 0.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuf { start, len }
    }

    /// A buffer without bytes, for answers that have none.
    pub(crate) fn empty() -> AlignedBuf {
        AlignedBuf { start: NonNull::dangling(), len: 0 }
    }

    /// The length in bytes, a multiple of [`ALIGNMENT`].
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true for a buffer that [`AlignedBuf::zeroed`] made: it holds at least one unit.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialized bytes that this buffer owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with the same layout.
            unsafe { dealloc(self.start.as_ptr(), layout(self.len)) }
        }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, ALIGNMENT).expect("a buffer is far smaller than the address space")
}
