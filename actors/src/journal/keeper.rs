//! The thread that writes a coordinator's journal, and the handle to it.
//!
//! Owns the order of writes and that the coordinator never waits for the disk, except before it
//! uses epochs that no journal names: it is told when an entry is there. Of checkpoints only the
//! newest of each request waits to be written, so a slow disk makes them rarer and nothing else.
//!
//! A disk that fails is told once in the log: the cluster goes on with what it has accepted, and a
//! coordinator that is killed then forgets what was not written.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::file::JournalFile;
use super::{Entry, Remembered};
use crate::checkpoint::Checkpoint;

/// Orders that wait for the disk; whoever brings one more waits too. A request makes a handful.
const ORDERS_MAX: usize = 4096;

/// Entries written together.
const BATCH_ENTRIES_MAX: usize = 256;

/// Epochs that are named ahead of their use.
const EPOCHS_AHEAD: u64 = 64;

/// Longest wait for the disk before epochs are used.
const EPOCHS_DEADLINE: Duration = Duration::from_secs(2);

/// Hears whether an entry is on the disk, or why it is not; on the journal's thread.
pub(crate) type Told = Box<dyn FnOnce(Result<(), String>) + Send>;

enum Order {
    Note(Entry, Option<Told>),
    /// There is a checkpoint to write.
    Look,
    Synced(SyncSender<()>),
}

/// Checkpoints that wait, by request.
type Waiting = BTreeMap<u64, Arc<Checkpoint>>;

/// A coordinator's way to its journal.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    orders: SyncSender<Order>,
    waiting: Arc<Mutex<Waiting>>,
    epochs: Arc<AtomicU64>,
}

/// What a journal said when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) remembered: Remembered,
    pub(crate) checkpoints: BTreeMap<u64, Checkpoint>,
}

impl Journal {
    /// Opens the journal in `folder` and starts its thread, which ends with the last handle.
    ///
    /// # Errors
    /// When the folder cannot be written to or there is no thread to be had.
    pub(crate) fn open(folder: &Path) -> io::Result<(Self, Opened)> {
        Self::of(JournalFile::open(folder)?)
    }

    /// The same, of files that are open.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn of(mut file: JournalFile) -> io::Result<(Self, Opened)> {
        let remembered = file.remembered().clone();
        let kept = remembered.requests.keys().filter_map(|&id| Some((id, file.checkpoint(id)?)));
        let checkpoints = kept.collect();
        let epochs = remembered.epochs + EPOCHS_AHEAD;
        file.append(vec![Entry::Epochs(epochs)])?;
        let (orders, incoming) = sync_channel(ORDERS_MAX);
        let waiting = Arc::<Mutex<Waiting>>::default();
        let taken = waiting.clone();
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write_all(&mut file, &incoming, &taken))?;
        let journal = Self { orders, waiting, epochs: Arc::new(epochs.into()) };
        Ok((journal, Opened { remembered, checkpoints }))
    }

    /// Remembers an entry soon.
    pub(crate) fn note(&self, entry: Entry) {
        // A thread that has ended has said why.
        let _ = self.orders.send(Order::Note(entry, None));
    }

    /// Remembers an entry, and tells when it is on the disk or why it will not be. Never waits: one
    /// that finds no place behind a disk that is too slow is not remembered.
    pub(crate) fn note_and_tell(&self, entry: Entry, told: Told) {
        let (order, cause) = match self.orders.try_send(Order::Note(entry, Some(told))) {
            Ok(()) => return,
            Err(TrySendError::Full(order)) => {
                (order, "the disk is too slow for what is to be kept")
            }
            Err(TrySendError::Disconnected(order)) => (order, "nobody writes it any more"),
        };
        if let Order::Note(_, Some(told)) = order {
            told(Err(cause.into()));
        }
    }

    /// Remembers a checkpoint soon, unless a newer one comes before.
    pub(crate) fn keep(&self, request: u64, checkpoint: Arc<Checkpoint>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.insert(request, checkpoint).is_none() {
            drop(waiting);
            // As above.
            let _ = self.orders.send(Order::Look);
        }
    }

    /// Makes sure that `epoch` is named before it is used.
    pub(crate) fn reserve(&self, epoch: u64) {
        if epoch <= self.epochs.load(Ordering::Relaxed) {
            return;
        }
        let ahead = epoch + EPOCHS_AHEAD;
        self.epochs.store(ahead, Ordering::Relaxed);
        self.note(Entry::Epochs(ahead));
        self.sync();
    }

    /// Waits until all orders so far are on the disk, at most two seconds.
    pub(crate) fn sync(&self) {
        let (reply, synced) = sync_channel(1);
        if self.orders.send(Order::Synced(reply)).is_ok()
            && synced.recv_timeout(EPOCHS_DEADLINE).is_err()
        {
            tracing::warn!("the disk of the journal is slow or gone");
        }
    }
}

/// The other end of a journal that is on no disk.
#[cfg(test)]
pub(crate) struct Untended {
    orders: Receiver<Order>,
    waiting: Arc<Mutex<Waiting>>,
}

#[cfg(test)]
impl Untended {
    /// What was noted and which checkpoints were kept since the last time.
    pub(crate) fn take(&self) -> (Vec<Entry>, BTreeMap<u64, Arc<Checkpoint>>) {
        let noted = self.orders.try_iter().filter_map(|order| match order {
            Order::Note(entry, _) => Some(entry),
            Order::Look | Order::Synced(_) => None,
        });
        let kept =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        (noted.collect(), kept)
    }
}

#[cfg(test)]
impl Journal {
    /// One that is on no disk: whoever has the other end sees to it, and to epochs.
    pub(crate) fn untended() -> (Self, Untended) {
        let (orders, incoming) = sync_channel(ORDERS_MAX);
        let waiting = Arc::<Mutex<Waiting>>::default();
        let kept = Arc::clone(&waiting);
        let journal = Self { orders, waiting, epochs: Arc::new(u64::MAX.into()) };
        (journal, Untended { orders: incoming, waiting: kept })
    }
}

fn write_all(file: &mut JournalFile, orders: &Receiver<Order>, waiting: &Mutex<Waiting>) {
    let mut healthy = true;
    let mut tell = |outcome: io::Result<()>| {
        if let (Err(error), true) = (&outcome, healthy) {
            tracing::error!(%error, "the journal cannot be written");
        }
        healthy = outcome.is_ok();
    };
    while let Ok(first) = orders.recv() {
        let (mut entries, mut told, mut replies, mut looks) = (vec![], vec![], vec![], false);
        for order in std::iter::once(first).chain(orders.try_iter().take(BATCH_ENTRIES_MAX)) {
            match order {
                Order::Note(entry, awaited) => {
                    entries.push(entry);
                    told.extend(awaited);
                }
                Order::Look => looks = true,
                Order::Synced(reply) => replies.push(reply),
            }
        }
        if !entries.is_empty() {
            let appended = file.append(entries);
            let outcome = match &appended {
                Ok(()) => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            told.into_iter().for_each(|told| told(outcome.clone()));
            tell(appended);
        }
        if looks {
            let taken =
                std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
            for (request, checkpoint) in taken {
                tell(file.keep(request, &checkpoint));
            }
        }
        for reply in replies {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
    }
}
