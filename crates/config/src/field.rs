//! What is wrong with which field, in Kubernetes' wording (`apimachinery/pkg/util/validation/field`).

use std::fmt;

use crate::duration::GoDuration;

/// One field with the reason why it can't be used, such as
/// `oomScoreAdj: Invalid value: 2000: must be within the range [-1000, 1000]`.
///
/// Paths are those of the file, also for values that came from a flag. Upstream prints the names of its internal types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The path of the field, such as `conntrack.min` or `nodePortAddresses[1]`.
    pub path: String,
    /// What is wrong, with the value.
    pub problem: String,
}

/// All that is wrong, in the order of the checks; never empty. Printed as `[first, second]` if there is more than one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldErrors(pub Vec<FieldError>);

/// A value as it appears in a message.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl FieldError {
    pub(crate) fn invalid(path: impl Into<String>, value: &(impl Shown + ?Sized), reason: &str) -> Self {
        Self { path: path.into(), problem: format!("Invalid value: {}: {reason}", value.shown()) }
    }

    pub(crate) fn unsupported(path: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<_> = supported.iter().map(|value| format!("{value:?}")).collect();
        let problem = format!("Unsupported value: {value:?}: supported values: {}", supported.join(", "));
        Self { path: path.into(), problem }
    }

    pub(crate) fn required(path: impl Into<String>, reason: &str) -> Self {
        Self { path: path.into(), problem: format!("Required value: {reason}") }
    }

    pub(crate) fn forbidden(path: impl Into<String>, reason: &str) -> Self {
        Self { path: path.into(), problem: format!("Forbidden: {reason}") }
    }
}

impl FieldErrors {
    /// The value if nothing is wrong.
    pub(crate) fn or<T>(errors: Vec<FieldError>, value: T) -> Result<T, Self> {
        if errors.is_empty() { Ok(value) } else { Err(Self(errors)) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The document as a whole has no path.
        let separator = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}", self.path, self.problem)
    }
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            all => {
                let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", all.join(", "))
            }
        }
    }
}

impl std::error::Error for FieldError {}
impl std::error::Error for FieldErrors {}

impl Shown for str {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl Shown for i32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for u32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for GoDuration {
    fn shown(&self) -> String {
        self.to_string()
    }
}
