//! The certificates of clusters: made, renewed and taken away with them.
//!
//! The key of a cluster's authority is kept in the operator's own namespace, where no tenant can read it; what scheduler,
//! workers and people's clients show is kept beside the cluster. Secrets are read and written by their exact names, never
//! listed or watched: so the uids of the clusters that have an authority stand in a ConfigMap of the operator's.

mod authorities;

use api::reason::Reason;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::authorities::Authorities;
use crate::cause::cause;
use api::cluster::{ClusterTls, TlsMode};
use dask::Tls;
use decide::cluster::facts::{Cluster, Issue, TlsFact};
use decide::cluster::names;
use tls::{Authority, Identity, Subject, is_due};

const CA: &str = "ca.crt";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA_KEY: &str = "ca.key";
/// The authority that will follow, and the one before, while both are to be trusted.
const NEXT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const OLD: &str = "old.crt";

/// Annotations of an authority's Secret: where its cluster is.
pub(crate) const NAMESPACE: &str = "daskade.dev/cluster-namespace";
/// And its name.
pub(crate) const NAME: &str = "daskade.dev/cluster-name";

/// Of so many looks at a cluster's Secrets one is also about that of its authority, which nobody but the operator uses.
const LOOKS: u32 = 5;

/// Why certificates could not be had; reads after "failed to".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request about a Secret failed.
    #[error("{verb} Secret {name}: {}", cause(source))]
    Api {
        /// What was tried.
        verb: &'static str,
        /// The Secret.
        name: String,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// A cluster could not be looked at.
    #[error("read DaskCluster {name}: {}", cause(source))]
    Cluster {
        /// Its name.
        name: String,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// A certificate could not be made or read.
    #[error("{0}")]
    Tls(#[from] tls::Error),
    /// What a cluster's Secret holds cannot be used.
    #[error("use the certificates of the cluster: {0}")]
    Client(String),
}

impl Error {
    /// What was tried.
    pub fn what(&self) -> String {
        match self {
            Self::Api { verb, name, .. } => format!("{verb} Secret {name}"),
            Self::Cluster { name, .. } => format!("read DaskCluster {name}"),
            other => other.to_string(),
        }
    }

    /// The API server's part in it.
    pub fn api(&self) -> Option<&kube::Error> {
        match self {
            Self::Api { source, .. } | Self::Cluster { source, .. } => Some(source),
            Self::Tls(_) | Self::Client(_) => None,
        }
    }
}

/// What the operator needs to speak to a cluster, and what its pods should show.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The operator's own identity; none without TLS, or when there are no certificates (see `fact.issue`).
    pub client: Option<Tls>,
    /// What the status says of them.
    pub fact: TlsFact,
    /// When to look again.
    pub renew_after: Option<Duration>,
}

/// The Secret of one role.
enum Leaf {
    Made(Identity),
    /// Sound and young, with its resource version.
    Kept(Identity, Option<String>),
    /// Something that is not the cluster's has its name.
    Taken(Issue),
}

/// Settings of all certificates.
#[derive(Debug, Clone)]
pub struct CertificateSettings {
    /// Where the authorities are kept.
    pub operator_namespace: String,
    /// Life of what scheduler, workers and clients show.
    pub lifetime: Duration,
    /// Life of an authority.
    pub ca_lifetime: Duration,
}

/// The certificates of all clusters.
pub struct Certificates {
    pub(crate) client: Client,
    pub(crate) settings: CertificateSettings,
    known: Mutex<Memory>,
    pub(crate) authorities: Authorities,
}

/// What is remembered, so that a reconciliation in which nothing is due makes no request.
#[derive(Default)]
struct Memory {
    /// By the uid of the cluster.
    clusters: HashMap<String, Known>,
    /// How often all was forgotten. What was found out before that must not come in afterwards.
    term: u64,
}

#[derive(Clone, Default)]
struct Known {
    chain: Option<Chain>,
    /// What was last given for these settings of the cluster, and until when it need not be looked at.
    given: Option<(ClusterTls, Credentials, Timestamp)>,
    /// The Secrets that this is about, by name, with the versions in which they were found sound.
    seen: BTreeMap<String, String>,
    /// The version of the authority's Secret.
    stored: Option<String>,
    /// How often the Secrets were looked at.
    looks: u32,
}

/// A cluster's authority: the one that signs, and those that are trusted besides.
#[derive(Clone)]
struct Chain {
    current: Authority,
    next: Option<Authority>,
    old: Option<String>,
}

impl Chain {
    /// All that is trusted, in one text.
    fn bundle(&self, now: Timestamp) -> String {
        let lives = |pem: &&String| tls::facts(pem).is_ok_and(|facts| facts.expires > now);
        let signers = [Some(&self.current), self.next.as_ref()].into_iter().flatten();
        let trusted = signers.map(|signer| &signer.identity().cert).chain(self.old.iter().filter(lives));
        // What was read has no line break at its end, and each begins on a line of its own.
        trusted.flat_map(|pem| [pem.trim(), "\n"]).collect()
    }
}

impl Certificates {
    /// Nothing is known yet.
    pub fn new(client: Client, settings: CertificateSettings) -> Certificates {
        let authorities = Authorities::new(client.clone(), &settings.operator_namespace);
        Certificates { client, settings, known: Mutex::default(), authorities }
    }

    /// Sees to it that the certificates of a cluster are there and hold; makes and renews them as needed. Without `check`
    /// no Secret is read while nothing is due, so that one that somebody has deleted is missed until a reconciliation with it.
    pub async fn ensure(&self, cluster: &Cluster, now: Timestamp, check: bool) -> Result<Credentials, Error> {
        let tls = cluster.spec.tls.clone().unwrap_or_default();
        let (given, term) = {
            let memory = self.lock();
            (memory.clusters.get(&cluster.uid).and_then(|known| known.given.clone()), memory.term)
        };
        if let Some((for_tls, credentials, until)) = given
            && for_tls == tls
            && now < until
            && (!check || self.are_as_seen(cluster).await?)
        {
            return Ok(credentials);
        }
        let credentials = match (tls.mode.unwrap_or_default(), &tls.secret_ref) {
            (TlsMode::Disabled, _) => return Ok(Credentials::default()),
            (TlsMode::Secret, Some(name)) => {
                self.of_secret(&cluster.namespace, name, "spec.tls.secretRef", now).await?
            }
            (TlsMode::Secret, None) => return Ok(missing("spec.tls.secretRef names no Secret".to_owned())),
            (TlsMode::Auto, _) => self.own(cluster, now, term).await?,
        };
        self.remember(term, &cluster.uid, |known| {
            known.given = credentials.renew_after.map(|after| {
                let until = SignedDuration::try_from(after).ok().and_then(|after| now.checked_add(after).ok());
                (tls, credentials.clone(), until.unwrap_or(now))
            });
        });
        Ok(credentials)
    }

    /// Whether the Secrets of a cluster are those that were found sound. Only their metadata is read: with many clusters
    /// this is most of what an operator at rest does.
    async fn are_as_seen(&self, cluster: &Cluster) -> Result<bool, Error> {
        let (seen, stored) = {
            let mut memory = self.lock();
            let Some(known) = memory.clusters.get_mut(&cluster.uid) else { return Ok(false) };
            let look = known.looks;
            known.looks = look.wrapping_add(1);
            (known.seen.clone(), known.stored.clone().filter(|_| look.is_multiple_of(LOOKS)))
        };
        for (name, version) in &seen {
            if self.version(&cluster.namespace, name).await?.as_ref() != Some(version) {
                return Ok(false);
            }
        }
        if let Some(stored) = stored {
            let name = names::authority_secret(&cluster.uid);
            if self.version(&self.settings.operator_namespace, &name).await?.as_ref() != Some(&stored) {
                return Ok(false);
            }
        }
        Ok(!seen.is_empty())
    }

    /// The version of a Secret; none if there is no such Secret.
    async fn version(&self, namespace: &str, name: &str) -> Result<Option<String>, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_metadata_opt(name).await.map_err(|source| Error::Api {
            verb: "read",
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        Ok(found.and_then(|found| found.metadata.resource_version))
    }

    /// Forgets everything: another process may lead, and change it.
    pub fn clear(&self) {
        let mut memory = self.lock();
        memory.clusters.clear();
        memory.term += 1;
    }

    /// Notes something of a cluster, unless all was forgotten since `term`.
    fn remember(&self, term: u64, uid: &str, note: impl FnOnce(&mut Known)) {
        let mut memory = self.lock();
        if memory.term == term {
            note(memory.clusters.entry(uid.to_owned()).or_default());
        }
    }

    /// Forgets a cluster.
    pub(crate) fn drop_known(&self, uid: &str) {
        self.lock().clusters.remove(uid);
    }

    /// The user's own, in a Secret that an object names in `field`.
    pub async fn of_secret(
        &self,
        namespace: &str,
        name: &str,
        field: &str,
        now: Timestamp,
    ) -> Result<Credentials, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let Some(secret) = get(&api, name).await? else {
            return Ok(missing(format!(
                "the Secret {name} ({field}) does not exist; make it with {CA}, {CERT} and {KEY}"
            )));
        };
        let absent: Vec<&str> = [CA, CERT, KEY].into_iter().filter(|key| text(&secret, key).is_none()).collect();
        if !absent.is_empty() {
            return Ok(missing(format!("the Secret {name} ({field}) lacks {}", absent.join(", "))));
        }
        let value = |key: &str| text(&secret, key).unwrap_or_default();
        let identity = Identity { cert: value(CERT), key: value(KEY) };
        let fact = match (identity.facts(), tls::facts(&value(CA))) {
            (Ok(leaf), Ok(ca)) if leaf.expires > now && identity.matches() => TlsFact {
                fingerprint: Some(leaf.fingerprint),
                ca_fingerprint: Some(ca.fingerprint),
                expires: Some(leaf.expires),
                issue: None,
            },
            (Ok(leaf), Ok(_)) if leaf.expires <= now => {
                return Ok(invalid(format!("the certificate in the Secret {name} expired on {}", leaf.expires)));
            }
            (Ok(_), Ok(_)) => return Ok(invalid(format!("{KEY} in the Secret {name} is not the key of {CERT}"))),
            _ => return Ok(invalid(format!("{CA} or {CERT} in the Secret {name} is no certificate in PEM form"))),
        };
        let client = match client(&value(CA), &identity) {
            Ok(client) => client,
            Err(error) => {
                let old = error.to_string().contains("UnsupportedCertVersion");
                let help = if old { "; make it with X.509 version 3, which extensions need" } else { "" };
                return Ok(invalid(format!("the certificates in the Secret {name} do not serve: {error}{help}")));
            }
        };
        let left = Duration::from_secs((fact.expires.unwrap_or(now) - now).get_seconds().max(1).unsigned_abs());
        Ok(Credentials { client: Some(client), fact, renew_after: Some(left) })
    }

    /// Issued by the operator.
    async fn own(&self, cluster: &Cluster, now: Timestamp, term: u64) -> Result<Credentials, Error> {
        self.remember(term, &cluster.uid, |known| known.seen.clear());
        let mut seen = BTreeMap::new();
        let chain = self.chain(cluster, now, term).await?;
        let service = names::scheduler(&cluster.name);
        let hosts = ["", ".svc", ".svc.cluster.local"].map(|end| format!("{service}.{}{end}", cluster.namespace));
        let hosts = [vec![service], hosts.into()].concat();
        let pods = Subject { name: format!("{}.{}", cluster.name, cluster.namespace), hosts, addresses: Vec::new() };
        let people = Subject { name: format!("client of {}", pods.name), ..Subject::default() };
        let secret = names::tls_secret(&cluster.name);
        let shown = match self.leaf(cluster, (&secret, &pods), &chain, now).await? {
            Leaf::Made(identity) => identity,
            Leaf::Kept(identity, version) => {
                seen.extend(version.map(|version| (secret, version)));
                identity
            }
            Leaf::Taken(issue) => return Ok(without(issue)),
        };
        let secret = names::client_secret(&cluster.name);
        match self.leaf(cluster, (&secret, &people), &chain, now).await? {
            Leaf::Made(_) => {}
            Leaf::Kept(_, version) => seen.extend(version.map(|version| (secret, version))),
            Leaf::Taken(issue) => return Ok(without(issue)),
        }
        // One that was just made is looked at once more, as it was stored.
        if seen.len() == 2 {
            self.remember(term, &cluster.uid, |known| known.seen = seen);
        }
        let facts = shown.facts()?;
        let own = Subject { name: "daskade operator".to_owned(), ..Subject::default() };
        let identity = chain.current.issue(&own, now, self.settings.lifetime)?;
        let half = Duration::from_secs((facts.expires - now).get_seconds().max(2).unsigned_abs() / 2);
        Ok(Credentials {
            client: Some(client(&chain.bundle(now), &identity)?),
            fact: TlsFact {
                fingerprint: Some(facts.fingerprint),
                ca_fingerprint: Some(chain.current.facts()?.fingerprint),
                expires: Some(facts.expires),
                issue: None,
            },
            renew_after: Some(half.min(self.settings.lifetime / 4)),
        })
    }

    /// The Secret of one role: kept while it is sound and young, made anew otherwise. A Secret of that name that is not
    /// this cluster's is never touched.
    async fn leaf(
        &self,
        cluster: &Cluster,
        (name, subject): (&str, &Subject),
        chain: &Chain,
        now: Timestamp,
    ) -> Result<Leaf, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &cluster.namespace);
        let bundle = chain.bundle(now);
        let found = get(&api, name).await?;
        if let Some(secret) = &found {
            if !secret.owner_references().iter().any(|owner| owner.uid == cluster.uid) {
                let message = format!(
                    "the Secret {name} is not this cluster's and is not touched; rename or delete it, or give the cluster \
                     another name"
                );
                return Ok(Leaf::Taken(Issue::new(Reason::NameConflict, message)));
            }
            let value = |key: &str| text(secret, key).unwrap_or_default();
            let identity = Identity { cert: value(CERT), key: value(KEY) };
            let young = identity.facts().is_ok_and(|facts| !is_due(&facts, now));
            let sound = young && identity.matches() && chain.current.issued(&identity.cert);
            if sound && value(CA) == bundle.trim() {
                return Ok(Leaf::Kept(identity, secret.resource_version()));
            }
        }
        let identity = chain.current.issue(subject, now, self.settings.lifetime)?;
        let data = [(CA, bundle.trim()), (CERT, identity.cert.trim()), (KEY, identity.key.trim())];
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {
                "name": name,
                "labels": names::labels(&cluster.name, "certificates"),
                "ownerReferences": [{
                    "apiVersion": "daskade.dev/v1alpha1", "kind": "DaskCluster", "name": cluster.name,
                    "uid": cluster.uid, "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "data": encoded(&data),
        });
        match found {
            Some(_) => drop(apply(&api, name, &secret).await?),
            None => drop(create(&api, name, secret).await?),
        }
        Ok(Leaf::Made(identity))
    }

    /// The authority of a cluster: read, made, or followed by another at half of its life. A new one is trusted by all before
    /// it signs anything, and the one before is trusted until all that it signed has expired. What is stored counts; what is
    /// remembered is stored again if somebody has deleted it, since all that runs trusts it.
    async fn chain(&self, cluster: &Cluster, now: Timestamp, term: u64) -> Result<Chain, Error> {
        let known = self.lock().clusters.get(&cluster.uid).and_then(|known| known.chain.clone());
        let (mut chain, mut changed) = match (self.stored(&cluster.uid).await?, known) {
            (Some((chain, version)), _) => {
                self.remember(term, &cluster.uid, |known| known.stored = Some(version));
                (chain, false)
            }
            (None, Some(chain)) => {
                tracing::warn!(
                    uid = cluster.uid,
                    "the Secret with the cluster's certificate authority was deleted or changed; storing it again"
                );
                self.note(&cluster.uid, true).await?;
                (chain, true)
            }
            (None, None) => {
                self.note(&cluster.uid, true).await?;
                let current = Authority::new(&authority_name(cluster), now, self.settings.ca_lifetime)?;
                (Chain { current, next: None, old: None }, true)
            }
        };
        let facts = chain.current.facts()?;
        match chain.next.take() {
            None if is_due(&facts, now) => {
                chain.next = Some(Authority::new(&authority_name(cluster), now, self.settings.ca_lifetime)?);
                changed = true;
            }
            // By then every pod has read the Secret that names both.
            Some(next) if self.is_trusted(&next, now)? => {
                chain.old = Some(chain.current.identity().cert.clone());
                chain.current = next;
                changed = true;
            }
            next => chain.next = next,
        }
        if changed {
            let version = self.store(cluster, &chain).await?;
            self.remember(term, &cluster.uid, |known| known.stored = version);
        }
        self.remember(term, &cluster.uid, |known| known.chain = Some(chain.clone()));
        Ok(chain)
    }

    /// Whether an authority was there long enough to be trusted everywhere.
    fn is_trusted(&self, next: &Authority, now: Timestamp) -> Result<bool, Error> {
        let wait = OVERLAP + self.settings.lifetime / 2;
        Ok(now.as_second() >= next.facts()?.begins.as_second().saturating_add_unsigned(wait.as_secs()))
    }

    /// What is stored, and its version; none if it cannot be used.
    async fn stored(&self, uid: &str) -> Result<Option<(Chain, String)>, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.operator_namespace);
        let Some(secret) = get(&api, &names::authority_secret(uid)).await? else { return Ok(None) };
        let authority = |cert: &str, key: &str| {
            let identity = Identity { cert: text(&secret, cert)?, key: text(&secret, key)? };
            Authority::from_identity(identity).ok()
        };
        let Some(current) = authority(CA, CA_KEY) else {
            tracing::warn!(uid, "cannot read the stored certificate authority of a cluster; replacing it");
            return Ok(None);
        };
        let chain = Chain { current, next: authority(NEXT, NEXT_KEY), old: text(&secret, OLD) };
        Ok(Some((chain, secret.resource_version().unwrap_or_default())))
    }

    /// Gives the version.
    async fn store(&self, cluster: &Cluster, chain: &Chain) -> Result<Option<String>, Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.operator_namespace);
        let name = names::authority_secret(&cluster.uid);
        let current = chain.current.identity();
        let mut data = vec![(CA, current.cert.trim()), (CA_KEY, current.key.trim())];
        if let Some(next) = &chain.next {
            data.extend([(NEXT, next.identity().cert.trim()), (NEXT_KEY, next.identity().key.trim())]);
        }
        data.extend(chain.old.iter().map(|old| (OLD, old.trim())));
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": name,
                "labels": {
                    "app.kubernetes.io/name": "daskade", names::MANAGED_BY.0: names::MANAGED_BY.1,
                    "daskade.dev/authority-of": cluster.uid,
                },
                "annotations": {
                    NAMESPACE: cluster.namespace, NAME: cluster.name,
                },
            },
            "data": encoded(&data),
        });
        if chain.next.is_none() && chain.old.is_none() {
            // The first of a cluster, unless one that could not be read is in its place.
            match create(&api, &name, secret.clone()).await {
                Err(Error::Api { source, .. }) if is_conflict(&source) => {}
                answer => return answer,
            }
        }
        apply(&api, &name, &secret).await
    }

    /// Writes down, before it is made, that a cluster has an authority; or that it has none any more.
    pub(crate) async fn note(&self, uid: &str, there: bool) -> Result<(), Error> {
        self.authorities.note(uid, there).await.map_err(|source| about_list("write", source))
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Memory> {
        // Entries are replaced as a whole.
        self.known.lock()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates")
    }
}

