//! Which objects of a run are removed when their time is over, and which are kept because others use them. Decisions
//! only; see [`sweep`](super::sweep) for how they are carried out.

use std::collections::{BTreeMap, BTreeSet};

use dask::ops::User;

/// Who uses objects of one run: references that were seen, and what their runs need.
#[derive(Debug, Default)]
pub(super) struct Users {
    seen: BTreeSet<String>,
    known: BTreeMap<String, Known>,
    /// What those need whose own outputs are not removed.
    paths: BTreeSet<String>,
    bytes: usize,
}

/// A run that uses objects.
#[derive(Debug)]
struct Known {
    removed: bool,
    closed: bool,
    name: String,
    needs_any: bool,
}

/// A run that has not ended, and may still take over what nobody knows of yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InUse {
    pub uid: String,
    pub name: String,
}

impl Users {
    /// The runs to ask about after the references were listed. If there is none, all are known: of each what it needs was
    /// found out before a list that had nothing new, so that nothing was taken over from it unseen.
    pub fn ask(&mut self, references: Vec<String>) -> Vec<String> {
        let new = references.into_iter().filter(|name| self.seen.insert(name.clone()));
        let runs: BTreeSet<String> = new.map(|name| run_of(&name).to_owned()).collect();
        runs.into_iter().collect()
    }

    /// What a run needs.
    pub fn tell(&mut self, run: String, user: User) {
        let User { removed, closed, mut name, paths } = user;
        limits::clip(&mut name, limits::WORD);
        self.known.insert(run, Known { removed, closed, name, needs_any: !paths.is_empty() });
        for path in paths.into_iter().filter(|_| !removed) {
            let bytes = path.len();
            if self.paths.insert(path) {
                self.bytes += bytes;
            }
        }
    }

    /// Bytes of names that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes + self.seen.iter().map(String::len).sum::<usize>()
    }

    /// The objects that stay, relative to the run's folder; or who has to end first.
    pub fn needed(&self) -> Result<BTreeSet<&str>, InUse> {
        let mut users = self.known.iter().filter(|(_, user)| !user.removed);
        if let Some((uid, user)) = users.find(|(_, user)| !user.closed) {
            return Err(InUse { uid: uid.clone(), name: user.name.clone() });
        }
        Ok(self.paths.iter().map(String::as_str).collect())
    }

    /// References that mean nothing any more, relative to the run's folder.
    pub fn spent(&self) -> Vec<String> {
        let needs_nothing = |user: &Known| user.removed || (user.closed && !user.needs_any);
        let spent = self.seen.iter().filter(|name| self.known.get(run_of(name)).is_some_and(needs_nothing));
        spent.map(|name| format!("refs/{name}")).collect()
    }
}

fn run_of(reference: &str) -> &str {
    reference.split('/').next().unwrap_or(reference)
}

/// Of the listed objects those that go, and how many stay.
pub(super) fn split(listed: Vec<String>, needed: &BTreeSet<&str>) -> (Vec<String>, u64) {
    let before = listed.len();
    let go: Vec<String> = listed.into_iter().filter(|path| !needed.contains(path.as_str())).collect();
    let stay = before - go.len();
    (go, stay as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(removed: bool, closed: bool, paths: &[&str]) -> User {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        User { removed, closed, name: "later".to_owned(), paths }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_an_ended_run_has_taken_over_stays_as_long_as_its_record_needs_it() {
        let mut users = Users::default();
        assert_eq!(users.ask(names(&["x/1", "x/2", "gone/1", "idle/1"])), ["gone", "idle", "x"]);
        users.tell("x".into(), user(false, true, &["data/0/a", "data/1/b"]));
        users.tell("gone".into(), user(true, true, &["data/0/c"]));
        users.tell("idle".into(), user(false, true, &[]));
        let needed = users.needed().unwrap();
        let (go, stay) = split(names(&["data/0/a", "data/0/c", "data/1/b", "data/2/d"]), &needed);
        assert_eq!((go, stay), (names(&["data/0/c", "data/2/d"]), 2));
        assert_eq!(users.spent(), ["refs/gone/1", "refs/idle/1"]);
    }

    #[test]
    fn nothing_goes_while_a_run_that_refers_to_it_has_not_ended() {
        let mut users = Users::default();
        users.ask(names(&["live/1"]));
        users.tell("live".into(), user(false, false, &["data/0/a"]));
        assert_eq!(users.needed(), Err(InUse { uid: "live".into(), name: "later".into() }));
        assert!(users.spent().is_empty());
    }

    #[test]
    fn a_reference_that_came_while_users_were_looked_at_is_looked_at_too() {
        let mut users = Users::default();
        assert_eq!(users.ask(names(&["x/1"])), ["x"]);
        users.tell("x".into(), user(false, true, &["data/0/a"]));
        // It was opened again meanwhile, and has taken more.
        assert_eq!(users.ask(names(&["x/1", "x/2", "y/1"])), ["x", "y"]);
        users.tell("x".into(), user(false, true, &["data/0/a", "data/0/b"]));
        users.tell("y".into(), user(true, true, &[]));
        assert!(users.ask(names(&["x/1", "x/2", "y/1"])).is_empty());
        assert_eq!(users.needed().unwrap().len(), 2);
    }
}
