//! The pages of a snapshot, one after the other.

use dask::Peer;
use dask::ops::{NextPage, Opened, Operation, Snapshot};

use run_model::report::{Report, read_closing};
use store::Parts;

/// A snapshot as it comes.
pub(super) struct Pages<'a> {
    peer: &'a Peer,
    run: &'a str,
    first: Option<Snapshot>,
    token: Option<String>,
    page: u64,
}

impl<'a> Pages<'a> {
    /// Of a run that was opened.
    pub fn new(peer: &'a Peer, run: &'a str, opened: &mut Opened) -> Self {
        let first = Some(std::mem::take(&mut opened.snapshot));
        Self { peer, run, first, token: opened.more.take(), page: 0 }
    }

    /// Whether the run has ended.
    pub fn is_closed(&self) -> bool {
        self.first.as_ref().is_some_and(|first| first.closed.is_some())
    }

    /// How the run ended, if it has.
    pub async fn closing(&mut self) -> Result<Option<Report>, dask::Error> {
        let Some(closed) = self.first.as_mut().and_then(|first| first.closed.take()) else { return Ok(None) };
        let (mut closed, mut parts) = (closed, Parts::within(limits::CLOSING_VALUES));
        while let Some(page) = self.next().await? {
            for part in page.results {
                parts.add(part.name, part.index, part.count, &part.text);
            }
        }
        parts.put_into(&mut closed);
        Ok(read_closing(&closed))
    }

    /// The next page; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Snapshot>, dask::Error> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Some(token) = self.token.take() else { return Ok(None) };
        self.page += 1;
        if self.page > limits::PAGES as u64 {
            let reason = format!("the snapshot has more than {} pages", limits::PAGES);
            return Err(dask::Error::excess(NextPage::OP, reason));
        }
        let next = self.peer.call(&NextPage { run: self.run, token: &token, page: self.page }).await?;
        self.token = next.more;
        Ok(Some(next.snapshot))
    }
}
