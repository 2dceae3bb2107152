//! The reader on a directory laid out as the runtime lays it out.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use api::reason::Reason;
use store::{Handle, LogFilter, Objects, Reader, StorageConfig, StoreError};

struct Place {
    folder: tempfile::TempDir,
    run: String,
}

impl Place {
    fn golden() -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/journal");
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(golden.join("expected.json")).unwrap()).unwrap();
        let place = Self { folder: tempfile::tempdir().unwrap(), run: expected["run"].as_str().unwrap().to_owned() };
        for entry in std::fs::read_dir(golden.join("good")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            place.write(&format!("runs/{}/journal/{name}", place.run), &std::fs::read(path).unwrap());
        }
        place
    }

    fn write(&self, key: &str, data: &[u8]) {
        let path = self.folder.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }

    fn segment(&self, seg: u64) -> std::path::PathBuf {
        self.folder.path().join(format!("runs/{}/journal/{seg:010}.seg", self.run))
    }

    async fn reader(&self) -> Reader {
        let url = format!("file://{}", self.folder.path().display());
        Reader::open(&StorageConfig { url, ..StorageConfig::default() }).await.unwrap()
    }
}

fn stored(path: &str, data: &[u8]) -> Handle {
    Handle {
        path: Some(path.to_owned()),
        size: data.len() as u64,
        digest: Sha256::digest(data).into(),
        serializer: "pickle".into(),
        bytes: None,
        worker: None,
        container: None,
        named: Vec::new(),
        made: None,
    }
}

#[tokio::test]
async fn runs_and_journals_are_found_and_read() {
    let place = Place::golden();
    place.write("runs/another/journal/x", b"");
    place.write("models/m.bin", b"");
    let reader = place.reader().await;
    assert_eq!(reader.list_runs().await.unwrap(), [place.run.clone(), "another".to_owned()]);
    let folded = reader.read_journal(&place.run).await.unwrap();
    assert_eq!((folded.committed.len(), folded.last.unwrap().seg, folded.last.unwrap().epoch), (4, 7, 5));
    let none = reader.read_journal("nothing-here").await.unwrap_err();
    assert_eq!(
        (none.reason(), none.to_string()),
        (Reason::RunNotFound, "there is no journal of run nothing-here".into())
    );
    refused(reader.read_journal("../x").await, "InvalidKey", "\"../x\" is not the uid of a run");
    place.write("runs/over/removed/record", b"{\"t\": 1.0}");
    let over = reader.read_journal("over").await.unwrap_err();
    assert_eq!(over.reason(), Reason::OutputsRemoved);
    assert!(over.to_string().contains("what run over had stored was removed"), "{over}");
}

#[tokio::test]
async fn a_growing_journal_is_followed() {
    let place = Place::golden();
    let later: Vec<(std::path::PathBuf, Vec<u8>)> =
        (3..8).map(|seg| (place.segment(seg), std::fs::read(place.segment(seg)).unwrap())).collect();
    later.iter().for_each(|(path, _)| std::fs::remove_file(path).unwrap());
    let mut journal = place.reader().await.follow_journal(&place.run).unwrap();
    assert_eq!(journal.advance().await.unwrap(), 3);
    assert_eq!(journal.advance().await.unwrap(), 0);
    for (path, data) in &later {
        std::fs::write(path, data).unwrap();
        assert_eq!(journal.advance().await.unwrap(), 1);
    }
    assert!(journal.state().finished.is_none());
    assert_eq!(journal.state(), &place.reader().await.read_journal(&place.run).await.unwrap());
}

#[tokio::test]
async fn a_damaged_journal_names_its_segment_and_keeps_what_was_good() {
    let place = Place::golden();
    let good = std::fs::read(place.segment(3)).unwrap();
    let mut bad = good.clone();
    bad[50] ^= 1;
    std::fs::write(place.segment(3), &bad).unwrap();
    let mut journal = place.reader().await.follow_journal(&place.run).unwrap();
    let error = journal.advance().await.unwrap_err();
    assert_eq!(error.reason(), Reason::RecordUnreadable);
    assert!(error.to_string().contains("segment 3 of the journal of run"), "{error}");
    assert_eq!(journal.state().next_segment(), 3);
    std::fs::remove_file(place.segment(3)).unwrap();
    let error = place.reader().await.read_journal(&place.run).await.unwrap_err();
    assert!(error.to_string().contains("segment 3") && error.to_string().contains("missing"), "{error}");
    std::fs::write(place.segment(3), good).unwrap();
    assert_eq!(journal.advance().await.unwrap(), 5);
}

