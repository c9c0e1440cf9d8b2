//! The cache and the fetcher against peers that have, lack, damage or lose what is asked for.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use ditmesh_transport::blobs::{BlobPart, BlobStore};
use ditmesh_transport::identity::{ClusterCa, Role};
use ditmesh_transport::quic::{QuicConfig, QuicFabric};

use super::cache::{Found, TensorCache};
use super::catalogue::{Catalogue, hex};
use super::*;

const MODEL: u64 = 0xfeed;

fn sha(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn store(cache: &TensorCache, bytes: &[u8]) -> PathBuf {
    let digest = sha(bytes);
    match cache.find(&digest, bytes.len() as u64).unwrap() {
        Found::Whole(path) => path,
        Found::Partial(mut partial) => {
            partial.add(bytes).unwrap();
            cache.finish(partial, &digest).unwrap().expect("it is right")
        }
    }
}

#[test]
fn a_tensor_is_kept_whole_and_right_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let cache = TensorCache::bounded(root.path().to_owned(), 1 << 20).unwrap();
    let bytes = b"weights of a block".repeat(100);
    let path = store(&cache, &bytes);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    // Damaged on disk: it is not used, and fetched again.
    fs::write(&path, b"weights of a rock".repeat(100)).unwrap();
    assert!(matches!(cache.find(&sha(&bytes), bytes.len() as u64), Ok(Found::Partial(_))));
    // What came is something else: nothing stays.
    let Ok(Found::Partial(mut partial)) = cache.find(&sha(&bytes), 4) else { panic!("whole") };
    partial.add(b"oops").unwrap();
    assert_eq!(cache.finish(partial, &sha(&bytes)).unwrap(), None);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn a_part_is_gone_on_with_by_the_next_and_held_by_one() {
    let root = tempfile::tempdir().unwrap();
    let cache = TensorCache::bounded(root.path().to_owned(), 1 << 20).unwrap();
    let (bytes, digest) = (b"0123456789".to_vec(), sha(b"0123456789"));
    let Ok(Found::Partial(mut partial)) = cache.find(&digest, 10) else { panic!("whole") };
    partial.add(&bytes[..4]).unwrap();
    // Another worker waits until this one has ended, and goes on where it was.
    let waiting = {
        let (cache, digest) = (cache.clone(), digest.clone());
        std::thread::spawn(move || {
            let Ok(Found::Partial(mut partial)) = cache.find(&digest, 10) else { panic!("whole") };
            assert_eq!(partial.bytes, 4);
            partial.add(b"456789").unwrap();
            cache.finish(partial, &digest).unwrap().expect("it is right")
        })
    };
    drop(partial);
    assert_eq!(fs::read(waiting.join().unwrap()).unwrap(), bytes);
}

#[test]
fn the_longest_unused_tensors_go_first() {
    let root = tempfile::tempdir().unwrap();
    let cache = TensorCache::bounded(root.path().to_owned(), 2500).unwrap();
    let tensors: Vec<Vec<u8>> = (0..4_u8).map(|i| vec![i; 1000]).collect();
    let age = |path: &Path, seconds: u64| {
        let when = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        fs::File::options().write(true).open(path).unwrap().set_modified(when).unwrap();
    };
    let first = store(&cache, &tensors[0]);
    age(&first, 300);
    let second = store(&cache, &tensors[1]);
    age(&second, 200);
    // Used again, so the second is the oldest now.
    assert_eq!(store(&cache, &tensors[0]), first);
    let third = store(&cache, &tensors[2]);
    assert!(first.exists() && !second.exists() && third.exists());
    // One that is larger than the bound is kept while it is the newest.
    let large = store(&cache, &vec![9; 5000]);
    assert!(large.exists() && !first.exists() && !third.exists());
}

#[test]
fn a_list_that_leads_out_of_the_folder_is_refused() {
    let file = |path: &str| {
        let file = format!(r#"{{"path":{path:?},"bytes":9,"front_bytes":9,"front_digest":""}}"#);
        format!(r#"{{"model_id":{MODEL},"files":[{file}]}}"#)
    };
    assert!(Catalogue::parse(file("vae/config.json").as_bytes(), MODEL).is_ok());
    for path in ["../x.json", "/etc/x.json", "a/../../x.json", "a/b/c.json", "", "./x.json"] {
        let parsed = Catalogue::parse(file(path).as_bytes(), MODEL);
        assert!(matches!(parsed, Err(WeightsError::Catalogue(_))), "{path}");
    }
    assert!(Catalogue::parse(file("a.json").as_bytes(), MODEL + 1).is_err());
    assert!(Catalogue::parse(b"[]", MODEL).is_err());
}

/// A model of one weight file: a header of 16 bytes, then two tensors.
fn model(folder: &Path) -> Vec<u8> {
    let mut bytes = 8_u64.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{      }");
    bytes.extend((0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8));
    fs::create_dir_all(folder.join("transformer")).unwrap();
    fs::write(folder.join("transformer/w.safetensors"), &bytes).unwrap();
    fs::write(folder.join("model_index.json"), "{}").unwrap();
    bytes
}

/// A store that counts, and may damage or end.
struct Donor {
    store: ModelStore,
    damages: bool,
    /// Parts of weights that it gives before it has nothing more to say.
    gives: usize,
    given: AtomicUsize,
    bytes: AtomicUsize,
}

impl Donor {
    fn of(folder: &Path) -> Self {
        let store = ModelStore::new(folder.to_owned(), MODEL);
        let (given, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { store, damages: false, gives: usize::MAX, given, bytes }
    }
}

impl BlobStore for Donor {
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<BlobPart, String> {
        let mut part = self.store.read(name, offset, len)?;
        if name.starts_with("file/") && name.ends_with(".safetensors") && offset >= 16 {
            if self.given.fetch_add(1, Ordering::Relaxed) >= self.gives {
                return Err("it is ending".into());
            }
            self.bytes.fetch_add(part.bytes.len(), Ordering::Relaxed);
            if let (true, Some(byte)) = (self.damages, part.bytes.first_mut()) {
                *byte ^= 1;
            }
        }
        Ok(part)
    }
}

/// Fetches bytes `range` with these donors, the last of whom is the reference; what came.
fn fetch(
    donors: &[Arc<Donor>],
    range: std::ops::Range<usize>,
    cache: &Path,
) -> Result<Vec<u8>, String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let authority = ClusterCa::generate("far").unwrap();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let fabric = |name: &str| {
        let identity = authority.issue(Role::Node, name).unwrap();
        QuicFabric::bind(&QuicConfig::new(identity, loopback, loopback)).unwrap()
    };
    let fabrics: Vec<_> = (0..donors.len()).map(|rank| fabric(&format!("n{rank}"))).collect();
    let mut peers: Vec<PeerAddress> = Vec::new();
    for (rank, (fabric, donor)) in fabrics.iter().zip(donors).enumerate() {
        fabric.offer_blobs(donor.clone());
        let (id, name) = (PeerId(rank as u32), format!("n{rank}"));
        peers.push(PeerAddress { id, name, address: fabric.address() });
    }
    let peers = Peers { reference: peers.last().unwrap().clone(), donors: peers };
    let fetcher = Fetcher::below(cache, MODEL, peers, fabric("me"), runtime.handle()).unwrap();
    let folder = fetcher.prepare().map_err(|error| error.to_string())?;
    assert!(folder.join("transformer/w.safetensors.header").is_file());
    let path = fetcher.bring(Path::new("transformer/w.safetensors"), range)?;
    Ok(fs::read(path).unwrap())
}

#[test]
fn a_tensor_comes_whole_and_no_byte_more() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = model(folder.path());
    let donor = Arc::new(Donor::of(folder.path()));
    let range = 100..2_500_000;
    let came = fetch(std::slice::from_ref(&donor), range.clone(), cache.path()).unwrap();
    assert!(came == whole[range.clone()]);
    assert_eq!(donor.bytes.load(Ordering::Relaxed), range.len());
    // Cached: nobody is asked for it again.
    let came = fetch(std::slice::from_ref(&donor), range.clone(), cache.path()).unwrap();
    assert!(came == whole[range.clone()]);
    assert_eq!(donor.bytes.load(Ordering::Relaxed), range.len());
}

#[test]
fn a_peer_that_ends_is_followed_by_the_next_which_goes_on() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = model(folder.path());
    let ending = Arc::new(Donor { gives: 1, ..Donor::of(folder.path()) });
    let next = Arc::new(Donor::of(folder.path()));
    let range = 16..2_600_000;
    let came = fetch(&[ending.clone(), next.clone()], range.clone(), cache.path()).unwrap();
    assert!(came == whole[range.clone()]);
    let (first, rest) = (ending.bytes.load(Ordering::Relaxed), next.bytes.load(Ordering::Relaxed));
    assert!(first > 0, "the first gave a part");
    assert_eq!(first + rest, range.len(), "what the first gave is not asked for again");
}

#[test]
fn damaged_bytes_are_refused_and_had_from_somebody_else() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = model(folder.path());
    let damaging = || Arc::new(Donor { damages: true, ..Donor::of(folder.path()) });
    let good = Arc::new(Donor::of(folder.path()));
    let range = 16..1_000_000;
    let came = fetch(&[damaging(), good.clone()], range.clone(), cache.path()).unwrap();
    assert!(came == whole[range.clone()]);
    assert_eq!(good.bytes.load(Ordering::Relaxed), range.len(), "nothing of the other is kept");
    let nobody = tempfile::tempdir().unwrap();
    let error = fetch(&[damaging(), damaging()], range, nobody.path()).unwrap_err();
    assert!(error.contains("damaged from node n0, node n1"), "{error}");
    let left = fs::read_dir(nobody.path().join("ditmesh/tensors")).unwrap().count();
    assert_eq!(left, 0, "damaged bytes stay");
}

