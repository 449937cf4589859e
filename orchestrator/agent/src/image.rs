//! Images: the archives that come with the node, and getting one a container needs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cri::Runtime;
use cri::message::{
    AuthConfig, Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest,
    VersionRequest,
};
use node::config::{PullPolicy, pull_policy};
use node::registry::{Credential, credentials};
use objects::config::Secret;
use objects::pod::{Container, Pod};
use runtime::backoff::Backoff;
use runtime::{report, resource};
use thiserror::Error;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::{Config, Shared, disk};

/// Longest an import may take: the archives are small, but the disk may be busy.
const IMPORT_LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

/// How often a runtime that is starting is looked at.
const RUNTIME_BEAT: std::time::Duration = std::time::Duration::from_millis(200);

/// Why an image cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ImageError {
    /// No image can have this name.
    #[error(
        "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {why}"
    )]
    Name {
        /// The image.
        image: String,
        /// Why not.
        why: node::image_name::ImageNameError,
    },
    /// It is not there and may not be pulled.
    #[error("Container image \"{image}\" is not present with pull policy of Never")]
    NeverPull {
        /// The image.
        image: String,
    },
    /// It could not be pulled.
    #[error("{why}")]
    Pull {
        /// The image.
        image: String,
        /// The runtime's words.
        why: String,
    },
    /// The runtime could not be asked.
    #[error("failed to inspect image \"{image}\": {why}")]
    Inspect {
        /// The image.
        image: String,
        /// The runtime's words.
        why: String,
    },
}

impl ImageError {
    /// The reason as upstream spells it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } => "InvalidImageName",
            Self::NeverPull { .. } => "ErrImageNeverPull",
            Self::Pull { .. } => "ErrImagePull",
            Self::Inspect { .. } => "ImageInspectError",
        }
    }
}

impl ImageError {
    /// The event that tells of it, besides the one that the container did not start.
    fn event(&self) -> (&'static str, String) {
        match self {
            Self::Name { .. } => ("InspectFailed", self.to_string()),
            Self::NeverPull { .. } => ("ErrImageNeverPull", self.to_string()),
            Self::Pull { image, why } => {
                ("Failed", format!("Failed to pull image \"{image}\": {why}"))
            }
            Self::Inspect { .. } => ("InspectFailed", {
                let text = self.to_string();
                text.replacen('f', "F", 1)
            }),
        }
    }
}

/// Makes sure the image of a container is there, by its pull policy, and tells what was done.
pub(crate) async fn ensure(
    shared: &Shared,
    (pod, container): (&Pod, &Container),
    sandbox: &PodSandboxConfig,
) -> Result<(), ImageError> {
    let name = Some(container.name.as_str());
    match try_ensure(shared, (pod, container), sandbox).await {
        Ok(message) => {
            shared.events.normal(pod, name, "Pulled", &message);
            Ok(())
        }
        Err(err) => {
            let (reason, message) = err.event();
            shared.events.warning(pod, name, reason, &message);
            Err(err)
        }
    }
}

async fn try_ensure(
    shared: &Shared,
    (pod, container): (&Pod, &Container),
    sandbox: &PodSandboxConfig,
) -> Result<String, ImageError> {
    let policy = pull_policy(container);
    let image = &container.image;
    node::image_name::check_image_name(image)
        .map_err(|why| ImageError::Name { image: image.clone(), why })?;
    if policy != PullPolicy::Always && observe(shared, image).await?.is_some() {
        return Ok(format!(
            "Container image \"{image}\" already present on machine and can be accessed by the pod"
        ));
    }
    if policy == PullPolicy::Never {
        return Err(ImageError::NeverPull { image: image.clone() });
    }
    let pulling = format!("Pulling image \"{image}\"");
    shared.events.normal(pod, Some(&container.name), "Pulling", &pulling);
    let begun = tokio::time::Instant::now();
    // Without any that fits, the registry is asked as a stranger; else each is tried in turn.
    let found = credentials(image, &pull_secrets(shared, pod).await);
    let mut tries: Vec<Option<AuthConfig>> = found.into_iter().map(|one| Some(auth(one))).collect();
    if tries.is_empty() {
        tries.push(None);
    }
    let mut why = String::new();
    for auth in tries {
        let request = PullImageRequest {
            image: Some(spec(image)),
            auth,
            sandbox_config: Some(sandbox.clone()),
        };
        match shared.runtime.pull_image(request).await {
            Ok(_) => {
                let took = begun.elapsed();
                let size = observe(shared, image).await?.map_or(0, |image| image.size);
                return Ok(format!(
                    "Successfully pulled image \"{image}\" in {took:.3?} ({took:.3?} including \
                     waiting). Image size: {size} bytes."
                ));
            }
            Err(err) => why = report(&err),
        }
    }
    Err(ImageError::Pull { image: image.clone(), why })
}

