//! What the documentation says of this mode is what the program says.

use backend_kernelspace::DIFFERENCES;

#[test]
fn known_gaps_lists_what_this_platform_does_otherwise() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/known-gaps.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n## Mode kernelspace\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    let expected: Vec<String> =
        DIFFERENCES.iter().map(|known| format!("| {} | {} |", known.name, known.text)).collect();
    assert_eq!(rows, expected);
}
