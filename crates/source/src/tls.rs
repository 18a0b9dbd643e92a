//! TLS as Go speaks it where rustls is stricter: certificates of version 1, and servers whose own certificate is the CA.

use std::fmt;
use std::sync::Arc;

use http::Uri;
use jiff::Timestamp;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

use crate::access::{Access, Material, Pair};

/// Certificates or a key that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is no certificate where there should be some.
    #[error("{0}: there is no certificate in it")]
    NoCertificate(String),
    /// The key can't be read.
    #[error("{origin}: there is no private key in it that can be used")]
    Key {
        /// Where it is from.
        origin: String,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// The key is of another certificate.
    #[error("{key}: this is not the key of the certificate in {certificate}")]
    Mismatch {
        /// Where the certificate is from.
        certificate: String,
        /// Where the key is from.
        key: String,
    },
    /// The host has no certificates of well-known CAs.
    #[error("the kubeconfig names no CA, and this host has no certificates of CAs")]
    NoRoots,
    /// The library refuses it.
    #[error("TLS can't be set up")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A private key that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It is in no known form; an encrypted one is none.
    #[error(transparent)]
    Pem(tokio_rustls::rustls::pki_types::pem::Error),
    /// It is of an unknown kind.
    #[error(transparent)]
    Kind(Error),
}

/// What a client certificate is and until when, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    origin: String,
    expires: Option<Timestamp>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the client certificate in {}", self.origin)?;
        match self.expires {
            Some(expires) if expires < Timestamp::now() => write!(f, ", which expired at {expires}"),
            Some(expires) => write!(f, ", valid until {expires}"),
            None => Ok(()),
        }
    }
}

/// The TLS of a client. A plugin's certificate wins over that of the kubeconfig.
pub(crate) fn configure(
    access: &Access,
    plugin_pair: Option<&Pair>,
) -> Result<(ClientConfig, Option<Identity>), TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier(access, provider.clone())?));
    let Some(pair) = plugin_pair.or(access.pair.as_ref()) else {
        return Ok((builder.with_no_client_auth(), None));
    };
    let key = certified_key(pair, &provider)?;
    let expires = key.cert.first().and_then(expiry);
    let identity = Identity { origin: pair.certificate.origin.clone(), expires };
    Ok((builder.with_client_cert_resolver(Arc::new(Always(Arc::new(key)))), Some(identity)))
}

fn setup(error: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Setup(Box::new(error))
}

fn verifier(access: &Access, provider: Arc<CryptoProvider>) -> Result<Verifier, TlsError> {
    if access.is_insecure {
        return Ok(Verifier { trust: None, provider });
    }
    let (roots, anchors) = match &access.ca {
        None => (host_roots(access)?, Vec::new()),
        Some(ca) => {
            let anchors = certificates(ca)?;
            let mut roots = RootCertStore::empty();
            let (n_added, _) = roots.add_parsable_certificates(anchors.iter().cloned());
            if n_added == 0 {
                return Err(TlsError::NoCertificate(ca.origin.clone()));
            }
            (roots, anchors)
        }
    };
    let by_roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let by_roots = by_roots.build().map_err(setup)?;
    Ok(Verifier { trust: Some(Trust { by_roots, anchors }), provider })
}

fn host_roots(access: &Access) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (n_added, _) = roots.add_parsable_certificates(access.host_roots.iter().cloned());
    if n_added == 0 { Err(TlsError::NoRoots) } else { Ok(roots) }
}

/// All certificates in a PEM text; what is between them is passed over.
fn certificates(material: &Material) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(&material.bytes).filter_map(Result::ok).collect();
    if all.is_empty() { Err(TlsError::NoCertificate(material.origin.clone())) } else { Ok(all) }
}

/// rustls' own way to a `CertifiedKey` reads the certificate with webpki, which refuses version 1. So whether the key fits is
/// looked at here.
fn certified_key(pair: &Pair, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(&pair.certificate)?;
    let unusable = |source| TlsError::Key { origin: pair.key.origin.clone(), source };
    let key =
        PrivateKeyDer::from_pem_slice(&pair.key.bytes).map_err(|error| unusable(KeyError::Pem(error)))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| unusable(KeyError::Kind(error)))?;
    let in_certificate = chain.first().and_then(public_key);
    if let (Some(of_key), Some(in_certificate)) = (key.public_key(), in_certificate)
        && of_key.as_ref() != in_certificate.as_ref()
    {
        return Err(TlsError::Mismatch {
            certificate: pair.certificate.origin.clone(),
            key: pair.key.origin.clone(),
        });
    }
    Ok(CertifiedKey::new(chain, key))
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate().subject_public_key_info().to_der().ok()?.into())
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let not_after = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    Timestamp::from_second(not_after.as_secs().try_into().ok()?).ok()
}

/// Presents the certificate whatever CAs the server names, as client-go does.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _names: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Looks at a server's certificate.
#[derive(Debug)]
struct Verifier {
    /// `None`: whatever the server shows is right.
    trust: Option<Trust>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Trust {
    by_roots: Arc<WebPkiServerVerifier>,
    /// The CA's certificates of the kubeconfig.
    anchors: Vec<CertificateDer<'static>>,
}

/// Go trusts a server whose own certificate is in the file of the CA, also if it is a CA's.
fn verify_itself(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
    let parsed = Certificate::from_der(certificate).map_err(|_invalid| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate().validity();
    let not_before = UnixTime::since_unix_epoch(validity.not_before.to_unix_duration());
    let not_after = UnixTime::since_unix_epoch(validity.not_after.to_unix_duration());
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    Ok(())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        if trust.anchors.iter().any(|anchor| anchor == certificate) {
            return verify_itself(certificate, name, now).map(|()| ServerCertVerified::assertion());
        }
        trust.by_roots.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match (&self.trust, public_key(certificate)) {
            // Unverified, it may also be of version 1.
            (None, Some(key)) => verify_tls13_signature_with_raw_key(message, &key, signature, algorithms),
            _ => verify_tls13_signature(message, certificate, signature, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What an error of TLS means, where the library's own text does not say what people need to know.
pub(crate) fn explain(error: &Error, server: &Uri, ca: Option<&Material>) -> String {
    let Error::InvalidCertificate(reason) = error else { return error.to_string() };
    let host = server.host().unwrap_or_default();
    match reason {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the server's certificate expired at {}", date(*not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the server's certificate is not valid before {}", date(*not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!("the server's certificate is for {}, not for {}", presented.join(", "), name(expected))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => match ca {
            Some(ca) => format!("the server's certificate is of no CA in {}", ca.origin),
            None => format!(
                "the server's certificate is of no CA that this host knows, and the kubeconfig names none for {host}"
            ),
        },
        _ => format!("the server's certificate can't be used: {reason:?}"),
    }
}

/// What servers say in an alert that is about the client's certificate.
const ALERTS: [&str; 8] = [
    "BadCertificate",
    "UnsupportedCertificate",
    "CertificateRevoked",
    "CertificateExpired",
    "CertificateUnknown",
    "CertificateRequired",
    "UnknownCA",
    "AccessDenied",
];

/// Whether the server has something against the client's certificate. Of an error of I/O, HTTP/2's library keeps only the text,
/// so that is what is looked at.
pub(crate) fn is_about_client(text: &str) -> bool {
    let alert = text.rsplit_once("received fatal alert: ").map(|(_, alert)| alert);
    alert.is_some_and(|alert| ALERTS.iter().any(|known| alert.starts_with(known)))
}

fn name(name: &ServerName<'_>) -> String {
    name.to_str().into_owned()
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_range| format!("{seconds}"), |date| date.to_string())
}
