//! Storage for snapshots of what was learned.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Texts by pool.
pub(crate) type Snapshots = BTreeMap<String, String>;

/// Limit for the last save when this process ends.
const LAST: Duration = Duration::from_secs(5);
/// Shortest time between two saves: the learned figures change slowly.
const PACE: Duration = Duration::from_secs(60);
/// Limit for one save: a call that hangs must not delay the later ones.
const LONGEST: Duration = Duration::from_secs(30);
/// Pause after a failed save, even if nothing changed since: it may contain an override.
const AGAIN: Duration = Duration::from_secs(10);

/// A storage for snapshots, with a text for each pool.
pub(crate) trait SnapshotStore: Send + Sync {
    /// Reads every text.
    fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>>;
    /// Writes these texts, each whole or not at all; others stay as they are.
    fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>>;
}

/// A folder with a file for each pool.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl SnapshotStore for Folder {
    fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
        let path = self.path.clone();
        Box::pin(async move { tokio::task::spawn_blocking(move || read(&path)).await? })
    }

    fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>> {
        let path = self.path.clone();
        Box::pin(
            async move { tokio::task::spawn_blocking(move || write(&path, &snapshots)).await? },
        )
    }
}

fn read(folder: &Path) -> io::Result<Snapshots> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Snapshots::new()),
        Err(error) => return Err(error),
    };
    let mut snapshots = Snapshots::new();
    for entry in entries {
        let path = entry?.path();
        let pool = path.file_stem().and_then(|stem| stem.to_str());
        if let (Some(pool), Some("json")) = (pool, path.extension().and_then(|end| end.to_str())) {
            // A file that is not text is broken; the reader reports that.
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            snapshots.insert(pool.to_owned(), text);
        }
    }
    Ok(snapshots)
}

fn write(folder: &Path, snapshots: &Snapshots) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (pool, text) in snapshots {
        let (new, path) =
            (folder.join(format!(".{pool}.new")), folder.join(format!("{pool}.json")));
        std::fs::write(&new, text)?;
        std::fs::rename(&new, path)?;
    }
    Ok(())
}

/// Saves changes seldom, in a task beside the loop.
pub(crate) struct Saver {
    latest: watch::Sender<Snapshots>,
    task: AbortOnDropHandle<()>,
}

impl Saver {
    /// Starts the task. `known` is what the store contains already.
    pub(crate) fn start(store: Arc<dyn SnapshotStore>, known: Snapshots) -> Self {
        let (latest, mut changes) = watch::channel(known.clone());
        let task = tokio::spawn(async move {
            let mut written = known;
            let mut failed = false;
            loop {
                let more = tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    () = sleep(AGAIN), if failed => true,
                };
                let now = changes.borrow_and_update().clone();
                let changed = |(pool, text): &(&String, &String)| written.get(*pool) != Some(*text);
                let new: Snapshots = now
                    .iter()
                    .filter(changed)
                    .map(|(pool, text)| (pool.clone(), text.clone()))
                    .collect();
                failed = false;
                if !new.is_empty() {
                    let saved = timeout(LONGEST, store.save(new)).await;
                    match saved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                        Ok(()) => written = now,
                        Err(error) => {
                            tracing::warn!("learned figures can't be saved: {error}");
                            failed = true;
                        }
                    }
                }
                if !more {
                    return;
                }
            }
        });
        Self { latest, task: AbortOnDropHandle::new(task) }
    }

    /// Sets the snapshots to save.
    pub(crate) fn save(&self, snapshots: Snapshots) {
        self.latest.send_if_modified(|known| {
            let changed = *known != snapshots;
            if changed {
                *known = snapshots;
            }
            changed
        });
    }

    /// Waits for the last save, but not for long: this process ends even if an API server or a disk
    /// does not answer.
    pub(crate) async fn finish(self) {
        drop(self.latest);
        if timeout(LAST, self.task).await.is_err() {
            tracing::warn!(
                "figures learned since the last save are lost: no answer within {LAST:?}"
            );
        }
    }
}

