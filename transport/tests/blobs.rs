//! Blobs between processes of a cluster: whole, in order, refused in words, ended with the peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ditmesh_transport::blobs::{BLOB_PART_BYTES_MAX, BlobError, BlobPart, BlobStore};
use ditmesh_transport::quic::BlobReader;
use ditmesh_transport::{Fabric, PeerAddress, PeerId, QuicFabric, Role, TransportError};

use crate::support::{
    EPOCH, block_on, form_all, identity, in_process_fabrics, node_name, quic_config, quic_fabrics,
    soon,
};

/// Has one blob.
struct Store(Vec<u8>);

impl BlobStore for Store {
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<BlobPart, String> {
        if name != "weights" {
            return Err(format!("only weights are here, not {name}"));
        }
        let start = (offset as usize).min(self.0.len());
        let end = (start + len).min(self.0.len());
        Ok(BlobPart { total: self.0.len() as u64, bytes: self.0[start..end].to_vec() })
    }
}

fn content() -> Vec<u8> {
    (0..3_000_001_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn open(from: &Arc<dyn Fabric>, to: &Arc<dyn Fabric>) -> Result<BlobReader, TransportError> {
    let peer = PeerAddress { id: PeerId(1), name: node_name(1), address: to.address() };
    from.open_blobs(peer, soon()).await
}

async fn read_all(reader: &mut BlobReader) -> Result<Vec<u8>, BlobError> {
    let mut bytes = Vec::new();
    loop {
        let offset = bytes.len() as u64;
        let part = reader.read("weights", offset, BLOB_PART_BYTES_MAX, soon()).await?;
        bytes.extend_from_slice(&part.bytes);
        if bytes.len() as u64 >= part.total {
            return Ok(bytes);
        }
    }
}

#[test]
fn a_blob_comes_whole_and_in_parts_beside_a_mesh() {
    let fabrics = quic_fabrics(2);
    fabrics[1].offer_blobs(Arc::new(Store(content())));
    let _mesh = form_all(&fabrics, EPOCH);
    block_on(async {
        let mut reader = open(&fabrics[0], &fabrics[1]).await.unwrap();
        assert_eq!(read_all(&mut reader).await.unwrap(), content());
        let part = reader.read("weights", 5, 3, soon()).await.unwrap();
        assert_eq!(part, BlobPart { total: 3_000_001, bytes: content()[5..8].to_vec() });
        let past = reader.read("weights", 4_000_000, 3, soon()).await.unwrap();
        assert!(past.bytes.is_empty());
    });
}

#[test]
fn what_is_not_there_is_refused_in_words_and_the_reader_goes_on() {
    let fabrics = quic_fabrics(3);
    fabrics[1].offer_blobs(Arc::new(Store(content())));
    block_on(async {
        let mut reader = open(&fabrics[0], &fabrics[1]).await.unwrap();
        let error = reader.read("nothing", 0, 1, soon()).await.unwrap_err();
        assert!(matches!(error, BlobError::Refused { .. }));
        assert_eq!(error.to_string(), "n1 has no nothing: only weights are here, not nothing");
        assert_eq!(reader.read("weights", 0, 1, soon()).await.unwrap().bytes.len(), 1);
        let too_long = "x".repeat(2000);
        assert!(reader.read(&too_long, 0, 1, soon()).await.is_err());
        // Who offers nothing says so.
        let peer = PeerAddress { id: PeerId(2), name: node_name(2), address: fabrics[2].address() };
        let mut reader = fabrics[0].open_blobs(peer, soon()).await.unwrap();
        let error = reader.read("weights", 0, 1, soon()).await.unwrap_err().to_string();
        assert!(error.contains("nothing is offered here"), "{error}");
    });
}

#[test]
fn clients_and_impostors_are_not_served() {
    let fabrics = quic_fabrics(2);
    fabrics[1].offer_blobs(Arc::new(Store(content())));
    let client = QuicFabric::bind(&quic_config(identity(Role::Client, "client"))).unwrap();
    block_on(async {
        let error = open(&client, &fabrics[1]).await.err().unwrap().to_string();
        assert!(error.contains("nodes and workers"), "{error}");
        let wrong =
            PeerAddress { id: PeerId(1), name: node_name(7), address: fabrics[1].address() };
        let error = fabrics[0].open_blobs(wrong, soon()).await.err().unwrap();
        assert!(matches!(error, TransportError::WrongIdentity { .. }), "{error}");
    });
    let in_process = in_process_fabrics(2);
    let error = block_on(open(&in_process[0], &in_process[1])).err().unwrap();
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
}

#[test]
fn a_peer_that_goes_ends_a_read_and_a_slow_one_its_deadline() {
    let fabrics = quic_fabrics(2);
    fabrics[1].offer_blobs(Arc::new(Slow));
    block_on(async {
        let mut reader = open(&fabrics[0], &fabrics[1]).await.unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = reader.read("weights", 0, 1, deadline).await.unwrap_err();
        let late = matches!(error, BlobError::Transport(TransportError::Deadline { .. }));
        assert!(late, "{error}");
        let mut reader = open(&fabrics[0], &fabrics[1]).await.unwrap();
        fabrics[1].close();
        let error = reader.read("weights", 0, 1, soon()).await.unwrap_err();
        assert!(matches!(error, BlobError::Transport(_)), "{error}");
    });
}

/// Takes longer than anybody waits.
struct Slow;

impl BlobStore for Slow {
    fn read(&self, _: &str, _: u64, _: usize) -> Result<BlobPart, String> {
        std::thread::sleep(Duration::from_millis(500));
        Err("too late".into())
    }
}
