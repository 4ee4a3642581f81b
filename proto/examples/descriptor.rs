//! Writes the protocol's `FileDescriptorSet` to standard output, for tools that compare it with another.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(proto::DESCRIPTOR_SET)
}
