//! Where bytes are kept: a location text (`s3://bucket/prefix`, a path, `memory://name`) becomes an object store.
//!
//! Guarantee: a create is atomic, and when a put returns, what it wrote is durable; on local paths that means synced to
//! disk ([`local`]). What it does not promise: that the store is reachable, or that S3 credentials are right. The first
//! call finds out.
//!
//! Uploads of many parts are by id ([`MultipartStore`]) for every kind of store, so that whoever comes after a crash can
//! abort what it finds noted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectMeta, ObjectStore, RetryConfig};
use url::Url;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::sql::options::resolve_environment;

pub mod faults;
pub mod local;
mod way;

use local::{FileLayer, LocalStore, SystemFiles};
use way::RightOfWay;

/// For so long S3 is asked again that refuses connections, fails, or wants less to be asked of it. The time decides, not
/// how often it was asked: such answers come at once.
const ANSWER: Duration = Duration::from_secs(8);

/// The longest pause before it is asked again.
const PAUSE: Duration = Duration::from_secs(1);

/// A place in an object store.
#[derive(Clone)]
pub struct Location {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// The same store's uploads.
    pub uploads: Arc<dyn MultipartStore>,
    /// The place in it.
    pub prefix: Path,
    text: Arc<str>,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({})", self.text)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Location {
    /// The place `name` below this one; `name` may have several segments.
    pub fn join(&self, name: &str) -> Self {
        let segments = name.split('/').filter(|s| !s.is_empty());
        let prefix = segments.fold(self.prefix.clone(), |path, segment| path.join(segment));
        Self { text: format!("{}/{name}", self.text.trim_end_matches('/')).into(), prefix, ..self.clone() }
    }

    /// Removes files that a process which died had staged below this place: those that `is_dead` says yes to, by name,
    /// and that are older than an hour, by the store's own clock. Only local paths have such files.
    pub async fn sweep_staged(&self, is_dead: impl Fn(&str) -> bool) -> Result<()> {
        if self.text.contains("://") {
            return Ok(());
        }
        let found: Vec<ObjectMeta> = self.store.list(Some(&self.prefix)).try_collect().await?;
        let Some(now) = found.iter().map(|meta| meta.last_modified).max() else { return Ok(()) };
        let is_litter = |meta: &&ObjectMeta| {
            let mut parts: Vec<_> = meta.location.parts().collect();
            let name = parts.pop();
            parts.last().is_some_and(|part| part.as_ref() == local::STAGED)
                && now - meta.last_modified > chrono::TimeDelta::hours(1)
                && name.is_some_and(|name| is_dead(name.as_ref()))
        };
        delete_all(&self.store, found.iter().filter(is_litter).map(|meta| meta.location.clone()).collect()).await
    }
}

