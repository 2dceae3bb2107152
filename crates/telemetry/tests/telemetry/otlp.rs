//! A span reaches an OpenTelemetry collector; lines of the log are JSON with the span's fields. A process of its own,
//! since the subscriber is one per process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use telemetry::log::{self, Format, Settings};

#[test]
fn a_span_arrives_at_the_collector_with_its_fields() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            drop(sender.send(take(stream)));
        }
    });
    let settings = Settings { format: Format::Json, filter: "off".into(), otlp: Some(format!("http://{address}/")) };
    let telemetry = log::start(&settings).expect("telemetry");
    tracing::info_span!(target: "daskade::test", "reconcile", controller = "daskcluster", uid = "0001").in_scope(
        || {
            tracing::info!(target: "daskade::test", "inside");
        },
    );
    tracing::info_span!(target: "some_library", "noise").in_scope(|| ());
    telemetry.finish();

    let request = received.recv_timeout(Duration::from_secs(5)).expect("a request");
    let text = String::from_utf8_lossy(&request);
    assert!(text.starts_with("POST /v1/traces HTTP/1.1"), "{text}");
    assert!(text.to_ascii_lowercase().contains("content-type: application/x-protobuf"), "{text}");
    for part in ["reconcile", "daskcluster", "0001", "service.name", "daskade"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("noise"), "spans of libraries are not sent: {text}");
}

/// One request with its body; answered.
fn take(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time limit");
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if request.len() >= head + 4 + length.unwrap_or(0) {
                break;
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
    drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    request
}
