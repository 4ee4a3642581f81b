//! Which clients are admitted: those whose certificate has one of the allowed names.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::der::{Any, Decode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Names that a complaint lists; more say nothing to who reads it.
const NAMES_TOLD: usize = 8;

/// A client that the authority knows and we do not admit.
#[derive(Debug, thiserror::Error)]
pub(super) enum NameError {
    #[error("its certificate's names {0:?} are not among the allowed ones")]
    NotAllowed(Vec<String>),
    #[error("its certificate's names cannot be read")]
    Unreadable,
}

/// Checks certificates as `inner` does, then their names.
#[derive(Debug)]
pub(super) struct AllowedNames {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: Vec<String>,
}

impl AllowedNames {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>, allowed: Vec<String>) -> AllowedNames {
        AllowedNames { inner, allowed }
    }

    fn admit(&self, certificate: &[u8]) -> Result<(), NameError> {
        let mut names = names(certificate).ok_or(NameError::Unreadable)?;
        if names.iter().any(|name| self.allowed.contains(name)) {
            return Ok(());
        }
        names.truncate(NAMES_TOLD);
        Err(NameError::NotAllowed(names))
    }
}

/// The common names and DNS names of a certificate, by its DER. `None`: it is no certificate.
fn names(certificate: &[u8]) -> Option<Vec<String>> {
    let certificate = Certificate::from_der(certificate).ok()?.tbs_certificate;
    let subject = certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let common = subject.filter(|attribute| attribute.oid == COMMON_NAME);
    let mut names: Vec<String> = common.filter_map(|attribute| text(&attribute.value)).collect();
    if let Some((_, alternatives)) = certificate.get::<SubjectAltName>().ok()? {
        names.extend(alternatives.0.into_iter().filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            _ => None,
        }));
    }
    Some(names)
}

/// The text of an attribute, in the encodings of RFC 5280 that have only one reading.
fn text(value: &Any) -> Option<String> {
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.to_string());
    let printable = || value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string());
    let ia5 = || value.decode_as::<Ia5StringRef<'_>>().map(|text| text.to_string());
    utf8.or_else(|_| printable()).or_else(|_| ia5()).ok()
}

impl ClientCertVerifier for AllowedNames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match self.admit(end_entity) {
            Ok(()) => Ok(verified),
            Err(why) => Err(CertificateError::Other(OtherError(Arc::new(why))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    fn der(common: DnValue, alternatives: &[&str]) -> Vec<u8> {
        let alternatives: Vec<_> = alternatives.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(alternatives).expect("names");
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn common_and_dns_names_are_read_and_addresses_are_not() {
        let certificate = der(DnValue::from("tidb-server"), &["a.example", "127.0.0.1", "b.example"]);
        let expected = ["tidb-server", "a.example", "b.example"].map(str::to_owned);
        assert_eq!(names(&certificate), Some(expected.to_vec()));
        let printable = DnValue::PrintableString("tikv".try_into().expect("printable"));
        assert_eq!(names(&der(printable, &[])), Some(vec!["tikv".to_owned()]));
        assert_eq!(names(b"no certificate"), None);
        assert_eq!(names(&certificate[..certificate.len() - 1]), None);
    }
}
