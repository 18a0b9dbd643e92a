//! How late the kernel kills the program when memory is short.

use crate::file::{FileError, Root, read_number, write_number};

/// Sets the OOM score adjustment of this process (`oomScoreAdj`, -1000 to 1000; -999 is upstream's default) unless it has it
/// already. Upstream tries twice; but what fails here is a lack of permission, which stays.
///
/// # Errors
/// Lowering it needs `CAP_SYS_RESOURCE`. The program works all the same.
pub fn set_oom_score(root: &Root, adjustment: i32) -> Result<(), FileError> {
    let path = root.path("proc/self/oom_score_adj");
    if read_number::<i32>(&path)? == adjustment { Ok(()) } else { write_number(&path, adjustment) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_written_if_it_differs() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        std::fs::create_dir_all(root.path("proc/self")).unwrap();
        let path = root.path("proc/self/oom_score_adj");
        std::fs::write(&path, "0\n").unwrap();
        set_oom_score(&root, -999).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "-999");
        std::fs::write(&path, "-999\n").unwrap();
        set_oom_score(&root, -999).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "-999\n", "not written again");
        std::fs::remove_file(&path).unwrap();
        let error = set_oom_score(&root, -999).unwrap_err();
        assert!(error.to_string().ends_with("proc/self/oom_score_adj"), "{error}");
    }
}
