//! Rules about groups: which nodes serve which model, and whether the degrees fit their devices.

use super::super::error::nearest;
use super::super::{DegreesSetting, GroupSection, Manifest};
use super::Violation;
use crate::plan::batch::BATCH_IMAGES_MAX;
use crate::request::Degrees;

/// Groups that this version runs.
const GROUPS_MAX: usize = 1;

pub(super) fn check(manifest: &Manifest) -> Result<(), Violation> {
    let found = manifest.groups.len();
    if found > GROUPS_MAX {
        let message = format!("this version runs one group, and the manifest has {found}");
        let advice = "keep one; other models need a manifest of their own";
        return Err(Violation::new(format!("group[{GROUPS_MAX}]"), message).advise(advice));
    }
    for (index, group) in manifest.groups.iter().enumerate() {
        let at = format!("group[{index}]");
        model(&at, group, manifest)?;
        let devices = nodes(&at, group, manifest)?;
        if !(1..=BATCH_IMAGES_MAX as u32).contains(&group.max_batch) {
            let what = format!("max_batch is {}", group.max_batch);
            let message = format!("{what}, expected 1 to {BATCH_IMAGES_MAX}");
            return Err(Violation::new(format!("{at}.max_batch"), message)
                .advise("1 computes every request alone"));
        }
        let wire = group.wire.check();
        wire.map_err(|why| Violation::new(format!("{at}.wire_residual"), why))?;
        if let DegreesSetting::Fixed(table) = group.degrees {
            let degrees = Degrees::from(table);
            degree_values(&format!("{at}.degrees"), degrees)?;
            product(&format!("{at}.degrees"), degrees, devices)?;
        }
    }
    Ok(())
}

fn model(at: &str, group: &GroupSection, manifest: &Manifest) -> Result<(), Violation> {
    let names = || manifest.models.iter().map(|model| model.name.as_str());
    if names().any(|name| name == group.model) {
        return Ok(());
    }
    let message = format!("model `{}` of this group is no [[model]] of this cluster", group.model);
    let advice = nearest(&group.model, names());
    Err(Violation::new(format!("{at}.model"), message).advise(advice))
}

/// Checks the group's nodes and counts their devices.
fn nodes(at: &str, group: &GroupSection, manifest: &Manifest) -> Result<usize, Violation> {
    for (index, name) in group.nodes.iter().enumerate() {
        let at = format!("{at}.nodes[{index}]");
        if !manifest.nodes.iter().any(|node| node.name == *name) {
            let known = manifest.nodes.iter().map(|node| node.name.as_str());
            let message = format!("node `{name}` of this group is no node of this cluster");
            return Err(Violation::new(at, message).advise(nearest(name, known)));
        }
        if group.nodes[..index].contains(name) {
            return Err(Violation::new(at, format!("node `{name}` is listed twice in this group")));
        }
    }
    let serves = |name: &String| group.nodes.is_empty() || group.nodes.contains(name);
    let nodes = manifest.nodes.iter().filter(|node| serves(&node.name));
    Ok(nodes.map(|node| node.devices.len()).sum())
}

fn degree_values(at: &str, degrees: Degrees) -> Result<(), Violation> {
    let named = [
        ("cfg_degree", degrees.cfg_degree),
        ("pipefusion_degree", degrees.pipefusion_degree),
        ("ulysses_degree", degrees.ulysses_degree),
        ("ring_degree", degrees.ring_degree),
        ("data_degree", degrees.data_degree),
    ];
    for (name, degree) in named {
        let violation = |message: String| Violation::new(format!("{at}.{name}"), message);
        if degree == 0 {
            return Err(violation(format!("{name} is 0, expected at least 1"))
                .advise("1 switches the method off"));
        }
        if name == "cfg_degree" && degree > 2 {
            return Err(violation(format!("cfg_degree is {degree}, expected 1 or 2"))
                .advise("guidance has two branches"));
        }
    }
    Ok(())
}

fn product(at: &str, degrees: Degrees, devices: usize) -> Result<(), Violation> {
    let named = [
        ("cfg_degree", degrees.cfg_degree),
        ("pipefusion_degree", degrees.pipefusion_degree),
        ("ulysses_degree", degrees.ulysses_degree),
        ("ring_degree", degrees.ring_degree),
        ("data_degree", degrees.data_degree),
    ];
    let needed =
        named.iter().try_fold(1usize, |product, (_, degree)| product.checked_mul(*degree as usize));
    if needed.is_some_and(|needed| needed <= devices) {
        return Ok(());
    }
    let text = |values: &[(&str, u32)]| {
        let written = values.iter().filter(|(_, degree)| *degree > 1);
        let written: Vec<_> = written.map(|(name, degree)| format!("{name} {degree}")).collect();
        if written.is_empty() { "all degrees 1".to_owned() } else { written.join(" x ") }
    };
    let needed = needed.map_or("more than all".to_owned(), |needed| needed.to_string());
    let message = format!(
        "{} needs {needed} devices, and the nodes of this group have {devices}",
        text(&named)
    );
    let advice = format!("{} would fit, or degrees = \"auto\"", text(&fitting(named, devices)));
    Err(Violation::new(at, message).advise(advice))
}

/// The degrees cut down, replicas first and guidance last, until they fit.
fn fitting<const N: usize>(mut named: [(&str, u32); N], devices: usize) -> [(&str, u32); N] {
    let mut left = devices.max(1);
    for slot in [0, 2, 3, 1, 4] {
        if let Some((_, degree)) = named.get_mut(slot) {
            let kept = (*degree as usize).min(left);
            left /= kept;
            *degree = kept as u32;
        }
    }
    named
}
