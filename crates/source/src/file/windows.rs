//! Files of Windows.

use std::fs::{File, FileType};
use std::io;
use std::path::Path;

/// Opens a file for reading. Only pipes and devices would wait, and these are no regular files, which are looked for before.
pub(super) fn open_without_waiting(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// What is no regular file, in words.
pub(super) fn kind_name(file_type: FileType) -> &'static str {
    if file_type.is_dir() { "a folder" } else { "something else" }
}
