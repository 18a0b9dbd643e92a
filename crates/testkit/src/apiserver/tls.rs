//! Certificates, made anew for each server.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::config::Config;
use super::error::StartError;

/// What a client needs to trust the server and to be trusted by it.
#[derive(Debug)]
pub(super) struct ClientTrust {
    /// The CA's certificate in PEM.
    pub(super) ca: String,
    /// A client certificate of that CA in PEM.
    pub(super) certificate: String,
    /// The key of the client certificate in PEM.
    pub(super) key: String,
}

/// Makes a CA, a server certificate and a client certificate.
pub(super) fn make(config: &Config) -> Result<(TlsAcceptor, ClientTrust), StartError> {
    let ca_key = KeyPair::generate()?;
    let ca_params = ca_params()?;
    let ca_certificate = ca_params.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params, ca_key);

    let server_key = KeyPair::generate()?;
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.push(config.address.ip().to_string());
    names.extend(config.names.iter().cloned());
    let server = leaf("kube-apiserver", None, names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let server = server.signed_by(&server_key, &issuer)?;

    let client_key = KeyPair::generate()?;
    let client =
        leaf("test-client", Some("system:masters"), Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
    let client = client.signed_by(&client_key, &issuer)?;

    let acceptor = acceptor(ca_certificate.der(), server.der().clone(), &server_key)?;
    let trust =
        ClientTrust { ca: ca_certificate.pem(), certificate: client.pem(), key: client_key.serialize_pem() };
    Ok((acceptor, trust))
}

fn ca_params() -> Result<CertificateParams, StartError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn leaf(
    name: &str,
    organization: Option<&str>,
    alternative_names: Vec<String>,
    purpose: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, StartError> {
    let mut params = CertificateParams::new(alternative_names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.extended_key_usages = vec![purpose];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// Client certificates are asked for but not demanded: who has none is anonymous, as with a real server.
fn acceptor(
    ca: &CertificateDer<'_>,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Result<TlsAcceptor, StartError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key.into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
