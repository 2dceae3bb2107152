//! Sockets: TCP with the same liveness settings as Dask's own, and TLS that checks the chain but no names.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::{Address, Scheme};
use super::deadlines::Deadlines;
use super::error::Error;

/// How long bytes of ours may stay unacknowledged by the peer's machine; Dask's `comm.timeouts.tcp`.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Probes of an idle connection: first after 7 s, then every 2 s, ten of them, as Dask derives them from 30 s.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(7), Duration::from_secs(2), 10);

/// PEM files of a client: the CA that signs the peers, our certificate with its chain, its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// CA certificates.
    pub ca: PathBuf,
    /// Our certificate, then intermediate ones.
    pub cert: PathBuf,
    /// Private key of our certificate.
    pub key: PathBuf,
}

/// What is needed to speak TLS with the servers of one CA. Cheap to clone; never printed.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
}

impl Tls {
    /// Reads the files and builds the configuration.
    pub fn from_files(files: &TlsFiles) -> Result<Tls, Error> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| Error::Tls { reason: format!("read {}: {e}", path.display()) })
        };
        Tls::from_pem(&read(&files.ca)?, &read(&files.cert)?, &read(&files.key)?)
    }

    /// Builds the configuration from PEM texts.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Tls, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for cert in certificates(ca, "CA certificates")? {
            roots.add(cert).map_err(|e| tls_error("use the CA certificates", &e))?;
        }
        let chain = certificates(cert, "client certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            // The text of this error could quote the key.
            .map_err(|_| Error::Tls { reason: "the private key is no PEM private key".to_owned() })?;
        let verifier = ChainVerifier { roots, provider: Arc::clone(&provider) };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| tls_error("choose versions", &e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(chain, key)
            .map_err(|e| tls_error("use the client certificate with its key", &e))?;
        config.enable_sni = false;
        // Each configuration is for one scheduler, to which connections are long and few. By default there would be room
        // for hundreds of sessions in each.
        config.resumption = Resumption::disabled();
        Ok(Tls { config: Arc::new(config) })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// A connected stream.
#[derive(Debug)]
pub enum Transport {
    /// Plain.
    Tcp(TcpStream),
    /// Encrypted, both sides authenticated.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects within the deadlines. `tls://` without `tls`, or `tcp://` with it, is refused: neither must fall back.
pub async fn connect(address: &Address, tls: Option<&Tls>, deadlines: &Deadlines) -> Result<Transport, Error> {
    let tls = match (address.scheme(), tls) {
        (Scheme::Tcp, None) => None,
        (Scheme::Tls, Some(tls)) => Some(tls),
        (Scheme::Tls, None) => return Err(Error::Tls { reason: format!("{address} needs certificates") }),
        (Scheme::Tcp, Some(_)) => {
            return Err(Error::Tls { reason: format!("{address} is not encrypted, but certificates were given") });
        }
    };
    let refused = |source: io::Error| Error::Connect { address: address.to_string(), source: Arc::new(source) };
    let stream = timeout(deadlines.connect, TcpStream::connect((address.host(), address.port())))
        .await
        .map_err(|_| Error::Timeout { during: "connect", after: deadlines.connect })?
        .map_err(refused)?;
    keep_alive(&stream).map_err(refused)?;
    let Some(tls) = tls else { return Ok(Transport::Tcp(stream)) };

    // The verifier does not look at the name, and it is not sent either.
    let name = ServerName::try_from("dask-scheduler").map_err(|e| Error::Tls { reason: e.to_string() })?;
    let handshake = TlsConnector::from(Arc::clone(&tls.config)).connect(name, stream);
    let stream = timeout(deadlines.handshake, handshake)
        .await
        .map_err(|_| Error::Timeout { during: "set up TLS", after: deadlines.handshake })?
        .map_err(|e| Error::Tls { reason: e.to_string() })?;
    Ok(Transport::Tls(Box::new(stream)))
}

/// The error of a read or write. Under TLS 1.3 a refused client certificate shows only here.
pub(super) fn io_error(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => Error::Tls { reason: inner.to_string() },
        None => Error::Lost(Arc::new(error)),
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Tls { reason: format!("the {what} are not PEM: {e}") })?;
    if certificates.is_empty() {
        return Err(Error::Tls { reason: format!("the {what} hold no certificate") });
    }
    Ok(certificates)
}

fn tls_error(what: &str, error: &rustls::Error) -> Error {
    Error::Tls { reason: format!("{what}: {error}") }
}

/// Accepts a server whose certificate chains to our CA, is in its validity period and may serve.
///
/// The host name is not compared: Dask's certificates name no hosts, and its own peers do not compare it either. What
/// that leaves open, that any holder of a certificate of this CA can play the scheduler, is why each cluster has a CA
/// of its own.
#[derive(Debug)]
struct ChainVerifier {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let end_entity = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&end_entity, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
