//! Holds `src/listing.rs` to the source in `bpf/`: compiles it and compares. `make bpf` (`UPDATE_LISTING=1`) writes it anew.
//!
//! Needs clang and llvm of version 14 (Debian 12: `clang-14`, `llvm-14`), since another version makes other instructions.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};
use sha2::{Digest as _, Sha256};

const COMPILER: &str = "clang-14";
const DISASSEMBLER: &str = "llvm-objdump-14";
const FLAGS: [&str; 10] = [
    "-target",
    "bpfel",
    "-mcpu=v3",
    "-O2",
    "-g0",
    "-ffreestanding",
    "-nostdlibinc",
    "-Wall",
    "-Wextra",
    "-Werror",
];
/// In the order of the listing.
const SOURCES: [&str; 2] = ["socket4.bpf.c", "socket6.bpf.c"];
const HEADERS: [&str; 4] = ["balance.h", "datagrams.h", "kernel.h", "schema.h"];
/// `BPF_LD | BPF_DW | BPF_IMM`
const LOAD_WIDE: u8 = 0x18;

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf")
}

fn listing_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/listing.rs")
}

#[test]
fn the_listing_is_what_the_source_compiles_to() {
    let made = make_listing();
    if std::env::var_os("UPDATE_LISTING").is_some() {
        std::fs::write(listing_path(), made).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(listing_path()).unwrap();
    assert_eq!(first_difference(&committed, &made), None, "`make bpf` writes the listing anew");
}

#[test]
fn a_wrong_listing_is_noticed() {
    let committed = std::fs::read_to_string(listing_path()).unwrap();
    let (begin, end) = committed.rsplit_once("op(").unwrap();
    let wrong = format!("{begin}op(0x07, {}", end.split_once(", ").unwrap().1);
    assert!(first_difference(&committed, &wrong).is_some());
    assert!(first_difference(&committed, committed.trim_end_matches("];\n")).is_some());
}

/// Every file of programs says under which terms it is, and the kernel is told the same.
#[test]
fn licences_are_those_of_the_listing() {
    for name in SOURCES.iter().chain(&HEADERS) {
        let text = read(name);
        assert!(text.starts_with("/* SPDX-License-Identifier: MIT OR GPL-2.0-only */\n"), "{name}");
    }
    assert_eq!(ebpf::LICENSE, "Dual MIT/GPL");
    let files = std::fs::read_dir(source_dir()).unwrap().count();
    assert_eq!(files, SOURCES.len() + HEADERS.len(), "a file of bpf/ is not among the sources");
}

/// Number and text of the first line that differs.
fn first_difference(committed: &str, made: &str) -> Option<String> {
    let (mut old, mut new) = (committed.lines(), made.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => return None,
            (old, new) if old == new => {}
            (old, new) => return Some(format!("line {number}: committed {old:?}, compiled {new:?}")),
        }
    }
    None
}

fn read(name: &str) -> String {
    std::fs::read_to_string(source_dir().join(name)).unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error}; Debian has it in clang-14 and llvm-14"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn make_listing() -> String {
    let version = run(COMPILER, &["--version"]);
    let version = version.lines().next().unwrap();
    let mut digest = Sha256::new();
    for name in HEADERS.iter().chain(&SOURCES) {
        digest.update(read(name));
    }
    let mut hash = String::new();
    for byte in digest.finalize() {
        write!(hash, "{byte:02x}").unwrap();
    }
    let mut programs = String::new();
    let mut licence = None;
    for source in SOURCES {
        licence = Some(add_programs(source, &mut programs));
    }
    format!(
        "//! The programs of `bpf/`, compiled: written by `make bpf`, not by hand.\n\
         //!\n\
         //! Compiler: {version}, `{}`.\n\
         \n\
         use crate::instruction::{{Line, map, op}};\n\
         \n\
         /// SHA-256 of the source.\n\
         pub const SOURCE: &str = \"{hash}\";\n\
         \n\
         /// What the kernel is told.\n\
         pub const LICENSE: &str = {:?};\n\
         {programs}",
        FLAGS.join(" "),
        licence.unwrap()
    )
}

