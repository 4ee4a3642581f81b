//! Runs a folder of scripts: each is one behaviour of a pure crate, named as a sentence.
//!
//! A script is a list of blocks, separated by empty lines: commands, `---`, and what they print. What stands behind a `#`
//! is for the reader. All blocks of a script run in one world, each script in a world of its own.
//!
//! `REWRITE=1` writes what was printed into the files; read the difference before you keep it.

use std::fmt::Write;
use std::path::Path;

/// What a script's commands act on.
pub trait World: Default {
    /// Carries out one command, a line without its remark, and prints what it comes to, in whole lines.
    ///
    /// # Panics
    /// If there is no such command: a script that says nonsense fails.
    fn command(&mut self, line: &str, out: &mut String);
}

/// Runs all scripts of `folder`, in the order of their names.
///
/// # Panics
/// With the first line of each script that prints something else, or if there are fewer than `at_least`.
pub fn run_folder<W: World>(folder: impl AsRef<Path>, at_least: usize) {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder of scripts")
        .map(|file| file.expect("a readable folder").path())
        .collect();
    files.sort();
    assert!(files.len() >= at_least, "scripts are missing: {} are here", files.len());
    let rewrite = std::env::var_os("REWRITE").is_some();
    let mut failures = String::new();
    for file in files {
        let script = std::fs::read_to_string(&file).expect("a readable script");
        let printed = run::<W>(&script);
        if rewrite {
            std::fs::write(&file, &printed).expect("a writable script");
        } else if printed != script {
            let _ = writeln!(failures, "{}\n{}", file.display(), difference(&script, &printed));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

/// The script again, with what its commands print now.
fn run<W: World>(script: &str) -> String {
    let mut world = W::default();
    let blocks = script.trim_end().split("\n\n").map(|block| {
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
        match any {
            true => format!("{commands}\n---\n{}", if out.is_empty() { "(nothing)\n" } else { &out }),
            false => format!("{commands}\n"),
        }
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// The first line that differs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sum(u64);

    impl World for Sum {
        fn command(&mut self, line: &str, out: &mut String) {
            match line.strip_prefix("add ") {
                Some(number) => self.0 += number.parse::<u64>().expect("a number"),
                None => {
                    let _ = writeln!(out, "{}", self.0);
                }
            }
        }
    }

    #[test]
    fn blocks_share_a_world_and_show_what_they_print() {
        let script = "# Sums.\n\nadd 1 # one\nshow\n---\n1\n\nadd 2\n---\n(nothing)\n\nshow\n---\n3\n";
        assert_eq!(run::<Sum>(script), script);
    }

    #[test]
    fn a_script_that_prints_something_else_is_told_where() {
        let script = "add 1\nshow\n---\n2\n";
        assert_eq!(difference(script, &run::<Sum>(script)), "  line 4: expected 2\n           printed 1");
    }
}
