//! The network interface of this host through which a peer is reached: name, frame size, offloads;
//! and how many packets of UDP this host's kernel takes at once.
//!
//! Owns the three questions to the kernel (route, link, ethtool's features), by netlink, without
//! another program and without rights. Changes nothing.

mod netlink;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use netlink::{Netlink, attribute, attributes, find, nested, number, text};

const NETLINK_ROUTE: i32 = 0;
const NETLINK_GENERIC: i32 = 16;

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
/// Fixed fields in front of attributes, in bytes.
const ROUTE_BYTES: usize = 12;
const LINK_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const GENL_ID_CTRL: u16 = 16;
const CTRL_GETFAMILY: u8 = 3;
const CTRL_FAMILY_ID: u16 = 1;
const CTRL_FAMILY_NAME: u16 = 2;
const ETHTOOL_FEATURES_GET: u8 = 11;
const FEATURES_HEADER: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_DEVICE_NAME: u16 = 2;
const BITSET_NOMASK: u16 = 1;
const BITSET_BITS: u16 = 3;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// As `ip link` shows it.
    pub name: String,
    /// Largest frame, without its Ethernet header, in bytes.
    pub mtu_bytes: u32,
    /// What kind of virtual device it is, as `ip -d link` shows it (`veth`, `bridge`); `None` for
    /// hardware and the loopback device.
    pub kind: Option<String>,
    /// Names of the offloads that are on, as `ethtool -k` shows them with their kernel names;
    /// `None` where the kernel does not tell.
    pub features: Option<BTreeSet<String>>,
}

impl Interface {
    /// The one through which packets to `peer` leave.
    ///
    /// # Errors
    /// When there is no way to `peer`, or the kernel does not tell.
    pub fn towards(peer: IpAddr) -> io::Result<Self> {
        let silent = |what: &str| io::Error::other(format!("the kernel does not tell {what}"));
        let kernel = Netlink::open(NETLINK_ROUTE)?;
        let (_, route) = kernel.ask(RTM_GETROUTE, &route_to(peer))?;
        let index = route.get(ROUTE_BYTES..).and_then(|found| find(found, RTA_OIF));
        let index = index.and_then(number).ok_or_else(|| silent("the device of a route"))?;
        let which = [&[0; 4][..], &index.to_ne_bytes(), &[0; LINK_BYTES - 8]].concat();
        let (_, link) = kernel.ask(RTM_GETLINK, &which)?;
        let link = link.get(LINK_BYTES..).unwrap_or_default();
        let name = find(link, IFLA_IFNAME).map(text).ok_or_else(|| silent("a device's name"))?;
        let mtu = find(link, IFLA_MTU).and_then(number);
        let mtu_bytes = mtu.ok_or_else(|| silent("a device's frame size"))?;
        let features = features(&name).ok();
        Ok(Self { name, mtu_bytes, kind: kind(link), features })
    }
}

/// What kind of virtual device the attributes of a link tell of.
fn kind(link: &[u8]) -> Option<String> {
    find(find(link, IFLA_LINKINFO)?, IFLA_INFO_KIND).map(text)
}

/// Packets that pass in one system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSegments {
    /// By segmentation offload (GSO); 1 without.
    pub sent_at_once: usize,
    /// By receive offload (GRO); 1 without.
    pub received_at_once: usize,
}

/// What UDP sockets of this host can do.
///
/// # Errors
/// When none can be opened.
pub fn udp_segments() -> io::Result<UdpSegments> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let state = quinn_udp::UdpSocketState::new((&socket).into())?;
    let (sent_at_once, received_at_once) = (state.max_gso_segments(), state.gro_segments());
    Ok(UdpSegments { sent_at_once, received_at_once })
}

fn route_to(peer: IpAddr) -> Vec<u8> {
    let (family, address) = match peer {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let bits = u8::try_from(address.len() * 8).unwrap_or(u8::MAX);
    let mut question = vec![family, bits];
    question.resize(ROUTE_BYTES, 0);
    question.extend(attribute(RTA_DST, &address));
    question
}

/// The offloads of a device that are on.
fn features(device: &str) -> io::Result<BTreeSet<String>> {
    let kernel = Netlink::open(NETLINK_GENERIC)?;
    let named = |name: &str| [name.as_bytes(), &[0]].concat();
    let mut question = vec![CTRL_GETFAMILY, 1, 0, 0];
    question.extend(attribute(CTRL_FAMILY_NAME, &named("ethtool")));
    let (_, family) = kernel.ask(GENL_ID_CTRL, &question)?;
    let id = family.get(GENERIC_BYTES..).and_then(|found| find(found, CTRL_FAMILY_ID));
    let id = id.and_then(|id| id.first_chunk()).map(|id| u16::from_ne_bytes(*id));
    let id = id.ok_or_else(|| io::Error::other("the kernel has no ethtool over netlink"))?;
    let mut question = vec![ETHTOOL_FEATURES_GET, 1, 0, 0];
    let header = attribute(HEADER_DEVICE_NAME, &named(device));
    question.extend(nested(FEATURES_HEADER, &header));
    let (_, found) = kernel.ask(id, &question)?;
    let active = found.get(GENERIC_BYTES..).and_then(|found| find(found, FEATURES_ACTIVE));
    Ok(set_bits(active.unwrap_or_default()))
}

/// Names of the bits of a set that are 1: all that are listed where it has no mask.
fn set_bits(set: &[u8]) -> BTreeSet<String> {
    let all = find(set, BITSET_NOMASK).is_some();
    let bits = attributes(find(set, BITSET_BITS).unwrap_or_default());
    let on = bits.filter(|(_, bit)| all || find(bit, BIT_VALUE).is_some());
    on.filter_map(|(_, bit)| find(bit, BIT_NAME).map(text)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_way_to_this_host_is_the_loopback_device() {
        for peer in ["127.0.0.1", "127.0.0.9"] {
            let found = Interface::towards(peer.parse().unwrap()).unwrap();
            assert_eq!(found.name, "lo");
            let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
            assert_eq!(found.mtu_bytes.to_string(), mtu.trim());
            assert_eq!(found.kind, None);
        }
    }

    #[test]
    fn a_virtual_device_tells_its_kind() {
        let name = attribute(IFLA_IFNAME, b"eth0\0");
        let info = nested(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0"));
        assert_eq!(kind(&[name.clone(), info].concat()).as_deref(), Some("veth"));
        assert_eq!(kind(&name), None);
    }

    #[test]
    fn bits_that_are_off_are_left_out() {
        let bit = |name: &str, on: bool| {
            let mut bit = attribute(BIT_NAME, &[name.as_bytes(), &[0]].concat());
            if on {
                bit.extend(attribute(BIT_VALUE, &[]));
            }
            nested(1, &bit)
        };
        let bits = nested(BITSET_BITS, &[bit("rx-gro", true), bit("tx-gso", false)].concat());
        assert_eq!(set_bits(&bits), BTreeSet::from(["rx-gro".to_owned()]));
        let unmasked = [attribute(BITSET_NOMASK, &[]), bits].concat();
        assert_eq!(set_bits(&unmasked).len(), 2);
        assert!(set_bits(&[]).is_empty());
    }
}
