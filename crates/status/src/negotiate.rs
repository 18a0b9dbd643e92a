//! Content negotiation of `/flagz` and `/statusz`: text for people, or a versioned object by its exact name.

/// What to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Representation {
    /// For people.
    Text,
    /// An object of `config.k8s.io`.
    Object {
        /// How it is written.
        format: Format,
        /// Its version.
        version: Version,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1Alpha1,
    V1Beta1,
}

impl Version {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V1Alpha1 => "v1alpha1",
            Self::V1Beta1 => "v1beta1",
        }
    }
}

/// The best that the client accepts, by its weights, then its order. `None`: nothing of what there is.
pub(crate) fn negotiate(accept: Option<&str>, kind: &str) -> Option<Representation> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
        return Some(Representation::Text);
    };
    let mut ranges: Vec<MediaRange<'_>> = accept.split(',').map(MediaRange::parse).collect();
    ranges.retain(|range| range.weight > 0.0);
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    ranges.iter().find_map(|range| range.representation(kind))
}

/// One of the types that a client accepts (RFC 9110, 12.5.1).
struct MediaRange<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    weight: f32,
}

impl<'a> MediaRange<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let weight = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case("q"));
        let weight = weight.and_then(|(_, value)| value.parse().ok()).unwrap_or(1.0);
        Self { name, parameters, weight }
    }

    fn representation(&self, kind: &str) -> Option<Representation> {
        let is = |name: &str| self.name.eq_ignore_ascii_case(name);
        if is("*/*") || is("text/*") || is("text/plain") {
            return Some(Representation::Text);
        }
        let format = match () {
            () if is("application/json") => Format::Json,
            () if is("application/yaml") => Format::Yaml,
            () => return None,
        };
        let parameter =
            |key: &str| self.parameters.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
        let version = match parameter("v")? {
            "v1beta1" => Version::V1Beta1,
            "v1alpha1" => Version::V1Alpha1,
            _ => return None,
        };
        let is_asked = parameter("as") == Some(kind) && parameter("g") == Some("config.k8s.io");
        is_asked.then_some(Representation::Object { format, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON_BETA: Option<Representation> = object(Format::Json, Version::V1Beta1);

    #[expect(clippy::unnecessary_wraps, reason = "as `negotiate` gives it")]
    const fn object(format: Format, version: Version) -> Option<Representation> {
        Some(Representation::Object { format, version })
    }

    #[track_caller]
    fn check(accept: &str, expected: Option<Representation>) {
        assert_eq!(negotiate(Some(accept), "Flagz"), expected, "{accept}");
    }

    #[test]
    fn text_is_for_everybody_who_does_not_say_otherwise() {
        assert_eq!(negotiate(None, "Flagz"), Some(Representation::Text));
        for accept in ["", "*/*", "text/plain", "text/plain;charset=utf-8", "text/html, */*;q=0.1"] {
            check(accept, Some(Representation::Text));
        }
    }

    #[test]
    fn objects_are_asked_for_by_name() {
        check("application/json;as=Flagz;v=v1beta1;g=config.k8s.io", JSON_BETA);
        check("application/json; g=config.k8s.io; v=v1beta1; as=Flagz", JSON_BETA);
        check(
            "application/json;as=Flagz;v=v1alpha1;g=config.k8s.io",
            object(Format::Json, Version::V1Alpha1),
        );
        check("application/yaml;as=Flagz;v=v1beta1;g=config.k8s.io", object(Format::Yaml, Version::V1Beta1));
    }

    #[test]
    fn weights_decide_then_the_order() {
        check("text/plain;q=0.5, application/json;as=Flagz;v=v1beta1;g=config.k8s.io", JSON_BETA);
        check(
            "text/plain, application/json;as=Flagz;v=v1beta1;g=config.k8s.io;q=0.9",
            Some(Representation::Text),
        );
        check("application/json, text/plain;q=0.1", Some(Representation::Text));
        check("text/plain;q=0", None);
    }

    #[test]
    fn nothing_else_is_acceptable() {
        for accept in [
            "application/json",
            "application/json;as=Statusz;v=v1beta1;g=config.k8s.io",
            "application/json;as=Flagz;v=v2;g=config.k8s.io",
            "application/json;as=Flagz;v=v1beta1;g=other",
            "application/json;as=Flagz;g=config.k8s.io",
            "application/cbor;as=Flagz;v=v1beta1;g=config.k8s.io",
            "text/html",
            ";;;,,=",
        ] {
            check(accept, None);
        }
    }
}
