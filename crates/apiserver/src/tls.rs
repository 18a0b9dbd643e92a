//! Certificates, made anew for each server.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SigningKey as _, date_time_ymd,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};

use super::config::{Certificates, Config, Keys};
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
    let certificates = &config.certificates;
    let ca_key = key(certificates)?;
    let mut ca_params = ca_params(config)?;
    if certificates.is_self_signed {
        ca_params.subject_alt_names = CertificateParams::new(server_names(config))?.subject_alt_names;
    }
    let ca = ca_params.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params, ca_key);

    let (server, server_key) = if certificates.is_self_signed {
        (ca.clone(), KeyPair::from_pem(&issuer.key().serialize_pem())?)
    } else {
        let key = key(certificates)?;
        let mut params =
            leaf("kube-apiserver", None, server_names(config), ExtendedKeyUsagePurpose::ServerAuth)?;
        if certificates.is_server_expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        (params.signed_by(&key, &issuer)?, key)
    };
    let client = client(certificates, &issuer)?;
    let acceptor = acceptor(server.der().clone(), &server_key, &client)?;
    let trust = ClientTrust { ca: ca.pem(), certificate: client.pem, key: client.key.serialize_pem() };
    Ok((acceptor, trust))
}

fn key(certificates: &Certificates) -> Result<KeyPair, StartError> {
    let algorithm = match certificates.keys {
        Keys::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        Keys::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        Keys::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
        Keys::Ed25519 => &rcgen::PKCS_ED25519,
    };
    Ok(KeyPair::generate_for(algorithm)?)
}

fn server_names(config: &Config) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.push(config.address.ip().to_string());
    names.extend(config.names.iter().cloned());
    names
}

fn ca_params(config: &Config) -> Result<CertificateParams, StartError> {
    let names = if config.certificates.is_self_signed { server_names(config) } else { Vec::new() };
    let mut params = CertificateParams::new(names)?;
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

/// A client's certificate.
struct Client {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

fn client(certificates: &Certificates, issuer: &Issuer<'_, KeyPair>) -> Result<Client, StartError> {
    let key = key(certificates)?;
    let params =
        leaf("test-client", Some("system:masters"), Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
    if certificates.is_client_version_1 {
        let der = version_1(&key, issuer)?;
        let pem = pem(&der);
        return Ok(Client { der: der.into(), pem, key });
    }
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Client { der: certificate.der().clone(), pem: certificate.pem(), key })
}

/// A certificate without extensions, as `openssl x509 -req` makes it when nothing else is said (RFC 5280, section 4.1).
fn version_1(key: &KeyPair, issuer: &Issuer<'_, KeyPair>) -> Result<Vec<u8>, StartError> {
    const SEQUENCE: u8 = 0x30;
    // ecdsa-with-SHA256
    let algorithm = der(SEQUENCE, &[&der(0x06, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]])]);
    let name = |text: &str| {
        let common_name = der(0x06, &[&[0x55, 0x04, 0x03]]);
        let attribute = der(SEQUENCE, &[&common_name, &der(0x0c, &[text.as_bytes()])]);
        der(SEQUENCE, &[&der(0x31, &[&attribute])])
    };
    let validity = der(SEQUENCE, &[&der(0x17, &[b"200101000000Z"]), &der(0x17, &[b"490101000000Z"])]);
    let serial_number = der(0x02, &[&[7]]);
    let key_info = key.subject_public_key_info();
    let parts: [&[u8]; 6] =
        [&serial_number, &algorithm, &name("test CA"), &validity, &name("test-client"), &key_info];
    let to_be_signed = der(SEQUENCE, &parts);
    let signature = issuer.key().sign(&to_be_signed)?;
    let signature = der(0x03, &[&[0], &signature]);
    Ok(der(SEQUENCE, &[&to_be_signed, &algorithm, &signature]))
}

/// A value with its tag and length.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1)..];
    let mut out = vec![tag];
    if content.len() >= 0x80 {
        out.push(0x80 | u8::try_from(length.len()).unwrap_or(0x7f));
    }
    [out, length.to_vec(), content].concat()
}

fn pem(der: &[u8]) -> String {
    let text = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Client certificates are asked for but not demanded: who has none is anonymous, as with a real server.
fn acceptor(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    client: &Client,
) -> Result<TlsAcceptor, StartError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = OneClient {
        certificate: client.der.clone(),
        key: client.key.subject_public_key_info().into(),
        provider: provider.clone(),
    };
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![certificate], key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Knows the one client that the server has made a certificate for. rustls' own verifier knows no version 1.
#[derive(Debug)]
struct OneClient {
    certificate: CertificateDer<'static>,
    key: SubjectPublicKeyInfoDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for OneClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if *certificate == self.certificate {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(CertificateError::UnknownIssuer.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        _certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &self.key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