/// The time of the next save.
pub(crate) struct Pace(Instant);

impl Pace {
    pub(crate) fn new() -> Self {
        Self(Instant::now() + PACE)
    }

    /// Whether it is time to save; if so, the next pause begins.
    pub(crate) fn is_due(&mut self) -> bool {
        let due = Instant::now() >= self.0;
        if due {
            self.0 = Instant::now() + PACE;
        }
        due
    }

    /// Makes the next save due at once: an override must not be lost.
    pub(crate) fn hurry(&mut self) {
        self.0 = Instant::now();
    }
}

/// Reads every snapshot of the store.
///
/// # Errors
/// Why it can't be read.
pub(crate) async fn load(store: &dyn SnapshotStore) -> Result<Snapshots, String> {
    const LIMIT: Duration = Duration::from_secs(5);
    match timeout(LIMIT, store.load()).await {
        Ok(loaded) => loaded.map_err(|error| error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Reads every snapshot, and tries again until that succeeds.
pub(crate) async fn load_until_read(store: Arc<dyn SnapshotStore>) -> Snapshots {
    const RETRY: Duration = Duration::from_secs(1);
    loop {
        sleep(RETRY).await;
        if let Ok(snapshots) = load(&*store).await {
            return snapshots;
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// A store that never answers.
    struct Silent;

    impl SnapshotStore for Silent {
        fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
            Box::pin(std::future::pending())
        }
        fn save(&self, _: Snapshots) -> BoxFuture<'_, io::Result<()>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_save_takes_a_few_seconds_at_most() {
        let saver = Saver::start(Arc::new(Silent), Snapshots::new());
        saver.save(Snapshots::from([("a".to_owned(), "1".to_owned())]));
        let began = Instant::now();
        timeout(LAST * 2, saver.finish()).await.expect("it ends");
        assert_eq!(began.elapsed().as_secs(), LAST.as_secs());
    }

    /// A store that hangs once, then fails once.
    #[derive(Default)]
    struct Moody(Mutex<(u32, Snapshots)>);

    impl SnapshotStore for Moody {
        fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
            Box::pin(async { Ok(self.0.lock().1.clone()) })
        }
        fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>> {
            let mut state = self.0.lock();
            state.0 += 1;
            match state.0 {
                1 => Box::pin(std::future::pending()),
                2 => Box::pin(async { Err(io::ErrorKind::NotConnected.into()) }),
                _ => {
                    state.1 = snapshots;
                    Box::pin(async { Ok(()) })
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_save_is_tried_again_though_nothing_changed_since() {
        let store = Arc::new(Moody::default());
        let saver = Saver::start(Arc::clone(&store) as Arc<dyn SnapshotStore>, Snapshots::new());
        let snapshots = Snapshots::from([("a".to_owned(), "1".to_owned())]);
        saver.save(snapshots.clone());
        sleep(LONGEST + AGAIN * 3).await;
        assert_eq!(load(&*store).await, Ok(snapshots));
        sleep(AGAIN * 10).await;
        assert_eq!(store.0.lock().0, 3, "and no more");
    }

    #[tokio::test]
    async fn what_is_saved_is_loaded_and_no_partial_file_is_left() {
        let folder = std::env::temp_dir().join(format!("forebay-store-{}", std::process::id()));
        let store = Arc::new(Folder::new(&folder));
        assert_eq!(load(&*store).await, Ok(Snapshots::new()), "empty");
        let texts = |one: &str| Snapshots::from([("a.b-1".to_owned(), one.to_owned())]);
        let saver = Saver::start(Arc::clone(&store) as Arc<dyn SnapshotStore>, Snapshots::new());
        saver.save(texts("1"));
        saver.save(texts("2"));
        saver.finish().await;
        assert_eq!(load(&*store).await, Ok(texts("2")));
        let names: Vec<_> = std::fs::read_dir(&folder).expect("there").flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
