//! The readers of a link: one of messages, one per stream of frames.
//!
//! Own the receiving streams. Invariants: every length is checked before anything is allocated; a
//! payload goes straight into the region that was posted for it; late frames are read and dropped;
//! a peer that breaks the protocol loses its link.

use std::sync::Arc;
use std::time::Instant;

use super::link::QuicLink;
use crate::error::TransportError;
use crate::frame::{
    FRAME_BYTES_MAX, FrameHeader, FrameMeta, HEADER_BYTES, LinkMessage, MESSAGE_BYTES_MAX,
};
use crate::link::table::Arrival;
use crate::stack::{ReadExactError, RecvStream};

/// How much is skipped in one step, in bytes.
const SKIP_BYTES: usize = 64 << 10;

pub(super) async fn read_messages(link: Arc<QuicLink>, mut stream: RecvStream) {
    let failure = loop {
        if let Err(failure) = read_message(&link, &mut stream).await {
            break failure;
        }
    };
    failure.report(&link);
}

pub(super) async fn read_frames(link: Arc<QuicLink>, stream: RecvStream) {
    let mut frames = Frames { link: &link, stream, meta: Vec::new(), sequence: 0 };
    let failure = loop {
        if let Err(failure) = frames.next().await {
            break failure;
        }
    };
    failure.report(&link);
}

enum ReadFailure {
    /// The connection is gone; its watcher closes the link.
    Lost,
    Protocol(TransportError),
}

impl ReadFailure {
    fn report(self, link: &QuicLink) {
        if let Self::Protocol(error) = self {
            link.fail(&error);
        }
    }
}

impl From<ReadExactError> for ReadFailure {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => {
                Self::Protocol(TransportError::closed("the peer's end of the link"))
            }
            ReadExactError::ReadError(_) => Self::Lost,
        }
    }
}

impl From<TransportError> for ReadFailure {
    fn from(error: TransportError) -> Self {
        Self::Protocol(error)
    }
}

async fn read_message(link: &QuicLink, stream: &mut RecvStream) -> Result<(), ReadFailure> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).await?;
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > MESSAGE_BYTES_MAX {
        let (bytes, limit) = (len as u64, MESSAGE_BYTES_MAX as u64);
        return Err(TransportError::FrameTooLarge { what: "link message", bytes, limit }.into());
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    Ok(link.handle(LinkMessage::decode(&body)?)?)
}

struct Frames<'a> {
    link: &'a QuicLink,
    stream: RecvStream,
    /// Reused for every frame's metadata.
    meta: Vec<u8>,
    sequence: u32,
}

impl Frames<'_> {
    async fn next(&mut self) -> Result<(), ReadFailure> {
        let header = self.read_header().await?;
        let arrival = self.link.core().table.arriving(&header)?;
        // `decode` bounds the metadata by META_BYTES_MAX.
        self.meta.resize(header.meta_len as usize, 0);
        self.stream.read_exact(&mut self.meta).await?;
        let Arrival::Place(mut place) = arrival else {
            return self.skip(header.payload_len).await;
        };
        let meta = FrameMeta::decode(&self.meta)?;
        if !self.link.core().table.agrees(&header, &meta) {
            return self.skip(header.payload_len).await;
        }
        let into = usize::try_from(header.payload_len)
            .ok()
            .and_then(|len| place.region.bytes_mut().get_mut(..len));
        let Some(into) = into else {
            return Err(TransportError::malformed("frame: larger than its place").into());
        };
        let begun = Instant::now();
        self.stream.read_exact(into).await?;
        let mut core = self.link.core();
        core.table.observed(header.payload_len, begun.elapsed());
        core.table.arrived(&header, place.region, meta);
        Ok(())
    }

    async fn read_header(&mut self) -> Result<FrameHeader, ReadFailure> {
        let mut bytes = [0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).await?;
        let header = FrameHeader::decode(&bytes, FRAME_BYTES_MAX)?;
        if header.sequence != self.sequence {
            let (ours, theirs) = (self.sequence, header.sequence);
            return Err(TransportError::mismatch("frame sequence", ours, theirs).into());
        }
        self.sequence = self.sequence.wrapping_add(1);
        Ok(header)
    }

    async fn skip(&mut self, mut left: u64) -> Result<(), ReadFailure> {
        let mut scratch = vec![0; SKIP_BYTES.min(usize::try_from(left).unwrap_or(SKIP_BYTES))];
        while left > 0 {
            let step = scratch.len().min(usize::try_from(left).unwrap_or(SKIP_BYTES));
            let Some(into) = scratch.get_mut(..step) else { break };
            self.stream.read_exact(into).await?;
            left -= step as u64;
        }
        Ok(())
    }
}
