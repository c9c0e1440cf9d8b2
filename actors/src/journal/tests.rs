//! The journal by behaviour: what was whole is remembered, whatever a crash did to the end.

use std::fs;
use std::sync::Arc;

use proptest::prelude::*;

use super::file::JournalFile;
use super::keeper::Journal;
use super::*;
use crate::checkpoint::Checkpoint;
use crate::request::FloatTensor;

fn key(number: u64) -> RequestKey {
    RequestKey { client: 7, number }
}

fn accepted(request: u64) -> Entry {
    let asked = Box::new(GenerateRequest { seed: request, ..GenerateRequest::new("a red apple") });
    Entry::Accepted { request, key: key(request), asked, at_ms: 1000 * request }
}

fn checkpoint(step: usize) -> Checkpoint {
    let state = FloatTensor { shape: vec![1, 2], data: vec![step as f32, -1.5] };
    Checkpoint { step, images: 1, state }
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (0..7u8, 0..6u64, 0..100u64).prop_map(|(kind, request, value)| match kind {
        0 => Entry::Epochs(value),
        1 => {
            let device = (value % 2 == 0).then_some(0);
            Entry::Member { node: format!("n{request}"), device, incarnation: value }
        }
        2 => accepted(request),
        5 => Entry::Forced { node: format!("n{request}"), gone: value % 2 == 0 },
        6 => Entry::Begun { request },
        3 => Entry::Kept { request, step: value as u32, digest: value },
        _ => Entry::Ended { request },
    })
}

proptest! {
    /// Cut anywhere, or with any byte changed, a journal says what its entries before that said.
    #[test]
    fn what_is_whole_is_remembered(
        entries in prop::collection::vec(any_entry(), 0..20),
        place in any::<prop::sample::Index>(),
        flip in 0..255u8,
    ) {
        let (mut bytes, mut sums) = (MAGIC.to_vec(), vec![(MAGIC.len(), Remembered::default())]);
        let mut sum = Remembered::default();
        for entry in entries {
            append(&mut bytes, &entry);
            sum.add(entry);
            sums.push((bytes.len(), sum.clone()));
        }
        prop_assert_eq!(Remembered::from_bytes(&bytes), (sum.clone(), 0));
        prop_assert_eq!(Remembered::from_bytes(&sum.to_bytes()), (sum, 0), "rewritten");
        let place = place.index(bytes.len());
        let before = sums.iter().rfind(|(end, _)| *end <= place).map(|(_, sum)| sum.clone());
        let before = before.unwrap_or_default();
        prop_assert_eq!(&Remembered::from_bytes(&bytes[..place]).0, &before, "cut");
        bytes[place] ^= flip.wrapping_add(1);
        if flip < 255 {
            prop_assert_eq!(&Remembered::from_bytes(&bytes).0, &before, "changed");
        }
    }
}

#[test]
fn a_checkpoint_is_there_again_and_what_ended_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = JournalFile::open(folder.path()).expect("opened");
    file.append(vec![accepted(1), accepted(2), Entry::Epochs(9)]).expect("appended");
    for step in [3, 4] {
        file.keep(1, &checkpoint(step)).expect("kept");
    }
    file.keep(2, &checkpoint(8)).expect("kept");
    file.keep(3, &checkpoint(8)).expect("nobody's");
    file.append(vec![Entry::Ended { request: 2 }]).expect("appended");
    let mut torn =
        fs::OpenOptions::new().append(true).open(folder.path().join("journal")).expect("open");
    std::io::Write::write_all(&mut torn, &[9, 0, 0, 0, 1, 2]).expect("torn");
    fs::write(folder.path().join("2-8.checkpoint"), "left over").expect("written");
    fs::write(folder.path().join("1-5.checkpoint.partial"), "cut short").expect("written");
    drop(file);
    let again = JournalFile::open(folder.path()).expect("opened again");
    assert_eq!(again.remembered().epochs, 9);
    assert_eq!(again.remembered().requests.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(again.checkpoint(1), Some(checkpoint(4)));
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).expect("listed").map(|e| e.expect("one").file_name()).collect();
    names.sort();
    assert_eq!(names, ["1-4.checkpoint", "journal", "lock"]);
    fs::write(folder.path().join("1-4.checkpoint"), "damaged").expect("written");
    assert_eq!(again.checkpoint(1), None, "begins again rather than from something else");
}

