//! Which of QUIC and UCX carries the frames of one link.
//!
//! Owns the rule; pure, and the same at both ends, since it looks at the two offers only. Does not
//! own the means: whether there is a worker is in the offers. Invariants: `auto` never fails and
//! never lets frames cross hosts unencrypted; what was demanded is used or an error says why not.

use crate::error::TransportError;
use crate::frame::{DeviceOffer, LaneOffer};

/// What a link class is to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LaneChoice {
    /// QUIC, encrypted.
    #[default]
    Quic,
    /// UCX, not encrypted, or no link at all.
    Ucx,
    /// UCX shared memory within a host where it is there, else QUIC.
    Auto,
}

impl LaneChoice {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Quic => 0,
            Self::Ucx => 1,
            Self::Auto => 2,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            0 => Self::Quic,
            1 => Self::Ucx,
            _ => Self::Auto,
        }
    }
}

/// The outcome for one link, with the reason that people are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    Quic(String),
    Ucx(String),
}

/// Decides between two offers; `choose(a, b)` and `choose(b, a)` choose the same.
pub(super) fn choose(ours: &LaneOffer, theirs: &LaneOffer) -> Result<Chosen, TransportError> {
    use LaneChoice::{Auto, Quic, Ucx};
    let wants = (LaneChoice::of(ours.choice), LaneChoice::of(theirs.choice));
    match wants {
        (Quic, Quic) => return Ok(Chosen::Quic("the manifest says so".to_owned())),
        (Quic, Auto) | (Auto, Quic) => {
            return Ok(Chosen::Quic("one end is to use nothing else".to_owned()));
        }
        (Quic, Ucx) | (Ucx, Quic) => {
            let name = |choice| if choice == Quic { "quic" } else { "ucx" };
            return Err(TransportError::mismatch("transports", name(wants.0), name(wants.1)));
        }
        (Auto, _) | (_, Auto) | (Ucx, Ucx) => {}
    }
    let demanded = wants.0 == Ucx || wants.1 == Ucx;
    if !demanded && !ours.same_host && !theirs.same_host {
        return Ok(Chosen::Quic("auto encrypts what crosses hosts".to_owned()));
    }
    match obstacle(ours, theirs) {
        Some(cause) if demanded => {
            Err(TransportError::Ucx { what: "carry the frames of a link".to_owned(), cause })
        }
        Some(cause) => Ok(Chosen::Quic(cause)),
        None if demanded => Ok(Chosen::Ucx("the manifest says so".to_owned())),
        None => Ok(Chosen::Ucx("both ends are on one host and have UCX".to_owned())),
    }
}

/// Whether frames go from the memory of one end's device to that of the other's.
pub(super) fn is_direct(ours: &DeviceOffer, theirs: &DeviceOffer) -> bool {
    (ours, theirs) == (&DeviceOffer::Direct, &DeviceOffer::Direct)
}

/// What becomes of frames between two devices, to follow the reason for the carrier.
pub(super) fn device_words(ours: &DeviceOffer, theirs: &DeviceOffer) -> String {
    match (ours, theirs) {
        (DeviceOffer::Direct, DeviceOffer::Direct) => "; device memory direct".to_owned(),
        (DeviceOffer::Staged(why), DeviceOffer::Direct | DeviceOffer::Staged(_)) => {
            format!("; device memory staged, because here: {why}")
        }
        (DeviceOffer::Direct, DeviceOffer::Staged(why)) => {
            format!("; device memory staged, because there: {why}")
        }
        // At most one end has a device: nothing goes from one to the other.
        (DeviceOffer::NoDevice, _) | (_, DeviceOffer::NoDevice) => String::new(),
    }
}

