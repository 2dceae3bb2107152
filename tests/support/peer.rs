//! What the tests of the Dask client share: a peer that follows a script, and certificates.
#![allow(dead_code, reason = "every test file uses another part")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dask::{Address, Connection, Deadlines, Error, TlsFiles, frame};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Deadlines for peers that will not answer: long enough for a loaded machine, short enough for a test.
pub const SHORT: Deadlines = Deadlines {
    connect: Duration::from_secs(5),
    handshake: Duration::from_millis(400),
    rpc: Duration::from_millis(400),
    slow: Duration::from_millis(400),
};

/// Deadlines that must not be what ends a test.
pub const LONG: Deadlines = Deadlines {
    connect: Duration::from_secs(30),
    handshake: Duration::from_secs(30),
    rpc: Duration::from_secs(30),
    slow: Duration::from_secs(30),
};

/// Accepts one connection and runs `script` on it.
pub async fn peer<F, R>(script: impl FnOnce(TcpStream) -> F + Send + 'static) -> (Address, JoinHandle<R>)
where
    F: Future<Output = R> + Send,
    R: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("tcp://{}", listener.local_addr().expect("an address")).parse().expect("an address");
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        script(stream).await
    });
    (address, task)
}

/// Connects to a peer that shakes hands and then runs `script`.
pub async fn greeted<F, R>(
    deadlines: Deadlines,
    script: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (Connection, JoinHandle<R>)
where
    F: Future<Output = R> + Send,
    R: Send + 'static,
{
    let (address, task) = peer(move |mut stream| async move {
        greet(&mut stream).await;
        script(stream).await
    })
    .await;
    (Connection::connect(&address, None, deadlines).await.expect("a connection"), task)
}

/// The peer's part of the handshake.
pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    send(stream, &json!({"compression": null, "python": [3, 11, 7], "pickle-protocol": 5})).await;
    let ours = receive(stream).await.expect("our introduction");
    assert_eq!(ours["compression"], Value::Null);
}

/// Longest message that is read: what claims to be longer is not Dask's, but a TLS greeting, say.
const LONGEST: u64 = 64 << 20;

pub fn packed(value: &Value) -> Vec<u8> {
    frame::encode(&[&rmp_serde::to_vec(value).expect("it can be packed")])
}

pub async fn send<S: AsyncWrite + Unpin>(stream: &mut S, value: &Value) {
    // The client may have hung up already: what it saw is what a test asserts.
    let _ = stream.write_all(&packed(value)).await;
    let _ = stream.flush().await;
}

/// The next message; `None` at the end of the stream, and if none comes.
pub async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Value> {
    let length = stream.read_u64_le().await.ok().filter(|length| *length <= LONGEST)?;
    let mut block = vec![0; length as usize];
    stream.read_exact(&mut block).await.ok()?;
    let value = rmpv::decode::read_value(&mut &block[16..]).ok()?;
    Some(plain(value))
}

/// The same as JSON; bytes are shown as what they are not.
fn plain(value: rmpv::Value) -> Value {
    match value {
        rmpv::Value::Binary(bytes) => json!(format!("{} bytes", bytes.len())),
        rmpv::Value::Array(items) => items.into_iter().map(plain).collect(),
        rmpv::Value::Map(entries) => Value::Object(
            entries
                .into_iter()
                .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), plain(value)))
                .collect(),
        ),
        other => serde_json::to_value(other).unwrap_or_default(),
    }
}

/// The category of a failure.
pub fn category<T>(result: Result<T, Error>) -> &'static str {
    result.map_or_else(|error| error.category(), |_| "no error")
}

/// A certificate authority in a folder of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        std::fs::write(folder.join(format!("{name}.pem")), &pem).expect("a file");
        Authority { issuer: Issuer::new(params, key), pem, folder: folder.to_owned() }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// PEM texts of a certificate, which names no host that anybody connects to, and its key.
    pub fn issue(&self, adjust: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let mut params = CertificateParams::new(vec!["elsewhere.invalid".to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        adjust(&mut params);
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    /// The same as files.
    pub fn files(&self, name: &str) -> TlsFiles {
        let (cert, key) = self.issue(|_| {});
        let path = |suffix: &str| self.folder.join(format!("{name}{suffix}"));
        let files = TlsFiles { ca: path("-ca.pem"), cert: path("-cert.pem"), key: path("-key.pem") };
        for (path, text) in [(&files.ca, &self.pem), (&files.cert, &cert), (&files.key, &key)] {
            std::fs::write(path, text).expect("a file");
        }
        files
    }
}