#[test]
fn a_thread_writes_what_it_is_told_and_epochs_are_named_before_they_are_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let (journal, opened) = Journal::open(folder.path()).expect("opened");
    assert_eq!(opened.remembered, Remembered::default());
    journal.note(accepted(5));
    for step in 0..50 {
        journal.keep(5, Arc::new(checkpoint(step)));
    }
    journal.reserve(1000);
    journal.sync();
    let named = |folder: &std::path::Path| {
        Remembered::from_bytes(&fs::read(folder.join("journal")).expect("read")).0
    };
    assert!(named(folder.path()).epochs >= 1000);
    drop(journal);
    let (_journal, opened) = opened_again(folder.path());
    assert_eq!(opened.checkpoints.get(&5), Some(&checkpoint(49)), "the newest");
    assert_eq!(opened.remembered.requests[&5].key, key(5));
    assert!(named(folder.path()).epochs > opened.remembered.epochs, "of this life");
}

/// The time between two lives counts; what had begun waits anew, as after any loss.
#[test]
fn a_request_that_waited_has_waited_since_it_was_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut file = JournalFile::open(folder.path()).expect("opened");
    file.append(vec![accepted(1), accepted(2), Entry::Begun { request: 2 }]).expect("appended");
    drop(file);
    // Written anew by the next life, and read by the one after that.
    drop(JournalFile::open(folder.path()).expect("opened again"));
    let file = JournalFile::open(folder.path()).expect("and again");
    let waited = |request, now_ms| file.remembered().requests[&request].waited(now_ms);
    assert_eq!(waited(1, 31_000), Duration::from_secs(30));
    assert_eq!(waited(2, 31_000), Duration::ZERO);
    assert_eq!(waited(1, 0), Duration::ZERO, "a clock that was put back costs nobody anything");
}

/// Opens a journal whose thread is about to end.
fn opened_again(folder: &std::path::Path) -> (Journal, keeper::Opened) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match Journal::open(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                assert!(std::time::Instant::now() < deadline, "it does not end");
                std::thread::yield_now();
            }
            opened => return opened.expect("opened again"),
        }
    }
}

#[test]
fn a_journal_is_open_in_one_place_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = JournalFile::open(folder.path()).expect("opened");
    let second = JournalFile::open(folder.path()).err().expect("refused");
    assert_eq!(second.kind(), std::io::ErrorKind::ResourceBusy);
    assert!(second.to_string().contains("another coordinator has it open"), "{second}");
    drop(first);
    JournalFile::open(folder.path()).expect("opened once it is closed");
}

/// A disk that has room again gets what it could not take.
#[test]
fn what_could_not_be_written_is_written_with_what_comes_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut left = vec![Ok(()), Err(std::io::ErrorKind::StorageFull.into()), Ok(())].into_iter();
    let sync = Box::new(move |_: &fs::File| left.next().unwrap_or(Ok(())));
    let mut file = JournalFile::open_with(folder.path(), sync).expect("opened");
    file.append(vec![accepted(1), accepted(2)]).expect("room");
    file.append(vec![Entry::Ended { request: 1 }]).expect_err("no room");
    let on_disk =
        || Remembered::from_bytes(&fs::read(folder.path().join("journal")).expect("read"));
    assert_eq!(on_disk().0.requests.keys().copied().collect::<Vec<_>>(), [1, 2]);
    file.append(vec![accepted(3)]).expect("room again");
    assert_eq!(on_disk().0.requests.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(on_disk().1, 0, "nothing is cut short");
}

#[test]
fn a_folder_that_cannot_be_written_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    fs::write(&path, "a file where a folder should be").expect("written");
    assert!(Journal::open(&path).is_err());
}