/// Adds the programs of a source file; gives its licence.
fn add_programs(source: &str, out: &mut String) -> String {
    let dir = tempfile::tempdir().unwrap();
    let object_path = dir.path().join("object.o");
    let (from, to) = (source_dir().join(source), object_path.to_string_lossy().into_owned());
    let from = from.to_string_lossy();
    run(COMPILER, &[&FLAGS[..], &["-c", &from, "-o", &to]].concat());
    let texts = disassemble(&to);
    let data = std::fs::read(&object_path).unwrap();
    let file = object::File::parse(&*data).unwrap();
    for symbol in
        file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.size() > 0)
    {
        let name = symbol.name().unwrap();
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        assert_eq!((symbol.address(), symbol.size()), (0, section.size()), "{name} is alone in its section");
        writeln!(out, "\n/// `{name}` of `bpf/{source}`.").unwrap();
        writeln!(out, "pub(crate) const {}: &[Line] = &[", name.to_uppercase()).unwrap();
        let texts = &texts.iter().find(|(program, _)| program == name).unwrap().1;
        add_lines(&file, &section, texts, out);
        out.push_str("];\n");
    }
    let licence = file.section_by_name("license").unwrap().data().unwrap();
    String::from_utf8(licence.to_vec()).unwrap().trim_end_matches('\0').to_owned()
}

fn add_lines(
    file: &object::File<'_>,
    section: &object::Section<'_, '_>,
    texts: &[(usize, String)],
    out: &mut String,
) {
    let (code, rest) = section.data().unwrap().as_chunks::<8>();
    assert!(rest.is_empty());
    let mut n = 0;
    while let Some([opcode, registers, a, b, c, d, e, f]) = code.get(n) {
        let (dst, src) = (registers & 15, registers >> 4);
        let text = texts.iter().find(|(position, _)| *position == n).map_or("", |(_, text)| text);
        let offset = u64::try_from(n * 8).unwrap();
        if *opcode == LOAD_WIDE {
            let (_, relocation) = section.relocations().find(|(at, _)| *at == offset).unwrap();
            let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("line {n}") };
            let symbol = file.symbol_by_index(symbol).unwrap();
            let name = symbol.name().unwrap();
            assert!(symbol.is_undefined() && ebpf::MapName::in_source(name).is_some(), "{name} is no map");
            writeln!(out, "    map({dst}, {name:?}), // {n}: r{dst} = {name}").unwrap();
            n += 2;
        } else {
            let (jump, number) = (i16::from_le_bytes([*a, *b]), i32::from_le_bytes([*c, *d, *e, *f]));
            writeln!(out, "    op(0x{opcode:02x}, {dst}, {src}, {jump}, {number}), // {n}: {text}").unwrap();
            n += 1;
        }
    }
}

/// By program, the text of each instruction with its position.
fn disassemble(path: &str) -> Vec<(String, Vec<(usize, String)>)> {
    let mut programs: Vec<(String, Vec<(usize, String)>)> = Vec::new();
    for line in run(DISASSEMBLER, &["-d", "--no-show-raw-insn", path]).lines() {
        if let Some(name) =
            line.strip_suffix(">:").and_then(|line| line.split_once('<')).map(|(_, name)| name)
        {
            if !name.starts_with("LBB") {
                programs.push((name.to_owned(), Vec::new()));
            }
        } else if let Some((position, text)) = line.trim().split_once(":\t")
            && let Ok(position) = position.parse()
            && let Some((_, lines)) = programs.last_mut()
        {
            // Labels are the compiler's own, and say nothing that the offset does not.
            let text = text.split(" <LBB").next().unwrap_or(text);
            lines.push((position, text.to_owned()));
        }
    }
    programs
}
