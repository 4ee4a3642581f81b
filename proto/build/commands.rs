//! Generates `shallow::tag`: the commands of a batch by number and name, from the batch's own `oneof`.

use prost_types::{DescriptorProto, FileDescriptorSet};
use std::fmt::Write;

/// The Rust of the module, or `None` if the protocol has no batch.
pub(crate) fn generate(descriptors: &FileDescriptorSet) -> Option<String> {
    let file = descriptors.file.iter().find(|file| file.package() == "tikvpb")?;
    let request = named(&named(&file.message_type, "BatchCommandsRequest")?.nested_type, "Request")?;

    let (mut constants, mut names) = (String::new(), String::new());
    for field in &request.field {
        let (name, number) = (field.name(), field.number());
        writeln!(constants, "/// `{name}`.\npub const {}: u32 = {number};", constant(name)).ok()?;
        writeln!(names, "{number} => Some(\"{name}\"),").ok()?;
    }
    Some(format!(
        "{constants}\n\
         /// What the protocol calls the command of this number; `None` for none that this release knows.\n\
         pub fn name(tag: u32) -> Option<&'static str> {{\nmatch tag {{\n{names}_ => None,\n}}\n}}\n"
    ))
}

fn named<'a>(messages: &'a [DescriptorProto], name: &str) -> Option<&'a DescriptorProto> {
    messages.iter().find(|message| message.name() == name)
}

/// `RawBatchGet` becomes `RAW_BATCH_GET`.
pub(crate) fn constant(name: &str) -> String {
    let mut constant = String::new();
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}