/// Deletes these; what is not there is fine.
pub async fn delete_all(store: &Arc<dyn ObjectStore>, paths: Vec<Path>) -> Result<()> {
    let mut answers = store.delete_stream(stream::iter(paths.into_iter().map(Ok)).boxed());
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Puts something between the engine and a store: how tests count calls and stop at one of them.
pub trait Wrap: fmt::Debug + Send + Sync {
    /// The location with its store wrapped.
    fn wrap(&self, location: Location) -> Location;
}

/// Opens locations; clones share what is open.
#[derive(Debug, Clone)]
pub struct Stores {
    open: Arc<Open>,
    wrap: Option<Arc<dyn Wrap>>,
}

#[derive(Debug)]
struct Open {
    clock: Clock,
    files: Arc<dyn FileLayer>,
    /// One for all: most likely it is one disk.
    way: Arc<RightOfWay>,
    memory: Mutex<BTreeMap<String, Arc<InMemory>>>,
    s3: Mutex<BTreeMap<String, Arc<AmazonS3>>>,
}

impl Stores {
    /// Stores over the machine's files and the network.
    pub fn new(clock: Clock) -> Self {
        Self::over(clock, Arc::new(SystemFiles))
    }

    /// Stores over another file layer.
    pub fn over(clock: Clock, files: Arc<dyn FileLayer>) -> Self {
        let (way, memory, s3) = (Arc::default(), Mutex::default(), Mutex::default());
        Self { open: Arc::new(Open { clock, files, way, memory, s3 }), wrap: None }
    }

    /// The same stores, with something in between.
    pub fn wrapped(&self, wrap: Arc<dyn Wrap>) -> Self {
        Self { wrap: Some(wrap), ..self.clone() }
    }

    /// The location that `text` names. `settings` are the session's: `s3.*`, and `checkpoint.fsync` = false, which
    /// turns syncing of local files off.
    ///
    /// Errors: a scheme that is not known, a path that is not valid, S3 settings that do not fit together.
    pub fn open(&self, text: &str, settings: &BTreeMap<String, String>) -> Result<Location> {
        let location = match text.split_once("://") {
            Some(("s3" | "s3a", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let store = self.s3(bucket, settings)?;
                location(store, parse(prefix)?, text)
            }
            Some(("memory", rest)) => {
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let mut memory = self.open.memory.lock().unwrap_or_else(PoisonError::into_inner);
                location(Arc::clone(memory.entry(name.into()).or_default()), parse(prefix)?, text)
            }
            Some(("file", path)) => self.local(path, settings)?,
            Some((scheme, _)) => {
                return Err(Error::usage(format!(
                    "'{text}': no store is known for {scheme}://; use a path, file:// or s3://bucket/prefix"
                )));
            }
            None => self.local(text, settings)?,
        };
        Ok(match &self.wrap {
            Some(wrap) => wrap.wrap(location),
            None => location,
        })
    }

    fn local(&self, path: &str, settings: &BTreeMap<String, String>) -> Result<Location> {
        let bad = |e: &dyn fmt::Display| Error::usage(format!("'{path}' is not a usable path: {e}"));
        let absolute = std::path::absolute(path).map_err(|e| bad(&e))?;
        let prefix = Path::from_absolute_path(&absolute).map_err(|e| bad(&e))?;
        let sync = settings.get("checkpoint.fsync").is_none_or(|v| v != "false");
        let (files, way) = (Arc::clone(&self.open.files), Arc::clone(&self.open.way));
        let store = LocalStore::new(files, way, sync, self.open.clock.random());
        Ok(location(Arc::new(store), prefix, &absolute.display().to_string()))
    }

    fn s3(&self, bucket: &str, settings: &BTreeMap<String, String>) -> Result<Arc<AmazonS3>> {
        if bucket.is_empty() {
            return Err(Error::usage("an s3:// location needs a bucket: s3://bucket/prefix"));
        }
        let of = |key: &str| settings.get(key).map(|v| resolve_environment(key, v)).transpose();
        let (endpoint, region) = (of("s3.endpoint")?, of("s3.region")?);
        let (key, secret) = (of("s3.access-key")?, of("s3.secret-key")?);
        let path_style = of("s3.path.style.access")?;
        let identity = format!("{bucket} {endpoint:?} {region:?} {key:?}");
        let mut open = self.open.s3.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&identity) {
            return Ok(Arc::clone(store));
        }
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: PAUSE, ..BackoffConfig::default() },
            max_retries: 100,
            retry_timeout: ANSWER,
        });
        if let Some(endpoint) = endpoint {
            let plain = endpoint.starts_with("http://");
            let virtual_hosted = path_style.as_deref() == Some("false");
            // It wins over all that the environment has of them.
            builder = builder
                .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint)
                .with_allow_http(plain)
                .with_virtual_hosted_style_request(virtual_hosted);
        }
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        if let Some(key) = key {
            builder = builder.with_access_key_id(key);
        }
        if let Some(secret) = secret {
            builder = builder.with_secret_access_key(secret);
        }
        check(&builder)?;
        let store = builder
            .build()
            .map_err(|e| Error::usage(format!("s3://{bucket}: the settings s3.* do not fit together")).caused_by(e))?;
        let store = Arc::new(store);
        open.insert(identity, Arc::clone(&store));
        Ok(store)
    }
}

