//! Rules about links: between whom, and values that can be reckoned with.

use super::super::error::nearest;
use super::super::{LinkSection, Manifest};
use super::Violation;

/// Link sections, at most: every pair of a hundred nodes.
const LINKS_MAX: usize = 5_000;

pub(super) fn check(manifest: &Manifest) -> Result<(), Violation> {
    let found = manifest.links.len();
    if found > LINKS_MAX {
        let message = format!("the manifest has {found} links, at most {LINKS_MAX} are allowed");
        return Err(Violation::new(format!("link[{LINKS_MAX}]"), message));
    }
    let mut links = manifest.links.iter().enumerate();
    links.try_for_each(|(index, link)| check_one(&format!("link[{index}]"), link, manifest))
}

fn check_one(at: &str, link: &LinkSection, manifest: &Manifest) -> Result<(), Violation> {
    if !matches!(link.nodes.len(), 0 | 2) {
        let message = format!("nodes names {}, expected two", link.nodes.len());
        let advice = "name two nodes, or leave nodes away to mean all links of a class";
        return Err(Violation::new(format!("{at}.nodes"), message).advise(advice));
    }
    for (index, name) in link.nodes.iter().enumerate() {
        let mut known = manifest.nodes.iter().map(|node| node.name.as_str());
        if !known.any(|node| node == name) {
            let known = manifest.nodes.iter().map(|node| node.name.as_str());
            let message = format!("node `{name}` of this link is no node of this cluster");
            let violation = Violation::new(format!("{at}.nodes[{index}]"), message);
            return Err(violation.advise(nearest(name, known)));
        }
    }
    if link.profile().is_sound() {
        return Ok(());
    }
    let message = format!(
        "bytes_per_s {}, latency_s {} and message_s {} do not make a link",
        link.bytes_per_s, link.latency_s, link.message_s
    );
    let advice = "bytes_per_s must be above 0, the others 0 or more";
    Err(Violation::new(format!("{at}.bytes_per_s"), message).advise(advice))
}