/// What a refusal says: its reason, and who and what it is about.
fn refused<T: std::fmt::Debug>(read: Result<T, StoreError>, reason: &str, words: &str) {
    let error = read.expect_err(words);
    assert!(
        error.reason().as_str() == reason && error.to_string().contains(words),
        "{}: {error}, not {words}",
        error.reason()
    );
}

#[tokio::test]
async fn an_output_is_read_only_if_it_is_what_was_committed() {
    let place = Place::golden();
    let reader = place.reader().await;
    let handle = stored("data/1/-1-1-ab", b"content");
    refused(reader.read_object(&place.run, &handle, 1000).await, "NotFound", "data/1/-1-1-ab is not there");
    let key = format!("runs/{}/data/1/-1-1-ab", place.run);
    place.write(&key, b"content");
    assert_eq!(reader.read_object(&place.run, &handle, 1000).await.unwrap(), "content");
    for (data, why) in [
        (&b"c0ntent"[..], "its digest does not match"),
        (b"conten", "it has another size"),
        (b"content and more", "it has another size"),
        (b"", "it has another size"),
    ] {
        place.write(&key, data);
        let read = reader.read_object(&place.run, &handle, 1000).await;
        refused(read, "CorruptOutput", &format!("{key} is not what was committed: {why}"));
    }
    refused(reader.read_object(&place.run, &handle, 6).await, "OutputTooLarge", "has 7 bytes, the limit is 6");
    place.write("models/x", b"root");
    let from_root = stored("/models/x", b"root");
    assert_eq!(reader.read_object(&place.run, &from_root, 10).await.unwrap(), "root");
    for path in ["../x/data/1", "/../../etc/passwd", "//etc/passwd"] {
        let read = reader.read_object(&place.run, &stored(path, b""), 10).await;
        refused(read, "InvalidKey", "is not allowed as a part of a key");
    }
    let mut inline = Handle { bytes: Some(Bytes::from_static(b"x")), path: None, ..stored("-", b"x") };
    assert_eq!(reader.read_object(&place.run, &inline, 10).await.unwrap(), "x");
    inline.digest[0] ^= 1;
    refused(reader.read_object(&place.run, &inline, 10).await, "CorruptOutput", "is not what was committed");
}

#[tokio::test]
async fn code_is_read_only_if_its_digest_is_the_one_in_the_journal() {
    let place = Place::golden();
    let reader = place.reader().await;
    let mut journal = reader.read_journal(&place.run).await.unwrap();
    let inline = journal.opened.code.zip.clone().unwrap();
    refused(reader.read_code(&place.run, &journal).await, "CorruptOutput", "is not what was committed");
    let hex = |data: &[u8]| Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    journal.opened.code.digest = Some(hex(&inline));
    assert_eq!(reader.read_code(&place.run, &journal).await.unwrap(), inline);
    journal.opened.code = store::Code { digest: Some(hex(b"large")), zip: None };
    let key = format!("runs/{}/code/{}.zip", place.run, hex(b"large"));
    refused(reader.read_code(&place.run, &journal).await, "NotFound", &format!("{key} is not there"));
    place.write(&key, b"large");
    assert_eq!(reader.read_code(&place.run, &journal).await.unwrap(), "large");
    place.write(&key, b"other");
    refused(reader.read_code(&place.run, &journal).await, "CorruptOutput", &format!("{key} is not what was committed"));
    for digest in [None, Some("../../x".to_owned()), Some("7".to_owned())] {
        journal.opened.code.digest = digest;
        assert!(reader.read_code(&place.run, &journal).await.is_err());
    }
}

