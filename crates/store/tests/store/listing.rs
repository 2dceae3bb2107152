//! The reader on a service whose listings leave out what is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use store::{Reader, StorageConfig};

/// The test runs itself with the keys of the service in its environment, which is all that says that it did.
const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "listing-key"), ("AWS_SECRET_ACCESS_KEY", "secret")];

/// A bucket; the first listings of it leave objects out.
struct Bucket {
    objects: BTreeMap<String, Vec<u8>>,
    hidden: Vec<String>,
    /// So many listings are incomplete.
    incomplete: usize,
    listings: AtomicUsize,
}

impl Bucket {
    fn answer(&self, request: &Request<Body>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        let path = request.uri().path().trim_matches('/');
        if query.contains("list-type=2") {
            return plain(StatusCode::OK, self.list().into_bytes());
        }
        let Some(data) = path.strip_prefix("bucket/").and_then(|key| self.objects.get(key)) else {
            return plain(StatusCode::NOT_FOUND, b"<Error><Code>NoSuchKey</Code></Error>".to_vec());
        };
        let response = Response::builder()
            .header("Last-Modified", "Tue, 01 Dec 2020 00:00:00 GMT")
            .header("ETag", "\"1\"")
            .header("Content-Length", data.len());
        let body = if request.method() == Method::HEAD { Body::empty() } else { Body::from(data.clone()) };
        response.body(body).expect("a response")
    }

    fn list(&self) -> String {
        let whole = self.listings.fetch_add(1, Ordering::Relaxed) >= self.incomplete;
        let shown = self.objects.iter().filter(|(key, _)| whole || !self.hidden.contains(key));
        let contents = shown.map(|(key, data)| {
            let size = data.len();
            format!(
                "<Contents><Key>{key}</Key><LastModified>2020-12-01T00:00:00.000Z</LastModified><ETag>\"1\"</ETag>\
                 <Size>{size}</Size></Contents>"
            )
        });
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>", contents.collect::<String>())
    }
}

fn plain(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    Response::builder().status(status).body(Body::from(body)).expect("a response")
}

/// A journal in a bucket, of which listings leave segment 2 out; what `change` does to it.
async fn reading(incomplete: usize, change: impl FnOnce(&mut Bucket)) -> (Arc<Bucket>, String, Reader) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/journal");
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("expected.json")).unwrap()).unwrap();
    let run = expected["run"].as_str().unwrap().to_owned();
    let key = |name: &str| format!("runs/{run}/journal/{name}");
    let objects = std::fs::read_dir(golden.join("good")).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (key(path.file_name().unwrap().to_str().unwrap()), std::fs::read(path).unwrap())
    });
    let mut bucket = Bucket {
        objects: objects.collect(),
        hidden: vec![key("0000000002.seg")],
        incomplete,
        listings: AtomicUsize::new(0),
    };
    change(&mut bucket);
    let bucket = Arc::new(bucket);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    let serving = Arc::clone(&bucket);
    let app = Router::new().fallback(move |request: Request<Body>| {
        let serving = Arc::clone(&serving);
        async move { serving.answer(&request) }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    let config = StorageConfig { url: "s3://bucket".to_owned(), endpoint, ..StorageConfig::default() };
    (bucket, run, Reader::open(&config).await.unwrap())
}

#[tokio::test]
async fn a_segment_that_a_listing_leaves_out_is_read_all_the_same() {
    if std::env::var(KEYS[0].0).as_deref() != Ok(KEYS[0].1) {
        let name = "listing::a_segment_that_a_listing_leaves_out_is_read_all_the_same";
        let itself = std::env::current_exe().unwrap();
        let ended = Command::new(itself).args(["--exact", name, "--nocapture"]).envs(KEYS).status().unwrap();
        assert!(ended.success());
        return;
    }
    // Left out once, and left out always: it is there.
    for incomplete in [1, usize::MAX] {
        let (_, run, reader) = reading(incomplete, |_| ()).await;
        let folded = reader.read_journal(&run).await.unwrap();
        assert_eq!((folded.committed.len(), folded.last.unwrap().seg), (4, 7), "{incomplete}");
    }
    // Neither listed nor there for a moment: the listing is asked for again.
    let (bucket, run, reader) = reading(0, |bucket| drop(bucket.objects.remove(&bucket.hidden[0]))).await;
    let error = reader.read_journal(&run).await.unwrap_err().to_string();
    assert!(error.contains("segment 2 of the journal of run") && error.contains("it is missing"), "{error}");
    assert!(bucket.listings.load(Ordering::Relaxed) > 1, "one listing does not say that it is missing");
}
