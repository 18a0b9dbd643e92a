//! Parameters of a request.

use std::collections::BTreeMap;
use std::str::FromStr;

/// The parameters that are not read yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

/// Parameters that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("parameters are not percent-encoded UTF-8")]
    Encoding,
    #[error("parameter {name}: {value:?} is not {wanted}")]
    Value { name: &'static str, value: String, wanted: &'static str },
    #[error("parameter {0} is missing")]
    Missing(&'static str),
    #[error("there is no parameter {0}")]
    Unknown(String),
}

impl Query {
    /// Of several of one name the last counts.
    pub(crate) fn parse(query: &str) -> Result<Self, QueryError> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decoded(name)?, decoded(value)?))
        };
        pairs.map(pair).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    pub(crate) fn parsed<T: FromStr>(
        &mut self,
        name: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, QueryError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_unusable) => Err(QueryError::Value { name, value, wanted }),
        }
    }

    /// Nothing else may be there.
    pub(crate) fn end(self) -> Result<(), QueryError> {
        self.0.into_keys().next().map_or(Ok(()), |name| Err(QueryError::Unknown(name)))
    }
}

/// Percent-decoded; a plus is a space.
pub(crate) fn decoded(text: &str) -> Result<String, QueryError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
                value.and_then(|value| u8::try_from(value).ok()).ok_or(QueryError::Encoding)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_not_utf8| QueryError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let mut query = Query::parse("a=1&b=x%20y+z&c&a=2").unwrap();
        assert_eq!(query.parsed::<u8>("a", "a number").unwrap(), Some(2));
        assert_eq!(query.text("b").as_deref(), Some("x y z"));
        assert_eq!(query.text("c"), None);
        query.end().unwrap();
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert_eq!(Query::parse(bad).unwrap_err(), QueryError::Encoding, "{bad}");
        }
    }
}
