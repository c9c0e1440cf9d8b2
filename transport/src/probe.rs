//! Asking a UDP port from outside: whether anybody who speaks QUIC listens there, and how large a
//! packet gets there whole.
//!
//! Owns the question: a packet of a version that no QUIC speaks. Whoever speaks QUIC answers it
//! with the versions it knows (RFC 9000, section 6), without a certificate and without keeping
//! anything. The question may be padded and is never fragmented; the answer is small, so only the
//! way there is measured. Invariant: every wait is bounded.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::errno::Errno;

/// The smallest question that is answered, in bytes.
pub const PROBE_BYTES_MIN: usize = 1200;

/// How often is asked before a port counts as silent.
pub const ASKS_MAX: u32 = 3;

/// How long an answer may take when nothing is known of the way.
pub const ANSWER_MAX: Duration = Duration::from_millis(500);

/// The same when the way is known to take a fraction of it, at least.
const KNOWN_ANSWER_MIN: Duration = Duration::from_millis(50);

/// How exactly the largest packet is sought, in bytes.
const EXACT_BYTES: usize = 16;

/// UDP payload of a packet on a network of 1500-byte frames: the likeliest limit.
const PLAIN_BYTES: usize = 1472;

/// A version that no QUIC speaks: servers must answer it.
const NO_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

/// A port that nobody has (discard): a host that is up says so, unless it drops packets.
const NOBODYS_PORT: u16 = 9;

/// What came back from a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Somebody who speaks QUIC: the way there and back is open.
    Listens(Duration),
    /// The host says that nobody listens. A firewall that rejects politely says the same.
    NobodyListens,
    /// Somebody on the way, or this host itself, says that packets may not pass.
    Rejected(String),
    /// The packet does not fit: this host's device or somebody on the way says so.
    TooLarge,
    /// Nothing.
    Silent,
}

/// Asks `address` with a packet of `bytes` bytes.
///
/// # Errors
/// When this host has no socket for that.
pub fn ask(address: SocketAddr, bytes: usize, wait: Duration) -> io::Result<Answer> {
    let socket = connected(address)?;
    socket.set_read_timeout(Some(wait))?;
    let question = question(bytes);
    for _ in 0..ASKS_MAX {
        let begun = Instant::now();
        let mut answer = [0; 256];
        match socket.send(&question).and_then(|_| socket.recv(&mut answer)) {
            // Version negotiation: a long header of version 0.
            Ok(5..) if answer[0] & 0x80 != 0 && answer[1..5] == [0; 4] => {
                return Ok(Answer::Listens(begun.elapsed()));
            }
            Ok(_) => {}
            Err(error) => match meaning(&error) {
                Some(Answer::Silent) => {}
                Some(answer) => return Ok(answer),
                None => return Err(error),
            },
        }
    }
    Ok(Answer::Silent)
}

/// Whether the host itself is heard: it answers at a port that nobody has, by saying so.
///
/// # Errors
/// As [`ask`].
pub fn host_answers(ip: IpAddr) -> io::Result<bool> {
    let answer = ask(SocketAddr::new(ip, NOBODYS_PORT), PROBE_BYTES_MIN, ANSWER_MAX)?;
    Ok(matches!(answer, Answer::Listens(_) | Answer::NobodyListens))
}

/// The largest UDP payload up to `most` bytes that gets to `address`, to 16 bytes; `None` when
/// nobody answers there.
///
/// # Errors
/// As [`ask`].
pub fn largest_payload(address: SocketAddr, most: usize) -> io::Result<Option<usize>> {
    let Answer::Listens(round_trip) = ask(address, PROBE_BYTES_MIN, ANSWER_MAX)? else {
        return Ok(None);
    };
    let wait = (round_trip * 8).clamp(KNOWN_ANSWER_MIN, ANSWER_MAX);
    let passes = |bytes| ask(address, bytes, wait).map(|it| matches!(it, Answer::Listens(_)));
    largest(most, passes).map(Some)
}

/// The largest size up to `most` that `passes`; the smallest is known to.
fn largest(most: usize, mut passes: impl FnMut(usize) -> io::Result<bool>) -> io::Result<usize> {
    if most <= PROBE_BYTES_MIN || passes(most)? {
        return Ok(most);
    }
    let (mut low, mut high) = (PROBE_BYTES_MIN, most);
    let mut guesses = [PLAIN_BYTES, PLAIN_BYTES + EXACT_BYTES].into_iter();
    while high - low > EXACT_BYTES {
        let guess = guesses.next().filter(|guess| (low + 1..high).contains(guess));
        let middle = guess.unwrap_or_else(|| low.midpoint(high));
        match passes(middle)? {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(low)
}

/// A socket whose packets are not fragmented.
fn connected(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Made ready as a bulk socket is, it tells what does not fit instead of cutting it up.
    quinn_udp::UdpSocketState::new((&socket).into())?;
    socket.set_nonblocking(false)?;
    socket.connect(address)?;
    Ok(socket)
}

fn question(bytes: usize) -> Vec<u8> {
    let mut question = vec![0; bytes.max(PROBE_BYTES_MIN)];
    let front = [&[0xc0][..], &NO_VERSION, &[8], b"ditmesh?", &[8], b"ditmesh!"].concat();
    question.iter_mut().zip(&front).for_each(|(to, from)| *to = *from);
    question
}

/// What the system's error says of the way; `None` where it says nothing of it.
fn meaning(error: &io::Error) -> Option<Answer> {
    if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) {
        return Some(Answer::TooLarge);
    }
    Some(match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Answer::Silent,
        ErrorKind::ConnectionRefused => Answer::NobodyListens,
        ErrorKind::PermissionDenied
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown => Answer::Rejected(error.to_string()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn silence_a_closed_port_and_a_packet_too_large_are_told_apart() {
        let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = mute.local_addr().unwrap();
        assert_eq!(ask(address, PROBE_BYTES_MIN, SOON).unwrap(), Answer::Silent);
        assert!(host_answers(address.ip()).unwrap());
        drop(mute);
        assert_eq!(ask(address, PROBE_BYTES_MIN, SOON).unwrap(), Answer::NobodyListens);
        assert_eq!(ask(address, 65_520, SOON).unwrap(), Answer::TooLarge);
    }

    #[test]
    fn only_a_version_negotiation_is_an_answer() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let address = server.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let mut packet = [0; 2048];
            for answer in [&b"hello, who is there?"[..], &[0x80, 0, 0, 0, 0, 8, 1]] {
                let (len, from) = server.recv_from(&mut packet).unwrap();
                assert_eq!((len, &packet[1..5]), (1300, &NO_VERSION[..]));
                server.send_to(answer, from).unwrap();
            }
        });
        let answer = ask(address, 1300, Duration::from_secs(5)).unwrap();
        assert!(matches!(answer, Answer::Listens(_)), "{answer:?}");
        answering.join().unwrap();
    }

    #[test]
    fn the_largest_is_found_in_few_tries_and_the_likeliest_first() {
        for (most, limit) in [(8952, 8952), (8952, 1472), (8952, 1372), (8952, 4000), (1472, 1201)]
        {
            let mut asked = Vec::new();
            let found = largest(most, |bytes| {
                asked.push(bytes);
                Ok(bytes <= limit)
            });
            let found = found.unwrap();
            assert!(found <= limit && limit - found <= EXACT_BYTES, "{limit}: {found}");
            assert!(asked.len() <= 12, "{limit}: {asked:?}");
            if limit == PLAIN_BYTES {
                assert_eq!(asked, [8952, 1472, 1488]);
                assert_eq!(found, limit);
            }
        }
    }
}
