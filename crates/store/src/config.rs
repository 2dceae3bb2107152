//! From a storage url to a client of the object store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::error::{StoreError, clean};
use api::keys::{KeyError, check_key};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte for this long a request fails; large objects may take longer as a whole.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);

/// Where runs are kept. Credentials come from the environment (`AWS_*`, or `~/.aws/credentials`), never from here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageConfig {
    /// `s3://bucket/prefix`, `gs://bucket/prefix` or `file:///absolute/path`.
    pub url: String,
    /// Server of an S3-compatible service; plain http only if it says `http://`.
    pub endpoint: Option<String>,
    pub region: Option<String>,
}

/// A client and the prefix of all keys ("" or ending in a slash).
pub(super) struct Opened {
    pub(super) client: Arc<dyn ObjectStore>,
    pub(super) prefix: String,
    pub(super) url: String,
}

/// Refuses a text that cannot be the url of a storage, before anything is started for it.
pub fn check_url(text: &str) -> Result<(), StoreError> {
    parse(text).map(drop)
}

/// The url of a folder whose path may hold any character; `None` if the path is not absolute.
pub fn folder_url(path: &Path) -> Option<String> {
    Url::from_file_path(path).ok().map(|url| url.to_string().trim_end_matches('/').to_owned())
}

/// The folder that a storage url names; `None` for a bucket.
pub fn folder_of(url: &str) -> Option<PathBuf> {
    Url::parse(url).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

fn parse(text: &str) -> Result<Url, StoreError> {
    let url = Url::parse(text).map_err(|error| invalid(format!("{}: {error}", clean(text))))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("a storage url has no user, query or fragment"));
    }
    // The parser has resolved dots already: what was meant is not for it to guess.
    if let Some(part) = text.split('/').find(|part| matches!(*part, "." | "..")) {
        return Err(StoreError::Key(KeyError::Part(part.to_owned())));
    }
    match url.scheme() {
        "file" => drop(folder(&url)?),
        "s3" | "gs" => drop(bucket_and_prefix(&url)?),
        _ => {
            let forms = "s3://bucket/prefix, gs://bucket/prefix or file:///absolute/path";
            return Err(invalid(format!("{}: storage is {forms}", clean(text))));
        }
    }
    Ok(url)
}

fn folder(url: &Url) -> Result<PathBuf, StoreError> {
    url.to_file_path().map_err(|()| invalid(format!("{}: a directory is file:///absolute/path", clean(url.as_str()))))
}

/// The prefix is "" or ends in a slash.
fn bucket_and_prefix(url: &Url) -> Result<(&str, String), StoreError> {
    let bucket =
        url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| invalid("no bucket in the storage url"))?;
    let mut prefix = percent_decoded(url.path().trim_matches('/'))?;
    if !prefix.is_empty() {
        check_key(&prefix)?;
        prefix.push('/');
    }
    Ok((bucket, prefix))
}

impl StorageConfig {
    /// Builds the client; makes no request.
    pub(super) fn open(&self) -> Result<Opened, StoreError> {
        let url = parse(&self.url)?;
        if url.scheme() == "file" { directory(&url) } else { self.bucket(&url) }
    }

    fn bucket(&self, url: &Url) -> Result<Opened, StoreError> {
        let (bucket, prefix) = bucket_and_prefix(url)?;
        // Which provider of cryptography is used is decided once per process; the first one wins, any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client: Arc<dyn ObjectStore> = match url.scheme() {
            "s3" => Arc::new(s3_builder(self, bucket)?.build().map_err(|error| invalid(clean(&error.to_string())))?),
            _ => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(client_options(false))
                    .with_retry(retry())
                    .build()
                    .map_err(|error| invalid(clean(&error.to_string())))?,
            ),
        };
        let url = format!("{}://{bucket}/{prefix}", url.scheme()).trim_end_matches('/').to_owned();
        Ok(Opened { client, prefix, url })
    }
}

fn directory(url: &Url) -> Result<Opened, StoreError> {
    let path = folder(url)?;
    if !path.is_dir() {
        let what = clean(&path.to_string_lossy());
        return Err(StoreError::NotFound { what });
    }
    let client = LocalFileSystem::new_with_prefix(&path)
        .map_err(|error| StoreError::from_client(format!("open {}", clean(&path.to_string_lossy())), &error))?;
    Ok(Opened { client: Arc::new(client), prefix: String::new(), url: format!("file://{}", path.display()) })
}

