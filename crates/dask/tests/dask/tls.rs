//! TLS: what is accepted (a chain to our CA, whatever the name) and what is not, each with its reason.

use std::sync::Arc;

use dask::ops::Versions;
use dask::{Address, Connection, Error, Tls};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::peer::{Authority, LONG, SHORT, category, greet, receive, send};

const ANY: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

/// A server as Dask configures it: a certificate of its own, client certificates of `clients` required.
async fn server(
    (cert, key): (String, String),
    clients: &Authority,
    versions: &[&'static SupportedProtocolVersion],
) -> Address {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(clients.pem().as_bytes()).expect("PEM")).expect("a CA");
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
        )
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("tls://{}", listener.local_addr().expect("an address")).parse().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                greet(&mut stream).await;
                while receive(&mut stream).await.is_some() {
                    send(&mut stream, &json!({"host": {}, "packages": {}, "padding": "x".repeat(100_000)})).await;
                }
            });
        }
    });
    address
}

async fn attempt(address: &Address, tls: Option<&Tls>) -> Result<(), Error> {
    let connection = Connection::connect(address, tls, LONG).await?;
    connection.call(&Versions {}).await.map(|_| ())
}

fn reason(result: Result<(), Error>) -> String {
    match result {
        Err(Error::Tls { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn both_versions_work_and_no_name_is_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "ca");
    let tls = Tls::from_files(&authority.files("client")).expect("TLS");
    for versions in [ANY, &[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let address = server(authority.issue(|_| {}), &authority, versions).await;
        assert_eq!(category(attempt(&address, Some(&tls)).await), "no error");
    }
    assert_eq!(format!("{tls:?}"), "Tls", "keys are not printed");
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "theirs"));
    let address = server(theirs.issue(|_| {}), &ours, ANY).await;
    let tls = Tls::from_files(&ours.files("client")).expect("TLS");
    assert!(reason(attempt(&address, Some(&tls)).await).contains("UnknownIssuer"));
    // A forged authority with the right name has the wrong key.
    let forged = Authority::new(folder.path(), "ours");
    let address = server(forged.issue(|_| {}), &ours, ANY).await;
    assert!(reason(attempt(&address, Some(&tls)).await).contains("BadSignature"));
}

#[tokio::test]
async fn validity_and_purpose_of_the_server_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "ca");
    let tls = Tls::from_files(&authority.files("client")).expect("TLS");
    let expired = authority.issue(|p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = authority.issue(|p| p.not_before = rcgen::date_time_ymd(2200, 1, 1));
    let client_only = authority.issue(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    for (certificate, word) in [(expired, "expired"), (early, "not valid yet"), (client_only, "extended key usage")] {
        let address = server(certificate, &authority, ANY).await;
        let reason = reason(attempt(&address, Some(&tls)).await);
        assert!(reason.contains(word), "{word}: {reason}");
    }
    // Dask's own tools issue certificates without any purpose.
    let plain = authority.issue(|p| p.extended_key_usages = vec![]);
    let address = server(plain, &authority, ANY).await;
    assert_eq!(category(attempt(&address, Some(&tls)).await), "no error");
}

#[tokio::test]
async fn a_client_certificate_that_the_server_refuses_is_told_in_both_versions() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new(folder.path(), "ours"), Authority::new(folder.path(), "theirs"));
    // Our certificate is of another authority than the server wants, but we trust the server's.
    let (cert, key) = ours.issue(|_| {});
    let tls = Tls::from_pem(theirs.pem().as_bytes(), cert.as_bytes(), key.as_bytes()).expect("TLS");
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let address = server(theirs.issue(|_| {}), &theirs, versions).await;
        // TLS 1.3 tells only with the first bytes that are read.
        assert_eq!(category(attempt(&address, Some(&tls)).await), "tls");
    }
}

#[tokio::test]
async fn neither_side_falls_back_to_plain_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "ca");
    let tls = Tls::from_files(&authority.files("client")).expect("TLS");
    let secure = server(authority.issue(|_| {}), &authority, ANY).await;
    let plain: Address = secure.to_string().replace("tls://", "tcp://").parse().expect("an address");
    assert_eq!(category(attempt(&secure, None).await), "tls");
    assert_eq!(category(attempt(&plain, Some(&tls)).await), "tls");
    // A plain client on a TLS port: an alert is no frame, or the server just hangs up.
    let found = category(attempt(&plain, None).await);
    assert!(matches!(found, "frame" | "torn" | "closed" | "lost"), "{found}");
    // A TLS client on a plain port.
    let (address, _peer) = crate::peer::peer(async |mut stream| {
        send(&mut stream, &json!({"compression": null, "python": [3, 11, 7], "pickle-protocol": 5})).await;
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut vec![]).await
    })
    .await;
    let address: Address = address.to_string().replace("tcp://", "tls://").parse().expect("an address");
    assert_eq!(category(attempt(&address, Some(&tls)).await), "tls");
    // One that says nothing at all.
    let (address, _peer) = crate::peer::peer(async |stream| (stream, std::future::pending::<()>().await)).await;
    let address: Address = address.to_string().replace("tcp://", "tls://").parse().expect("an address");
    let attempt = timeout(LONG.rpc, Connection::connect(&address, Some(&tls), SHORT));
    assert_eq!(category(attempt.await.expect("it gives up by itself")), "timeout");
}

#[test]
fn files_that_are_no_certificates_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new(folder.path(), "ca");
    let (ca, (cert, key)) = (authority.pem().as_bytes(), authority.issue(|_| {}));
    let (cert, key) = (cert.as_bytes(), key.as_bytes());
    let (_, other_key) = authority.issue(|_| {});
    for (ca, cert, key, word) in [
        (&b""[..], cert, key, "CA"),
        (&b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"[..], cert, key, "CA"),
        (ca, b"nothing", key, "client certificate"),
        (ca, cert, b"secret", "private key"),
        (ca, cert, cert, "private key"),
        (ca, cert, other_key.as_bytes(), "key"),
    ] {
        let error = Tls::from_pem(ca, cert, key).err();
        let text = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains(word) && !text.contains("secret"), "{word}: {text}");
    }
    let mut files = authority.files("client");
    files.key = folder.path().join("missing");
    let text = Tls::from_files(&files).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(text.contains("missing"), "{text}");
}
