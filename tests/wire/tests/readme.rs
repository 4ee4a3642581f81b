//! The README's first program is one that compiles: `examples/first_session.rs`.

#[test]
fn the_readme_shows_the_first_session_as_it_is_compiled() {
    let example = include_str!("../examples/first_session.rs");
    let (_, program) = example.split_once("\n\n").expect("a line about the file, and the program");
    let shown = format!("```rust\n{program}```\n");
    assert!(include_str!("../../../README.md").contains(&shown), "the README shows another program:\n{shown}");
}
