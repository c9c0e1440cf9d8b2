//! Acceptance by behaviour, by a coordinator whose disk is slow or full.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::{fs, io};

use ditmesh_transport::in_process::InProcessHub;
use tempfile::TempDir;

use super::*;
use crate::coordinator::{CoordinatorArgs, CoordinatorHandle};
use crate::generation::GenerationHandle;
use crate::journal::Remembered;
use crate::journal::file::{JournalFile, Sync};
use crate::journal::keeper::Journal;
use crate::manifest::Manifest;
use crate::request::{Event, ModelSource};

const PATIENCE: Duration = Duration::from_secs(20);
/// For what must not happen.
const A_WHILE: Duration = Duration::from_millis(50);

/// A coordinator without devices, whose journal waits for the disk by `sync`.
async fn coordinator(sync: Sync) -> (CoordinatorHandle, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = JournalFile::open_with(folder.path(), sync).expect("opened");
    let manifest = Manifest::in_process(ModelSource::Builtin, 1, 1);
    let fabric = InProcessHub::new().fabric();
    let args = CoordinatorArgs {
        manifest: Arc::new(manifest),
        fabric,
        address: "in-process".into(),
        journal: Some(Journal::of(file).expect("a thread")),
        door: None,
    };
    (CoordinatorHandle::start(args).await.expect("started"), folder)
}

fn ask(coordinator: &CoordinatorHandle, number: u64) -> GenerationHandle {
    let key = RequestKey { client: 1, number };
    coordinator.submit_keyed(key, GenerateRequest::new("a red apple"))
}

async fn next_event(handle: &mut GenerationHandle) -> Option<Event> {
    tokio::time::timeout(PATIENCE, handle.next_event()).await.expect("something happens")
}

/// Numbers of the clients' requests that a restart would find.
fn on_disk(folder: &Path) -> Vec<u64> {
    let bytes = fs::read(folder.join("journal")).expect("a journal");
    let requests = Remembered::from_bytes(&bytes).0.requests;
    requests.values().map(|pending| pending.key.number).collect()
}

/// A disk that takes its time until its other end is dropped; what is sent lets one write through.
fn slow() -> (mpsc::Sender<()>, Sync) {
    let (gate, opened) = mpsc::channel();
    // Of the epochs that a life begins with.
    gate.send(()).expect("the other end is here");
    let sync = Box::new(move |file: &fs::File| {
        // Dropped, it holds nobody up any more.
        let _ = opened.recv();
        file.sync_data()
    });
    (gate, sync)
}

#[tokio::test]
async fn a_client_hears_of_its_request_once_it_is_on_the_disk_and_nobody_else_waits() {
    let (gate, sync) = slow();
    let (coordinator, folder) = coordinator(sync).await;
    let mut asked = ask(&coordinator, 7);
    let mut other = coordinator.submit(GenerateRequest::new("a green apple"));
    assert!(matches!(next_event(&mut other).await, Some(Event::Queued { .. })));
    let early = tokio::time::timeout(A_WHILE, asked.next_event()).await;
    assert!(early.is_err(), "it is told {early:?} and the disk has nothing");
    let status = tokio::time::timeout(PATIENCE, coordinator.status()).await;
    assert_eq!(status.expect("in time").expect("a status").queued, 1, "the one without a key");
    drop(gate);
    assert!(matches!(next_event(&mut asked).await, Some(Event::Queued { ahead: 1 })));
    assert_eq!(on_disk(folder.path()), [7]);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_request_that_is_cancelled_before_it_is_on_the_disk_is_never_queued() {
    let (gate, sync) = slow();
    let (coordinator, folder) = coordinator(sync).await;
    drop(ask(&coordinator, 1));
    let mut second = ask(&coordinator, 2);
    drop(gate);
    assert!(matches!(next_event(&mut second).await, Some(Event::Queued { ahead: 0 })));
    coordinator.stop().await;
    assert!(!on_disk(folder.path()).contains(&1), "a restart would draw it");
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_it_has_room_for_later_is_accepted() {
    let full = Arc::new(AtomicBool::new(false));
    let is_full = Arc::clone(&full);
    let sync = Box::new(move |file: &fs::File| match is_full.load(Ordering::SeqCst) {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => file.sync_data(),
    });
    let (coordinator, folder) = coordinator(sync).await;
    let mut first = ask(&coordinator, 1);
    assert!(matches!(next_event(&mut first).await, Some(Event::Queued { .. })));
    full.store(true, Ordering::SeqCst);
    let refused = tokio::time::timeout(PATIENCE, ask(&coordinator, 2).finish()).await;
    let Ok(Err(GenerateError::NotAccepted(cause))) = refused else { panic!("{refused:?}") };
    assert!(cause.contains("journal") && cause.contains("ask again"), "{cause}");
    assert_eq!(on_disk(folder.path()), [1]);
    full.store(false, Ordering::SeqCst);
    let mut third = ask(&coordinator, 3);
    assert!(matches!(next_event(&mut third).await, Some(Event::Queued { ahead: 1 })));
    assert_eq!(on_disk(folder.path()), [1, 3], "what was refused is not drawn after a restart");
    coordinator.stop().await;
}
