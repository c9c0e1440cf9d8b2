//! One question to the kernel over a netlink socket, and the attributes of its answer.
//!
//! Owns the framing (native byte order, attributes padded to four bytes). Does not own what is
//! asked. Invariant: what the kernel says is read within its bounds, and it has a second to say it.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
/// Flags in an attribute's kind.
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

const WAIT_MAX: Duration = Duration::from_secs(1);
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A socket to one of the kernel's families.
pub(super) struct Netlink(Socket);

impl Netlink {
    pub(super) fn open(protocol: i32) -> io::Result<Self> {
        let protocol = Some(Protocol::from(protocol));
        let socket = Socket::new(Domain::from(AF_NETLINK), Type::DGRAM, protocol)?;
        socket.set_read_timeout(Some(WAIT_MAX))?;
        Ok(Self(socket))
    }

    /// Asks, and returns the kind and the content of the first answer.
    pub(super) fn ask(&self, kind: u16, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let len = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
        let mut question = Vec::with_capacity(HEADER_BYTES + body.len());
        question.extend(len.to_ne_bytes());
        question.extend(kind.to_ne_bytes());
        question.extend(NLM_F_REQUEST.to_ne_bytes());
        // Number and sender: there is one question at a time.
        question.extend([0; 8]);
        question.extend(body);
        self.0.send(&question)?;
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let got = (&self.0).read(&mut answer)?;
        answer.truncate(got);
        parse(&answer)
    }
}

fn parse(answer: &[u8]) -> io::Result<(u16, Vec<u8>)> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "a netlink answer is cut off");
    let Some((&[a, b, c, d, e, f, ..], _)) = answer.split_first_chunk::<HEADER_BYTES>() else {
        return Err(short());
    };
    let (len, kind) = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
    let body = answer.get(HEADER_BYTES..len as usize).ok_or_else(short)?;
    if kind == NLMSG_ERROR {
        let code = body.first_chunk().map(|code| i32::from_ne_bytes(*code)).ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(code.saturating_neg()));
    }
    Ok((kind, body.to_vec()))
}

/// One attribute.
pub(super) fn attribute(kind: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(4 + data.len()).unwrap_or(u16::MAX);
    let mut attribute = Vec::from(len.to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(data);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// One attribute made of others.
pub(super) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// The attributes in `bytes`, up to the first that is none.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d, ..] = bytes else { return None };
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & KIND_MASK;
        let data = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, data))
    })
}

/// The first attribute of this kind.
pub(super) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, data)| (kind == wanted).then_some(data))
}

/// A number of four bytes.
pub(super) fn number(data: &[u8]) -> Option<u32> {
    data.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Text that ends with a zero.
pub(super) fn text(data: &[u8]) -> String {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    String::from_utf8_lossy(data.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn attributes_survive_and_what_is_cut_off_ends_them() {
        let inner = [attribute(1, b"abc\0"), attribute(2, b"x")].concat();
        let outer = [nested(5, &inner), attribute(6, &7_u32.to_ne_bytes())].concat();
        assert_eq!(text(find(find(&outer, 5).unwrap(), 1).unwrap()), "abc");
        assert_eq!(find(&outer, 6).and_then(number), Some(7));
        for len in 0..outer.len() {
            let whole = outer.get(..len).unwrap();
            assert!(attributes(whole).count() <= 2);
            assert_eq!(find(whole, 6), None, "{len}");
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0, "shorter than its head");
    }

    #[test]
    fn a_refusal_is_the_kernels_error() {
        let mut answer = Vec::from(20_u32.to_ne_bytes());
        answer.extend(NLMSG_ERROR.to_ne_bytes());
        answer.extend([0; 10]);
        answer.extend((-19_i32).to_ne_bytes());
        assert_eq!(parse(&answer).unwrap_err().raw_os_error(), Some(19));
        assert!(parse(&answer[..18]).is_err());
        assert!(parse(&answer[..3]).is_err());
    }
}