fn obstacle(ours: &LaneOffer, theirs: &LaneOffer) -> Option<String> {
    if ours.same_host != theirs.same_host {
        let cause = "only one of the two ends takes the other for its own host";
        return Some(cause.to_owned());
    }
    if ours.same_host && ours.host != theirs.host {
        let cause = "the two ends have one address, but not one host, user and set of namespaces";
        return Some(cause.to_owned());
    }
    let without = |offer: &LaneOffer| offer.address.is_empty().then(|| offer.cause.clone());
    match (without(ours), without(theirs)) {
        (None, None) => None,
        (Some(here), None) => Some(format!("this end has no UCX: {here}")),
        (None, Some(there)) => Some(format!("the other end has no UCX: {there}")),
        (Some(here), Some(_)) => Some(format!("neither end has UCX: {here}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn offer(choice: LaneChoice, same_host: bool, host: u8, address: bool) -> LaneOffer {
        LaneOffer {
            nonce: [host; 16],
            host: [host; 16],
            same_host,
            choice: choice.code(),
            address: if address { vec![1] } else { Vec::new() },
            cause: if address { String::new() } else { "libucp is missing".to_owned() },
            device: DeviceOffer::NoDevice,
        }
    }

    fn any_offer() -> impl Strategy<Value = LaneOffer> {
        let choices = [LaneChoice::Quic, LaneChoice::Ucx, LaneChoice::Auto];
        (proptest::sample::select(choices.to_vec()), any::<bool>(), 0_u8..2, any::<bool>())
            .prop_map(|(choice, same, host, address)| offer(choice, same, host, address))
    }

    proptest! {
        #[test]
        fn both_ends_choose_the_same(one in any_offer(), two in any_offer()) {
            let (here, there) = (choose(&one, &two), choose(&two, &one));
            match (here, there) {
                (Ok(Chosen::Ucx(_)), Ok(Chosen::Ucx(_))) => {
                    prop_assert!(!one.address.is_empty() && !two.address.is_empty());
                    prop_assert!(!one.same_host || one.host == two.host);
                }
                (Ok(Chosen::Quic(_)), Ok(Chosen::Quic(_))) | (Err(_), Err(_)) => {}
                (here, there) => prop_assert!(false, "{here:?} and {there:?}"),
            }
        }

        #[test]
        fn auto_never_fails_and_never_crosses_hosts(two in any_offer()) {
            let one = offer(LaneChoice::Auto, false, 0, true);
            if two.choice == LaneChoice::Auto.code() {
                prop_assert!(matches!(choose(&one, &two), Ok(Chosen::Quic(_))));
            }
        }
    }

    #[test]
    fn auto_takes_shared_memory_where_it_is_and_says_why_not_where_it_is_not() {
        let here = offer(LaneChoice::Auto, true, 1, true);
        assert!(matches!(choose(&here, &here), Ok(Chosen::Ucx(_))));
        let missing = choose(&here, &offer(LaneChoice::Auto, true, 1, false)).unwrap();
        assert!(matches!(missing, Chosen::Quic(why) if why.contains("libucp is missing")));
        let elsewhere = choose(&here, &offer(LaneChoice::Auto, true, 2, true)).unwrap();
        assert!(matches!(elsewhere, Chosen::Quic(why) if why.contains("namespaces")));
    }

    #[test]
    fn what_was_demanded_is_used_or_missed() {
        let ucx = offer(LaneChoice::Ucx, false, 1, true);
        assert!(matches!(choose(&ucx, &ucx), Ok(Chosen::Ucx(_))));
        let error = choose(&ucx, &offer(LaneChoice::Ucx, false, 2, false)).unwrap_err();
        assert!(error.to_string().contains("libucp is missing"), "{error}");
        let error = choose(&ucx, &offer(LaneChoice::Quic, false, 2, false)).unwrap_err();
        assert!(matches!(error, TransportError::Mismatch { .. }), "{error}");
    }

    #[test]
    fn device_memory_is_direct_only_where_both_ends_take_it_and_both_say_so() {
        let staged = DeviceOffer::Staged("no modules".to_owned());
        let offers = [DeviceOffer::NoDevice, DeviceOffer::Direct, staged];
        for (one, ours) in offers.iter().enumerate() {
            for (two, theirs) in offers.iter().enumerate() {
                let words = device_words(ours, theirs);
                assert_eq!(is_direct(ours, theirs), words == "; device memory direct");
                assert_eq!(words.is_empty(), one == 0 || two == 0, "{words}");
                assert_eq!(words.contains("because"), one * two > 1, "{words}");
                assert_eq!(is_direct(ours, theirs), is_direct(theirs, ours));
            }
        }
    }
}
