//! One bulk connection of a link: its streams and the tasks that serve them.
//!
//! Owns which class travels on which stream. The stream of the greeting carries the usual class;
//! each end opens another, one way, for every other class when it first has a frame of it. Knows no
//! frames. Invariant: a peer has at most one stream per class open towards this end.

use std::sync::Arc;

use super::greeting::LaneStream;
use super::link::QuicLink;
use super::reader;
use super::writer::{self, ClassStream};
use crate::endpoint::QuicEndpoint;
use crate::frame::Priority;
use crate::stack::Connection;

/// Starts the lane's tasks on its endpoint's thread.
pub(super) fn start(link: &Arc<QuicLink>, index: usize, lane: LaneStream, endpoint: &QuicEndpoint) {
    let LaneStream { connection, sending, receiving } = lane;
    // An error means that the stream is gone, which the first write finds out.
    let _ = sending.set_priority(Priority::default() as i32);
    let mut usual = Some(sending);
    for class in Priority::ALL {
        let stream = match (class == Priority::default()).then(|| usual.take()).flatten() {
            Some(stream) => ClassStream::Open(stream),
            None => ClassStream::Later(connection.clone()),
        };
        endpoint.spawn(writer::write_frames(Arc::clone(link), index, class, stream));
    }
    endpoint.spawn(reader::read_frames(Arc::clone(link), receiving));
    endpoint.spawn(accept_classes(Arc::clone(link), connection));
}

/// Serves the streams that the peer opens, until the connection ends.
async fn accept_classes(link: Arc<QuicLink>, connection: Connection) {
    while let Ok(stream) = connection.accept_uni().await {
        tokio::spawn(reader::read_frames(Arc::clone(&link), stream));
    }
}