fn auth(found: Credential) -> AuthConfig {
    let Credential { username, password, identity_token } = found;
    AuthConfig { username, password, identity_token, ..AuthConfig::default() }
}

/// The pod's pull secrets that can be had; one that is absent may be meant for another image.
async fn pull_secrets(shared: &Shared, pod: &Pod) -> Vec<Secret> {
    let mut secrets = Vec::new();
    for named in &pod.spec.image_pull_secrets {
        let namespace = pod.metadata.namespace.as_str();
        match shared.client.get(&resource::SECRETS, Some(namespace), &named.name).await {
            Ok(value) => secrets.extend(serde_json::from_value::<Secret>(value).ok()),
            Err(err) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the \
                     image may not succeed.",
                    named.name
                );
                tracing::debug!(pod = pod.metadata.name, err = report(&err), "no pull secret");
                shared.events.warning(pod, None, "FailedToRetrieveImagePullSecret", &message);
            }
        }
    }
    secrets
}

/// The user an image names: its number, or its name.
pub(crate) async fn user(
    shared: &Shared,
    image: &str,
) -> Result<(Option<i64>, String), ImageError> {
    let found = observe(shared, image).await?.unwrap_or_default();
    Ok((found.uid.map(|uid| uid.value), found.username))
}

async fn observe(shared: &Shared, image: &str) -> Result<Option<Image>, ImageError> {
    let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
    match shared.runtime.image_status(request).await {
        Ok(answer) => Ok(answer.image),
        Err(err) => Err(ImageError::Inspect { image: image.to_owned(), why: report(&err) }),
    }
}

/// How CRI names an image.
pub(crate) fn spec(image: &str) -> ImageSpec {
    let image = image.to_owned();
    ImageSpec { image: image.clone(), user_specified_image: image, ..ImageSpec::default() }
}

/// The archives that come with the node, on their way into the runtime.
///
/// Begun as early as possible, beside the join: the work fits into its waits. The node is not
/// ready before they are in, for the sandbox image is among them. Ends when the last clone is
/// dropped.
#[derive(Debug, Clone, Default)]
pub struct Imports {
    state: Arc<Mutex<Option<JoinSet<()>>>>,
    done: Arc<AtomicBool>,
}

impl Imports {
    /// Begins, unless it has begun.
    pub(crate) fn begin(&self, config: &Config) {
        // A poisoned lock still guards a whole value.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.get_or_insert_with(|| {
            let mut tasks = JoinSet::new();
            tasks.spawn(import_all(config.clone(), Arc::clone(&self.done)));
            tasks
        });
    }

    /// Tells whether every archive is in.
    pub(crate) fn are_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

/// Imports every archive, each once for each life of the agent's data.
async fn import_all(config: Config, done: Arc<AtomicBool>) {
    let mut left = archives(&config.image_dir).await;
    if !left.is_empty() {
        await_runtime(&config).await;
    }
    let mut backoff = Backoff::default();
    loop {
        let mut failed = Vec::new();
        for archive in left {
            if let Err(why) = import(&config, &archive).await {
                warn!(archive = %archive.display(), why, "cannot import an archive; retrying");
                failed.push(archive);
            }
        }
        if failed.is_empty() {
            done.store(true, Ordering::Relaxed);
            return;
        }
        left = failed;
        tokio::time::sleep(backoff.step()).await;
    }
}

/// Waits until the runtime answers; an import begun before would only fail.
async fn await_runtime(config: &Config) {
    let Ok(runtime) = Runtime::at(&config.cri_socket) else { return };
    while runtime.version(VersionRequest::default()).await.is_err() {
        tokio::time::sleep(RUNTIME_BEAT).await;
    }
}

async fn archives(dir: &Path) -> Vec<PathBuf> {
    let Ok(mut entries) = tokio::fs::read_dir(dir).await else { return Vec::new() };
    let mut found = Vec::new();
    while let Ok(Some(entry)) = entries.next_entry().await {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Brings an archive into the runtime.
async fn import(config: &Config, archive: &Path) -> Result<(), String> {
    // The mark lives as long as the runtime's own store: both are on the node's data disk.
    let name = archive.file_name().unwrap_or_default();
    let mark = config.data_dir.join("imported").join(name);
    if mark.exists() {
        return Ok(());
    }
    let runtime = Runtime::at(&config.cri_socket).map_err(|err| report(&err))?;
    let work = tokio::time::timeout(IMPORT_LIMIT, runtime.import_archive(archive)).await;
    work.map_err(|_| "took too long".to_owned())?.map_err(|err| report(&err))?;
    info!(archive = %archive.display(), "image archive imported");
    disk::write(mark, String::new(), 0o644).await.map_err(|err| report(&err))?;
    Ok(())
}
