//! The system that a build is for, as a value: what depends on it is decided by functions, not by conditional compilation.

/// A system that the program is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
}

impl Platform {
    /// That of this build.
    pub const HERE: Self = if cfg!(windows) { Self::Windows } else { Self::Linux };
}
