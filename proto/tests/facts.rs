//! The compiled protocol is, line by line, what `facts.txt` says.

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::collections::BTreeSet;

#[test]
fn the_compiled_protocol_is_the_one_in_facts_txt() {
    let expected: BTreeSet<String> =
        include_str!("../facts.txt").lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let set = FileDescriptorSet::decode(proto::DESCRIPTOR_SET).expect("the build wrote it");
    let mut compiled = BTreeSet::new();
    for file in &set.file {
        describe_file(file, &mut compiled);
    }

    assert!(expected.len() > 700, "facts.txt is there and whole");
    let missing: Vec<_> = expected.difference(&compiled).collect();
    let surplus: Vec<_> = compiled.difference(&expected).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing: {missing:#?}\nsurplus: {surplus:#?}");
}

fn describe_file(file: &FileDescriptorProto, lines: &mut BTreeSet<String>) {
    let package = file.package();
    for message in &file.message_type {
        describe_message(&format!("{package}.{}", message.name()), message, lines);
    }
    for enumeration in &file.enum_type {
        describe_enum(&format!("{package}.{}", enumeration.name()), enumeration, lines);
    }
    for service in &file.service {
        for method in &service.method {
            lines.insert(format!(
                "rpc /{package}.{}/{}: {}{} -> {}{}",
                service.name(),
                method.name(),
                if method.client_streaming() { "stream " } else { "" },
                &method.input_type()[1..],
                if method.server_streaming() { "stream " } else { "" },
                &method.output_type()[1..],
            ));
        }
    }
}

fn describe_message(name: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let mut fields: Vec<_> = message.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    let fields: Vec<_> = fields.into_iter().map(|field| describe_field(field, message)).collect();
    lines.insert(format!("message {name}: {}", fields.join("; ")).trim_end().to_owned());
    for nested in &message.nested_type {
        describe_message(&format!("{name}.{}", nested.name()), nested, lines);
    }
    for nested in &message.enum_type {
        describe_enum(&format!("{name}.{}", nested.name()), nested, lines);
    }
}

fn describe_field(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let mut text = format!("{} {} ", field.number(), field.name());
    if field.label() == Label::Repeated {
        text += "repeated ";
    }
    if field.proto3_optional() {
        text += "optional ";
    }
    match field.r#type() {
        Type::Message | Type::Enum => text += &field.type_name()[1..],
        scalar => text += &scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
    if let (Some(at), false) = (field.oneof_index, field.proto3_optional()) {
        text += " in ";
        text += message.oneof_decl[at as usize].name();
    }
    text
}

fn describe_enum(name: &str, enumeration: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    let mut values: Vec<_> = enumeration.value.iter().map(|value| (value.number(), value.name())).collect();
    values.sort_unstable();
    let values: Vec<_> = values.iter().map(|(number, name)| format!("{number} {name}")).collect();
    lines.insert(format!("enum {name}: {}", values.join("; ")));
}
