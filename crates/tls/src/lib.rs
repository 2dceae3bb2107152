//! Certificate authorities of clusters and the certificates that they issue: ECDSA on P-256, pure.
//!
//! Dask looks at the chain alone, never at names: whoever has a certificate of a cluster's authority is a full member of
//! it. So each cluster has an authority of its own.

#![warn(missing_docs)]

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates begin to hold a little before they are issued: clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(300);

/// Why a certificate could not be made or read; reads after "failed to". Never quotes a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It could not be made.
    #[error("make a certificate: {0}")]
    Issue(String),
    /// It could not be read.
    #[error("read a certificate: {0}")]
    Read(&'static str),
}

/// A certificate with its key, as PEM texts. Shows neither in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, with those above it.
    pub cert: String,
    /// The private key.
    pub key: String,
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of its DER form, in hex.
    pub fingerprint: String,
    /// From when on it holds.
    pub begins: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Its common name.
    pub name: String,
    /// DNS names, for clients that do look at them.
    pub hosts: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// A certificate authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    identity: Identity,
}

impl Authority {
    /// A new one, which holds until `lifetime` from now.
    pub fn new(name: &str, now: Timestamp, lifetime: Duration) -> Result<Authority, Error> {
        let mut params = params(name, now, lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = generate()?;
        let cert = params.self_signed(&key).map_err(issue)?.pem();
        Ok(Authority { identity: Identity { cert, key: key.serialize_pem() } })
    }

    /// One that was made before; the key must be the certificate's.
    pub fn from_identity(identity: Identity) -> Result<Authority, Error> {
        if !identity.matches() {
            return Err(Error::Read("the authority's key is not that of its certificate"));
        }
        Ok(Authority { identity })
    }

    /// Its own certificate and key.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What its certificate says of itself.
    pub fn facts(&self) -> Result<Facts, Error> {
        facts(&self.identity.cert)
    }

    /// A certificate that serves as that of a server and of a client, as Dask's processes need it.
    pub fn issue(&self, subject: &Subject, now: Timestamp, lifetime: Duration) -> Result<Identity, Error> {
        let signer = KeyPair::from_pem(&self.identity.key).map_err(|_| Error::Read("the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(&self.identity.cert, signer).map_err(issue)?;
        let mut params = params(&subject.name, now, lifetime)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for host in &subject.hosts {
            params.subject_alt_names.push(SanType::DnsName(host.as_str().try_into().map_err(issue)?));
        }
        params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        let key = generate()?;
        let cert = params.signed_by(&key, &issuer).map_err(issue)?.pem();
        Ok(Identity { cert, key: key.serialize_pem() })
    }

    /// Whether `leaf` was issued by this authority, as far as names and key ids tell; a peer checks the signature.
    pub fn issued(&self, leaf: &str) -> bool {
        let key_id = |pem: &str, own: bool| {
            let der = der(pem).ok()?;
            let (_, cert) = X509Certificate::from_der(&der).ok()?;
            cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) if own => Some(id.0.to_vec()),
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) if !own => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            })
        };
        let own = key_id(&self.identity.cert, true);
        own.is_some() && own == key_id(leaf, false)
    }
}

impl Identity {
    /// Whether the key is that of the certificate.
    pub fn matches(&self) -> bool {
        let Ok(der) = der(&self.cert) else { return false };
        let Ok((_, cert)) = X509Certificate::from_der(&der) else { return false };
        let Ok(key) = KeyPair::from_pem(&self.key) else { return false };
        cert.public_key().subject_public_key.data.as_ref() == rcgen::PublicKeyData::der_bytes(&key)
    }

    /// What the certificate says of itself.
    pub fn facts(&self) -> Result<Facts, Error> {
        facts(&self.cert)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// Reads the first certificate of a PEM text.
pub fn facts(pem: &str) -> Result<Facts, Error> {
    let der = der(pem)?;
    let (_, cert) = X509Certificate::from_der(&der).map_err(|_| Error::Read("it is no X.509 certificate"))?;
    let time = |seconds: i64| Timestamp::from_second(seconds).map_err(|_| Error::Read("a time is out of range"));
    Ok(Facts {
        fingerprint: hex::encode(Sha256::digest(&der)),
        begins: time(cert.validity().not_before.timestamp())?,
        expires: time(cert.validity().not_after.timestamp())?,
    })
}

/// Whether half of a certificate's life is over: time to renew it. What it was backdated by is no part of its life.
pub fn is_due(facts: &Facts, now: Timestamp) -> bool {
    let begin = facts.begins.as_second() + BACKDATED.as_secs().cast_signed();
    now.as_second() >= begin + (facts.expires.as_second() - begin) / 2
}

fn params(name: &str, now: Timestamp, lifetime: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new()).map_err(issue)?;
    let mut distinguished = DistinguishedName::new();
    // A common name holds 64 characters at most.
    distinguished.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    params.distinguished_name = distinguished;
    params.not_before = moment(now.as_second() - BACKDATED.as_secs().cast_signed())?;
    params.not_after = moment(now.as_second().saturating_add_unsigned(lifetime.as_secs()))?;
    Ok(params)
}

fn moment(seconds: i64) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::Issue("a time is out of range".to_owned()))
}

fn generate() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)
}

fn issue(error: rcgen::Error) -> Error {
    Error::Issue(error.to_string())
}

fn der(pem: &str) -> Result<Vec<u8>, Error> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| Error::Read("it is no PEM text"))?;
    if pem.label == "CERTIFICATE" { Ok(pem.contents) } else { Err(Error::Read("it is no certificate")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn subject() -> Subject {
        Subject { name: "c".repeat(80), hosts: vec!["c-scheduler.n".to_owned()], addresses: vec![] }
    }

    #[test]
    fn what_is_issued_says_when_it_holds_and_whose_it_is() {
        let (one, other) = (Authority::new("a", now(), DAY).unwrap(), Authority::new("a", now(), DAY).unwrap());
        let leaf = one.issue(&subject(), now(), Duration::from_secs(120)).unwrap();
        let facts = leaf.facts().unwrap();
        assert_eq!((facts.expires - now()).get_seconds(), 120);
        assert!(facts.begins < now() && leaf.matches());
        assert!(one.issued(&leaf.cert) && !other.issued(&leaf.cert), "authorities of one name differ by their keys");
        let second = |seconds| Timestamp::from_second(now().as_second() + seconds).unwrap();
        assert!(!is_due(&facts, second(59)) && is_due(&facts, second(60)));
        let mixed = Identity { cert: leaf.cert.clone(), key: other.identity().key.clone() };
        assert!(!mixed.matches());
        assert!(Authority::from_identity(mixed).is_err());
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let one = Authority::new("a", now(), DAY).unwrap();
        for text in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &one.identity().key] {
            assert!(facts(text).is_err());
        }
        assert!(!one.issued("") && !one.issued(&one.identity().key));
    }

    #[test]
    fn keys_are_never_shown() {
        let one = Authority::new("a", now(), DAY).unwrap();
        let shown = format!("{one:?} {:?}", one.identity());
        assert_eq!(shown, "Authority Identity");
        let error = Authority::from_identity(Identity { cert: one.identity().cert.clone(), key: "secret".to_owned() });
        assert!(!error.unwrap_err().to_string().contains("secret"));
    }
}