fn s3_builder(config: &StorageConfig, bucket: &str) -> Result<AmazonS3Builder, StoreError> {
    let env =
        |name: &str| std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let mut builder = AmazonS3Builder::new().with_region("us-east-1");
    for (name, value) in std::env::vars_os() {
        // Pasted secrets end in newlines often enough.
        if let (Some(name), Some(value)) = (name.to_str(), value.to_str())
            && name.starts_with("AWS_")
            && let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
            && !value.trim().is_empty()
        {
            builder = builder.with_config(key, value.trim());
        }
    }
    if env("AWS_ACCESS_KEY_ID").is_none()
        && env("AWS_WEB_IDENTITY_TOKEN_FILE").is_none()
        && let Some(keys) = shared_credentials(&env)
    {
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        if let Some(token) = keys.token {
            builder = builder.with_token(token);
        }
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let endpoint = config.endpoint.clone().or_else(|| env("AWS_ENDPOINT_URL_S3")).or_else(|| env("AWS_ENDPOINT_URL"));
    let mut http = false;
    if let Some(endpoint) = endpoint {
        let parsed = Url::parse(&endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(parsed) = parsed.filter(|url| url.username().is_empty() && url.path() == "/" && url.query().is_none())
        else {
            return Err(invalid(format!("endpoint {} is not http(s)://host[:port]", clean(&endpoint))));
        };
        http = parsed.scheme() == "http";
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    Ok(builder.with_bucket_name(bucket).with_client_options(client_options(http)).with_retry(retry()))
}

fn client_options(http: bool) -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT).with_allow_http(http)
}

fn retry() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(3), base: 2. };
    RetryConfig { max_retries: 4, retry_timeout: RETRY_TIMEOUT, backoff }
}

struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

/// Static keys of the profile in the shared credentials file, if there are any.
fn shared_credentials(env: &dyn Fn(&str) -> Option<String>) -> Option<Keys> {
    let path = env("AWS_SHARED_CREDENTIALS_FILE").or_else(|| Some(format!("{}/.aws/credentials", env("HOME")?)))?;
    let profile = env("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
    parse_credentials(&std::fs::read_to_string(path).ok()?, &profile)
}

fn parse_credentials(text: &str, profile: &str) -> Option<Keys> {
    let (mut id, mut secret, mut token) = (None, None, None);
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = section.trim() == profile;
        } else if let (true, Some((name, value))) = (inside, line.split_once('=')) {
            let value = Some(value.trim().to_owned());
            match name.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(Keys { id: id?, secret: secret?, token })
}

pub(super) fn percent_decoded(path: &str) -> Result<String, StoreError> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |digits: &[u8]| std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 16).ok());
        match (first, tail) {
            (b'%', [a, b, after @ ..]) if hex(&[*a, *b]).is_some() => {
                bytes.extend(hex(&[*a, *b]));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("the storage url is not UTF-8"))
}

fn invalid(text: impl Into<String>) -> StoreError {
    StoreError::Invalid(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, endpoint: Option<&str>) -> &'static str {
        let config = StorageConfig { url: url.into(), endpoint: endpoint.map(str::to_owned), region: None };
        config.open().map_or_else(|error| error.reason().as_str(), |_| "fine")
    }

    #[test]
    fn unsafe_or_unknown_storage_is_refused() {
        for url in ["ftp://x/y", "nonsense", "s3://", "s3://key:secret@bucket/x", "s3://bucket/x?y=1", "file://host/x"]
        {
            assert_eq!(check(url, None), "InvalidStorage", "{url}");
        }
        for url in
            ["s3://bucket/a/../b", "file:///a/./b", "s3://bucket/a//b", "s3://bucket/a%0Ab", "s3://bucket/a/.tmp-1"]
        {
            assert_eq!(check(url, None), "InvalidKey", "{url}");
        }
        assert_eq!(check("file:///no/such/directory", None), "NotFound");
        for endpoint in ["host:9000", "ftp://host", "http://user@host", "http://host/path"] {
            assert_eq!(check("s3://bucket/x", Some(endpoint)), "InvalidStorage", "{endpoint}");
        }
        assert_eq!(check("s3://bucket/x", Some("http://127.0.0.1:9000")), "fine");
    }

    #[test]
    fn a_folder_of_any_name_survives_being_an_url() {
        for name in ["/tmp/a", "/tmp/my data", "/tmp/ü#1%20?x"] {
            let url = folder_url(Path::new(name)).unwrap();
            assert_eq!(folder_of(&url).unwrap(), Path::new(name));
            assert!(check_url(&url).is_ok(), "{url}");
        }
        assert_eq!(folder_of("s3://bucket/a"), None);
        assert_eq!(folder_url(Path::new("a")), None);
    }

    #[test]
    fn credentials_come_from_the_profile_that_is_asked_for() {
        let text = "# c\n[default]\naws_access_key_id = A\naws_secret_access_key=B=\n[other]\naws_access_key_id=C\n\
                    aws_secret_access_key=D\naws_session_token=E\n";
        let keys = parse_credentials(text, "default").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token), ("A", "B=", None));
        assert_eq!(parse_credentials(text, "other").unwrap().token.as_deref(), Some("E"));
        assert!(parse_credentials(text, "none").is_none());
    }
}