/// Refuses what `object_store` takes, and panics over when it is first asked something. Values are not shown: some are
/// secret.
fn check(builder: &AmazonS3Builder) -> Result<()> {
    use AmazonS3ConfigKey::{AccessKeyId, Bucket, Endpoint, Region, S3Endpoint, Token};
    let of = |key| builder.get_config_value(&key);
    let endpoint = of(S3Endpoint).or_else(|| of(Endpoint));
    let refusal = if !endpoint.is_none_or(|text| is_address(&text)) {
        "the setting 's3.endpoint' (or AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) is no address; write it as https://host:port"
    } else if !of(Region).is_none_or(|text| is_name(&text)) {
        "the setting 's3.region' (or AWS_REGION) is no region; one is written as us-east-1 is"
    } else if !of(Bucket).is_none_or(|text| is_name(&text)) {
        "an s3:// location has a bucket of letters, digits, '.', '-' and '_': s3://bucket/prefix"
    } else if !of(AccessKeyId).is_none_or(|text| is_plain(&text)) {
        "the setting 's3.access-key' (or AWS_ACCESS_KEY_ID) has a blank, a line break, or a letter that is not ASCII"
    } else if !of(Token).is_none_or(|text| is_plain(&text)) {
        "AWS_SESSION_TOKEN has a blank, a line break, or a letter that is not ASCII"
    } else {
        return Ok(());
    };
    Err(Error::usage(refusal))
}

/// Whether this begins as an address does, and is one.
fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.starts_with('/'))
        && is_plain(text)
        && Url::parse(text).is_ok_and(|url| url.has_host())
}

fn is_name(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_graphic())
}

fn parse(prefix: &str) -> Result<Path> {
    Path::parse(prefix.trim_end_matches('/'))
        .map_err(|e| Error::usage(format!("'{prefix}' is not a usable prefix: {e}")))
}

fn location<S: ObjectStore + MultipartStore>(store: Arc<S>, prefix: Path, text: &str) -> Location {
    let uploads: Arc<dyn MultipartStore> = Arc::<S>::clone(&store);
    Location { store, uploads, prefix, text: text.trim_end_matches('/').into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_s3_that_cannot_be_are_refused_by_name() {
        let open = |key: &str, value: &str| {
            let settings = BTreeMap::from([(key.to_string(), value.to_string())]);
            Stores::new(Clock::system())
                .open("s3://lake/here", &settings)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        for value in [
            "",
            "localhost:9000",
            "127.0.0.1",
            "https://",
            "s3://lake",
            "https://host\n",
            "http://a b",
            "https:/host",
            "https:///host",
        ] {
            let error = open("s3.endpoint", value).unwrap_err();
            assert!(error.contains("'s3.endpoint'") && error.contains("https://host:port"), "{value}: {error}");
        }
        for value in ["us east", "us%east", "us-east-1\n"] {
            let error = open("s3.region", value).unwrap_err();
            assert!(error.contains("'s3.region'"), "{value}: {error}");
        }
        for value in ["hunter2\n", "hunter2 ", "h\u{fc}nter2"] {
            let error = open("s3.access-key", value).unwrap_err();
            assert!(error.contains("'s3.access-key'") && !error.contains("nter2"), "{error}");
        }
        let error = Stores::new(Clock::system()).open("s3://my lake/here", &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
        for value in ["eu_west", "auto", "us-east-1"] {
            assert_eq!(open("s3.region", value), Ok(()));
        }
        for value in ["http://127.0.0.1:9000", "https://s3.example.org", "http://[::1]:9000/"] {
            assert_eq!(open("s3.endpoint", value), Ok(()));
        }
    }
}
