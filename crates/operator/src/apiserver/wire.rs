//! Answers of the API server, read piece by piece: before more of one is taken there is room for it. The client's own way has
//! each answer in memory three times, however large it is.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use kube::Client;
use kube::core::Status;
use tokio::time::timeout;

use crate::apiserver::room::{self, Held};

/// Longest pause in the middle of something that others wait for room for.
const PAUSE: Duration = Duration::from_secs(20);
/// Bytes of a line for which no room is needed, and of a buffer that is kept.
const FREE: usize = limits::FREE_BYTES;
/// Room for a line that is longer.
const LINE: usize = limits::LISTED_AT_ONCE / 4;
/// Bytes of an answer that says what went wrong.
const REFUSAL: usize = 64 << 10;

/// An answer that has begun.
pub(crate) struct Answer {
    stream: BodyDataStream,
}

/// Asks; an answer that is an error is one here.
pub(crate) async fn ask(client: &Client, request: Request<Vec<u8>>) -> Result<Answer, kube::Error> {
    let answer = client.send(request.map(kube::client::Body::from)).await?;
    let status = answer.status();
    let mut answer = Answer { stream: Body::new(answer.into_body()).into_data_stream() };
    if status.is_client_error() || status.is_server_error() {
        let told = answer.read(REFUSAL).await?.unwrap_or_default();
        return Err(kube::Error::Api(Box::new(refusal(status, &told))));
    }
    Ok(answer)
}

/// The whole text of an answer with one object.
pub(crate) async fn text(client: &Client, request: Request<Vec<u8>>) -> Result<String, kube::Error> {
    let read = ask(client, request).await?.read(limits::OBJECT).await?;
    let bytes = read.ok_or_else(|| broken(format!("the answer has more than {} bytes", limits::OBJECT)))?;
    String::from_utf8(bytes).map_err(kube::Error::FromUtf8)
}

fn refusal(status: StatusCode, told: &[u8]) -> Status {
    // A proxy may answer with something else.
    let words = || Status::failure(String::from_utf8_lossy(told).trim(), "Failed to parse error data");
    serde_json::from_slice(told).unwrap_or_else(|_| words().with_code(status.as_u16()))
}

fn broken(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> kube::Error {
    kube::Error::ReadEvents(std::io::Error::other(why))
}

impl Answer {
    /// All of it; none if it has more than `most` bytes, of which the rest is not read then.
    pub async fn read(&mut self, most: usize) -> Result<Option<Vec<u8>>, kube::Error> {
        let mut all = Vec::new();
        loop {
            let Ok(piece) = timeout(PAUSE, self.next()).await else {
                return Err(broken("the answer stopped in the middle"));
            };
            let Some(piece) = piece? else { return Ok(Some(all)) };
            if all.len() + piece.len() > most {
                return Ok(None);
            }
            all.extend_from_slice(&piece);
        }
    }

    pub fn lines(self) -> Lines {
        Lines { answer: self, buffer: Vec::new(), start: 0, scanned: 0, room: None }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, kube::Error> {
        self.stream.next().await.transpose().map_err(|error| broken(error.into_inner()))
    }
}

/// The lines of an answer that goes on.
pub(crate) struct Lines {
    answer: Answer,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where there is no end of it.
    scanned: usize,
    /// Of a long line.
    room: Option<Held>,
}

impl Lines {
    /// What `read` makes of the next line; none at the end, and none of a line that has no end.
    pub async fn next<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, kube::Error> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let end = self.scanned + at;
                let made = read(&self.buffer[self.start..end]);
                (self.start, self.scanned) = (end + 1, end + 1);
                self.tidy();
                return Ok(Some(made));
            }
            self.scanned = self.buffer.len();
            let length = self.buffer.len() - self.start;
            if length > limits::OBJECT {
                return Err(broken(format!("a line has more than {} bytes", limits::OBJECT)));
            }
            if self.room.is_none() && length > FREE {
                self.room = Some(room::listed(LINE).await);
            }
            let piece = match self.room {
                // The watch is opened anew: others wait for that room.
                Some(_) => timeout(PAUSE, self.answer.next()).await.unwrap_or(Ok(None))?,
                None => self.answer.next().await?,
            };
            let Some(piece) = piece else { return Ok(None) };
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
            self.buffer.extend_from_slice(&piece);
        }
    }

    /// Gives back what a long line took.
    fn tidy(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            (self.start, self.scanned) = (0, 0);
            self.buffer.shrink_to(FREE);
        }
        self.room = None;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn answer(pieces: Vec<Vec<u8>>) -> Answer {
        let pieces = pieces.into_iter().map(|piece| Ok::<Bytes, std::io::Error>(piece.into()));
        Answer { stream: Body::from_stream(stream::iter(pieces)).into_data_stream() }
    }

    #[tokio::test]
    async fn lines_come_whole_however_they_are_cut() {
        let long = vec![b'x'; 3 * FREE];
        let text = [b"a\n\nbc\n".as_slice(), &long, b"\nd\nno end"].concat();
        for size in [3, 7, 1000, FREE, text.len()] {
            let mut lines = answer(text.chunks(size).map(<[u8]>::to_vec).collect()).lines();
            let mut found = Vec::new();
            while let Some(line) = lines.next(<[u8]>::to_vec).await.expect("it can be read") {
                found.push(line);
            }
            assert_eq!(found, [b"a".to_vec(), Vec::new(), b"bc".to_vec(), long.clone(), b"d".to_vec()], "{size}");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_long_line() {
        let long = [vec![b'x'; 8 * FREE], b"\n".to_vec()].concat();
        let mut lines = answer(long.chunks(9000).map(<[u8]>::to_vec).collect()).lines();
        assert_eq!(lines.next(<[u8]>::len).await.expect("it can be read"), Some(8 * FREE));
        assert!(lines.buffer.capacity() <= FREE && lines.room.is_none());
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_bound() {
        let pieces = || vec![vec![0; 60], vec![0; 40]];
        let length = |read: Option<Vec<u8>>| read.map(|all| all.len());
        assert_eq!(length(answer(pieces()).read(100).await.expect("it can be read")), Some(100));
        assert_eq!(length(answer(pieces()).read(99).await.expect("it can be read")), None);
    }

    #[test]
    fn a_refusal_that_is_no_status_is_told_in_its_own_words() {
        let told = refusal(StatusCode::BAD_GATEWAY, b" <html>no</html>\n");
        assert_eq!((told.code, told.message.as_str()), (502, "<html>no</html>"));
        let told = refusal(StatusCode::GONE, br#"{"kind":"Status","code":410,"message":"old","reason":"Expired"}"#);
        assert_eq!((told.code, told.message.as_str()), (410, "old"));
    }
}
