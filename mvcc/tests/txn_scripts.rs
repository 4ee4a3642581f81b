//! Runs `scripts/*.txt`: each is one behaviour of transactions, named as a sentence.
//!
//! A script is a list of blocks, separated by empty lines: commands, `---`, and what they print. `REWRITE=1` writes what
//! was printed into the files; read the difference before you keep it.
//!
//! Timestamps are plain numbers, `50ms` for those of a millisecond, `max`. A mutation is `put:key:value`, `insert:key:value`,
//! `del:key`, `lock:key` or `check:key`, with `:exist` or `:not_exist` behind it as a claim. `v*300` is 300 times `v`.

mod raw_support;
mod txn_support;

#[path = "txn_support/script.rs"]
mod script;
#[path = "txn_support/show.rs"]
mod show;

use std::fmt::Write;

#[test]
fn scripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of scripts")
        .map(|file| file.expect("a readable folder").path())
        .collect();
    files.sort();
    assert!(files.len() > 80, "scripts are missing");
    let rewrite = std::env::var_os("REWRITE").is_some();
    let mut failures = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable script");
        let printed = run(&text);
        if rewrite {
            std::fs::write(&file, &printed).expect("a writable script");
        } else if printed != text {
            let _ = writeln!(failures, "{}\n{}", file.display(), difference(&text, &printed));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The script again, with what its commands print now.
fn run(text: &str) -> String {
    let mut world = script::World::default();
    let blocks = text.trim_end().split("\n\n").map(|block| {
        let commands = block.split("---").next().expect("at least one part").trim_end();
        let mut out = String::new();
        let mut any = false;
        for line in commands.lines() {
            let line = line.split('#').next().expect("at least one part").trim();
            if !line.is_empty() {
                any = true;
                world.command(line, &mut out);
            }
        }
        if any { format!("{commands}\n---\n{out}") } else { format!("{commands}\n") }
    });
    blocks.collect::<Vec<_>>().join("\n")
}

fn difference(expected: &str, printed: &str) -> String {
    let (mut expected, mut printed) = (expected.lines(), printed.lines());
    let mut at = 0;
    loop {
        at += 1;
        match (expected.next(), printed.next()) {
            (None, None) => return "they differ in blank space".to_string(),
            (a, b) if a == b => {}
            (a, b) => {
                let (a, b) = (a.unwrap_or("(the end)"), b.unwrap_or("(the end)"));
                return format!("  line {at}: expected {a}\n           printed {b}");
            }
        }
    }
}