#[test]
fn what_nobody_has_is_an_error_with_everybodys_words() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    model(folder.path());
    let empty = |id: u64| {
        let store = ModelStore::new(folder.path().to_owned(), id);
        Arc::new(Donor { store, ..Donor::of(folder.path()) })
    };
    let error = fetch(&[empty(7)], 16..20, cache.path()).unwrap_err();
    assert!(error.contains("model 0000000000000007 is here"), "{error}");
    let ended = Arc::new(Donor { gives: 0, ..Donor::of(folder.path()) });
    let error = fetch(&[empty(7), ended], 16..20, cache.path()).unwrap_err();
    for part in ["node n0: ", "node n1: ", "it is ending", "no peer gave it"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn only_files_of_the_model_are_offered() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    fs::write(folder.path().join("secret.key"), "x").unwrap();
    let store = ModelStore::new(folder.path().to_owned(), MODEL);
    let ask = |name: &str| store.read(name, 0, 100);
    assert!(ask(&format!("file/{MODEL:016x}/model_index.json")).is_ok());
    for path in ["secret.key", "../x", "/etc/passwd", "transformer/../secret.key"] {
        assert!(ask(&format!("file/{MODEL:016x}/{path}")).is_err(), "{path}");
    }
    assert!(ask("file/0000000000000001/model_index.json").is_err(), "of another model");
    let digest =
        |range: &str| ask(&format!("digest/{MODEL:016x}/{range}/transformer/w.safetensors"));
    assert!(digest("16-20").is_ok());
    assert!(digest("16-99999999").is_err() && digest("20-16").is_err());
}