/// A new authority is trusted everywhere this long (and half of a certificate's life) before it signs. What it is
/// backdated by is part of it.
const OVERLAP: Duration = Duration::from_secs(300);

pub(crate) fn about_list(verb: &'static str, source: kube::Error) -> Error {
    Error::Api { verb, name: authorities::NAME.to_owned(), source: Box::new(source) }
}

fn authority_name(cluster: &Cluster) -> String {
    format!("daskade {}.{}", cluster.name, cluster.namespace)
}

pub(crate) async fn get(api: &Api<Secret>, name: &str) -> Result<Option<Secret>, Error> {
    api.get_opt(name).await.map_err(|source| Error::Api {
        verb: "read",
        name: name.to_owned(),
        source: Box::new(source),
    })
}

/// Cheaper than to apply it; what is put into it later has the same keys.
async fn create(api: &Api<Secret>, name: &str, secret: Value) -> Result<Option<String>, Error> {
    let failed = |source| Error::Api { verb: "write", name: name.to_owned(), source: Box::new(source) };
    let secret: Secret = serde_json::from_value(secret).map_err(|error| failed(kube::Error::SerdeError(error)))?;
    let params = PostParams { field_manager: Some(names::MANAGER.to_owned()), ..PostParams::default() };
    api.create(&params, &secret).await.map(|made| made.resource_version()).map_err(failed)
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists")
}

async fn apply(api: &Api<Secret>, name: &str, secret: &Value) -> Result<Option<String>, Error> {
    let params = PatchParams::apply(names::MANAGER).force();
    let applied = api.patch(name, &params, &Patch::Apply(secret)).await;
    let failed = |source| Error::Api { verb: "write", name: name.to_owned(), source: Box::new(source) };
    applied.map(|applied| applied.resource_version()).map_err(failed)
}

/// The text of a key without white space around it; none if there is none.
fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(key)?.0;
    let text = std::str::from_utf8(bytes).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn encoded(data: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
    data.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect()
}

fn client(ca: &str, identity: &Identity) -> Result<Tls, Error> {
    Tls::from_pem(ca.as_bytes(), identity.cert.as_bytes(), identity.key.as_bytes())
        .map_err(|error| Error::Client(error.to_string()))
}

fn missing(message: String) -> Credentials {
    without(Issue::new(Reason::SecretNotFound, message))
}

fn invalid(message: String) -> Credentials {
    without(Issue::new(Reason::InvalidCertificates, message))
}

fn without(issue: Issue) -> Credentials {
    Credentials { client: None, fact: TlsFact { issue: Some(issue), ..TlsFact::default() }, renew_after: None }
}