#[tokio::test]
async fn log_lines_come_in_order_of_time_and_only_those_asked_for() {
    let place = Place::golden();
    let logs = format!("runs/{}/logs", place.run);
    place.write(
        &format!("{logs}/cpu-0-1-aa-000000.jsonl"),
        b"[3,\"a\",-1,1,\"stdout\",\"three\"]\n[4,\"b\",0,1,\"stderr\",\"x\"]\n",
    );
    place.write(
        &format!("{logs}/cpu-1-1-bb-000000.jsonl"),
        b"[1,\"a\",-1,1,\"stdout\",\"one\"]\n[2,\"a\",-1,2,\"stdout\",\"two\"]\n",
    );
    place.write(&format!("{logs}/.tmp-1-x"), b"half a line");
    let reader = place.reader().await;
    let texts = |logs: store::Logs| logs.lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
    let only_a = LogFilter { step: Some("a".into()), ..LogFilter::default() };
    assert_eq!(texts(reader.logs(&place.run, &only_a, 100).await.unwrap()), ["one", "two", "three"]);
    let attempt = LogFilter { attempt: Some(2), ..only_a };
    assert_eq!(texts(reader.logs(&place.run, &attempt, 100).await.unwrap()), ["two"]);
    let all = reader.logs(&place.run, &LogFilter::default(), 3).await.unwrap();
    assert_eq!((all.lines.len(), all.omitted, all.unreadable), (3, 1, 0));
    assert!(reader.logs("no-such-run", &LogFilter::default(), 3).await.unwrap().lines.is_empty());
}

#[tokio::test]
async fn earlier_runs_are_found_by_their_marks_and_bounded_by_what_is_there() {
    let place = Place::golden();
    let short = |text: &str| hex::encode(&Sha256::digest(text)[..8]);
    let mark = |left: &str, name: &str, uid: &str| {
        place.write(&format!("pipelines/{}/{left}-{}-{uid}", short("flow"), short(name)), b"");
    };
    mark("0000000000002", "nightly", &place.run);
    mark("0000000000001", "newer", "not-there");
    let reader = place.reader().await;
    let found = reader.earlier("flow", None).await.unwrap();
    assert_eq!(found.len(), 1, "one without a journal is left out");
    let run = &found[0];
    assert_eq!((run.uid.as_str(), run.removed), (place.run.as_str(), None));
    let order = run.folded.in_order();
    assert_eq!(order.len(), run.folded.committed.len());
    let stored: Vec<_> = run.folded.committed.iter().filter(|(_, done)| done.handle.bytes.is_none()).collect();
    assert!(!stored.is_empty() && stored.len() < order.len());
    assert_eq!(run.gone, stored.iter().map(|(task, _)| **task).collect::<Vec<_>>(), "no object is there");
    for (_, done) in &stored {
        let path = done.handle.path.as_ref().unwrap();
        let key = path.strip_prefix('/').map_or_else(|| format!("runs/{}/{path}", place.run), str::to_owned);
        place.write(&key, &vec![0; done.handle.size as usize]);
    }
    let gone = reader.earlier("flow", None).await.unwrap().remove(0).gone;
    let elsewhere = |path: &Option<String>| path.as_ref().is_some_and(|path| path.starts_with('/'));
    let here = stored.iter().filter(|(_, done)| !elsewhere(&done.handle.path)).map(|(task, _)| *task);
    assert!(here.into_iter().all(|task| !gone.contains(task)), "{gone:?}");
    for (wanted, count) in [("nightly", 1), (place.run.as_str(), 1), ("newer", 0), ("nobody", 0)] {
        assert_eq!(reader.earlier("flow", Some(wanted)).await.unwrap().len(), count, "{wanted}");
    }
    assert!(reader.earlier("other", None).await.unwrap().is_empty());
    place.write(&format!("runs/{}/removed/outputs", place.run), b"{\"t\": 7.0}");
    let cleared = &reader.earlier("flow", None).await.unwrap()[0];
    assert_eq!((cleared.removed, cleared.folded.committed.len()), (Some(7.0), 0));
}

#[tokio::test]
async fn an_object_has_the_version_that_the_runtime_notes() {
    let place = Place::golden();
    place.write("in/a b.json", b"12345");
    let folder = place.folder.path();
    let file = std::fs::File::options().write(true).open(folder.join("in/a b.json")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1, 2)).unwrap();
    let url = format!("file://{}", folder.display());
    let objects = Objects::new(StorageConfig { url: url.clone(), ..StorageConfig::default() }, BTreeMap::new());
    let paths = ["in/a b.json", &format!("{url}/in/a%20b.json"), "in/none", "in", "../x"].map(str::to_owned);
    let found = objects.versions(&paths).await;
    for found in &found[..2] {
        // `f"{st_mtime_ns:x}-{st_size:x}"`
        assert_eq!(found.as_ref().unwrap().as_deref(), Some("3b9aca02-5"));
    }
    assert_eq!(found[2].as_ref().unwrap(), &None);
    for (at, part) in [(3, "\"in\""), (4, "\"..\"")] {
        let error = found[at].as_ref().unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidKey);
        assert_eq!(error.to_string(), format!("{part} is not allowed as a part of a key"));
    }
}
