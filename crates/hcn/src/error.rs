//! Calls that fail.

use serde::{Deserialize, Serialize};

use crate::border::Call;
use crate::code::{Code, Failure};

/// A call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't {call}: HNS answers {code}{}", detail(text))]
pub struct HcnError {
    /// Which.
    pub call: Call,
    /// What HNS, or the way to it, answers.
    pub code: Code,
    /// What it says besides; may be empty.
    pub text: String,
}

impl HcnError {
    /// A failure without a text.
    pub fn new(call: Call, code: Code) -> Self {
        Self { call, code, text: String::new() }
    }

    /// An answer that makes no sense.
    pub fn unreadable(call: Call, why: &impl ToString) -> Self {
        Self { call, code: Code::FAIL, text: why.to_string() }
    }

    /// What is to be made of it.
    pub fn failure(&self) -> Failure {
        self.code.failure()
    }
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// What comes in the last parameter of a call that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ErrorDocument {
    /// False.
    pub success: bool,
    /// In words.
    pub error: String,
    /// The `HRESULT`, as a signed or unsigned number.
    pub error_code: i64,
}

/// Whether a call was done, from its `HRESULT` and the error document that came with it, if one did. HNS reports some failures
/// in the document alone, so any that does not say that all is well counts.
///
/// # Errors
/// It was not.
pub fn check(call: Call, result: Code, document: Option<&str>) -> Result<(), HcnError> {
    let text = document.map(str::trim).filter(|text| !text.is_empty());
    let Some(text) = text else {
        return if result.is_success() { Ok(()) } else { Err(HcnError::new(call, result)) };
    };
    match serde_json::from_str::<ErrorDocument>(text) {
        Ok(document) if document.success && result.is_success() => Ok(()),
        Ok(document) => Err(HcnError { call, code: document.code(result), text: document.error }),
        Err(_) => Err(HcnError {
            call,
            code: if result.is_success() { Code::FAIL } else { result },
            text: text.to_owned(),
        }),
    }
}

impl ErrorDocument {
    /// The call's own result if it is a failure; else the document's.
    fn code(&self, result: Code) -> Code {
        /// The low 32 bits of a signed or unsigned number.
        fn low(number: i64) -> u32 {
            let [a, b, c, d, ..] = number.to_le_bytes();
            u32::from_le_bytes([a, b, c, d])
        }
        let own = Code(low(self.error_code));
        match (result.is_success(), own.is_success()) {
            (false, _) => result,
            (true, false) => own,
            (true, true) => Code::FAIL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call = Call::Version;

    #[track_caller]
    fn fails(result: Code, document: Option<&str>, code: Code, text: &str) {
        assert_eq!(check(CALL, result, document), Err(HcnError { call: CALL, code, text: text.into() }));
    }

    #[test]
    fn a_document_of_failure_counts_whatever_the_result_is() {
        let document = r#"{"Success":false,"Error":"An adapter was not found.","ErrorCode":2151350278}"#;
        fails(Code::OK, Some(document), Code(0x803B_0006), "An adapter was not found.");
        fails(Code::NOT_FOUND, Some(document), Code::NOT_FOUND, "An adapter was not found.");
        let signed = r#"{"Success":false,"Error":"x","ErrorCode":-2143617023}"#;
        fails(Code::OK, Some(signed), Code::NETWORK_NOT_FOUND, "x");
        fails(Code::OK, Some(r#"{"Error":"x"}"#), Code::FAIL, "x");
        fails(Code::OK, Some("no JSON"), Code::FAIL, "no JSON");
        fails(Code::ACCESS_DENIED, Some("no JSON"), Code::ACCESS_DENIED, "no JSON");
    }

    #[test]
    fn without_a_document_the_result_counts() {
        assert_eq!(check(CALL, Code::OK, None), Ok(()));
        assert_eq!(check(CALL, Code::OK, Some("  ")), Ok(()));
        assert_eq!(check(CALL, Code::OK, Some(r#"{"Success":true}"#)), Ok(()));
        fails(Code::NOT_FOUND, None, Code::NOT_FOUND, "");
    }

    #[test]
    fn an_error_names_call_code_and_text() {
        let error = HcnError { call: CALL, code: Code::FAIL, text: "it broke".into() };
        assert_eq!(error.to_string(), "can't ask for the version: HNS answers 0x80004005 (it broke)");
    }
}
