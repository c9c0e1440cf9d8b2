//! Manifests as text: what is read, and where errors point.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::manifest::{CarrierKind, TransportKind};
use crate::request::TextEncoderPolicy;
use crate::request::wire::{Wire, WireDtype};

const GOOD: &str = r#"schema = 1

[cluster]
name = "demo"

[[node]]
name = "a"
control_port = 7000
bulk_ports = [7001, 7010]
[[node.device]]
threads = 2
[[node.device]]

[[node]]
name = "b"
[[node.device]]
cores = [0]

[[group]]
model = "built-in"
degrees = { cfg_degree = 2 }
"#;

fn error(text: &str) -> String {
    from_str(text, "cluster.toml").unwrap_err().to_string()
}

/// The error for `GOOD` with `from` replaced by `to`; only its first line.
fn edited(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    error(&GOOD.replacen(from, to, 1)).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_good_manifest_has_its_values_and_the_defaults() {
    let manifest = from_str(GOOD, "cluster.toml").unwrap();
    assert_eq!(manifest.cluster.name, "demo");
    assert_eq!(manifest.cluster.state_dir, Path::new(".ditmesh"));
    assert_eq!(manifest.device_count(), 3);
    assert_eq!(manifest.nodes[0].bulk_ports, Some((7001, 7010)));
    assert_eq!(manifest.nodes[1].address, "127.0.0.1");
    assert_eq!(manifest.nodes[1].devices[0].cores, [0]);
    assert_eq!(manifest.models[0].name, BUILT_IN);
    assert_eq!(manifest.health, HealthSection::default());
    let degrees = DegreesTable { cfg_degree: 2, ..Default::default() };
    assert_eq!(manifest.groups[0].degrees, DegreesSetting::Fixed(degrees));
}

#[test]
fn the_text_encoder_is_released_unless_asked_otherwise() {
    let named = |line: &str| {
        let model = format!("[[model]]\nname = \"m\"\npath = \"built-in\"\n{line}\n");
        from_str(&format!("{}{model}", GOOD.replace("model = \"built-in\"", "model = \"m\"")), "x")
    };
    let policy = |line| named(line).unwrap().models[0].text_encoder;
    assert_eq!(policy(""), TextEncoderPolicy::Release);
    assert_eq!(policy("text_encoder = \"resident\""), TextEncoderPolicy::Resident);
    let error = named("text_encoder = \"residnt\"").unwrap_err().to_string();
    assert!(error.contains("residnt") && error.contains("resident"), "{error}");
}

#[test]
fn a_manifest_survives_json_as_agents_get_it() {
    let manifest = from_str(GOOD, "cluster.toml").unwrap();
    let json = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    let auto = from_str(&GOOD.replace("{ cfg_degree = 2 }", "\"auto\""), "x").unwrap();
    let json = serde_json::to_string(&auto).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), auto);
}

#[test]
fn one_word_names_the_transport_and_a_table_its_classes_of_links() {
    let with = |line: &str| from_str(&GOOD.replacen("schema = 1", line, 1), "x");
    for (word, kind) in
        [("quic", TransportKind::Quic), ("ucx", TransportKind::Ucx), ("auto", TransportKind::Auto)]
    {
        let table = with(&format!("schema = 1\ntransport = {{ kind = \"{word}\" }}"));
        let table = table.map(|manifest| manifest.transport);
        let plain = with(&format!("schema = 1\ntransport = \"{word}\"")).unwrap().transport;
        assert_eq!(plain.kind, kind);
        assert_eq!(plain, table.unwrap());
    }
    let classes = with("schema = 1\ntransport = { same_host = \"ucx\", other_host = \"quic\" }");
    let classes = classes.unwrap().transport;
    let wanted = (Some(CarrierKind::Ucx), Some(CarrierKind::Quic));
    assert_eq!((classes.same_host, classes.other_host), wanted);
    let said = edited("schema = 1", "schema = 1\ntransport = \"atuo\"");
    assert!(said.contains("`transport` is \"atuo\"") && said.contains("`auto`"), "{said}");
    let said = edited("schema = 1", "schema = 1\ntransport = 7");
    assert!(said.contains("\"quic\", \"ucx\", \"auto\""), "{said}");
}

#[test]
fn an_unknown_key_is_shown_with_its_line_and_the_nearest_name() {
    let text = error(&GOOD.replacen("control_port", "contrl_port", 1));
    let expected = "unknown key `contrl_port` in [[node]] at cluster.toml:8:1; \
                    did you mean `control_port`?\n  |\n8 | contrl_port = 7000\n  | ^^^^^^^^^^^";
    assert_eq!(text, expected);
}

#[test]
fn an_unknown_table_and_a_far_name_list_what_is_known() {
    assert_eq!(
        error("schema = 1\n[clustr]\nname = \"x\"\n").lines().next().unwrap(),
        "unknown key `clustr` in the manifest at cluster.toml:2:2; did you mean `cluster`?"
    );
    assert_eq!(
        edited("name = \"demo\"", "name = \"demo\"\nzzz = 1"),
        "unknown key `zzz` in [cluster] at cluster.toml:5:1; known here: `name`, `state_dir`"
    );
}

#[test]
fn a_misspelt_degree_is_named() {
    assert_eq!(
        edited("cfg_degree = 2", "pipefusion_degre = 2"),
        "unknown key `pipefusion_degre` in [degrees] at cluster.toml:21:13; \
         did you mean `pipefusion_degree`?"
    );
    assert_eq!(
        edited("{ cfg_degree = 2 }", "\"atuo\""),
        "`degrees` is \"atuo\", expected \"auto\" or a table of degrees at cluster.toml:21:11"
    );
    assert_eq!(
        edited("cfg_degree = 2", "cfg_degree = \"two\""),
        "`cfg_degree` is \"two\", expected a whole number from 0 to 4294967295 at \
         cluster.toml:21:26"
    );
}

#[test]
fn wrong_types_and_ranges_say_what_was_expected() {
    assert_eq!(
        edited("control_port = 7000", "control_port = 70000"),
        "`control_port` is 70000, expected a whole number from 0 to 65535 at cluster.toml:8:16"
    );
    assert_eq!(
        edited("[7001, 7010]", "[7001]"),
        "`bulk_ports` is an array of 1, expected two ports: the first and the last at \
         cluster.toml:9:14"
    );
    assert_eq!(
        edited("cores = [0]", "cores = [true]"),
        "`cores` holds an item that is true, expected a whole number from 0 to 4294967295 at \
         cluster.toml:17:10"
    );
    assert_eq!(
        edited("threads = 2", "kind = \"neural\""),
        "`kind` is \"neural\", which is not known at cluster.toml:11:8; known here: `cpu`, `cuda`"
    );
    assert!(
        edited("[cluster]\nname = \"demo\"", "cluster = 3")
            .starts_with("`cluster` is 3, expected a table at cluster.toml:3:11")
    );
}

#[test]
fn missing_keys_point_at_their_table() {
    assert_eq!(
        edited("name = \"b\"\n", ""),
        "[[node]] has no `name` at cluster.toml:14:1; write `name = ...` there"
    );
    assert!(edited("schema = 1", "").starts_with("the manifest has no `schema` at"));
    assert!(error("schema = 1").contains("the manifest has no `cluster`"));
}

#[test]
fn rules_between_values_get_a_place_too() {
    assert_eq!(
        edited("name = \"b\"", "name = \"a\""),
        "node name `a` is taken by node number 1 at cluster.toml:15:8; \
         give each a name of its own"
    );
    assert_eq!(
        edited("cfg_degree = 2", "cfg_degree = 2, pipefusion_degree = 4"),
        "cfg_degree 2 x pipefusion_degree 4 needs 8 devices, and the nodes of this group have 3 \
         at cluster.toml:21:11; cfg_degree 2 would fit, or degrees = \"auto\""
    );
}

#[test]
fn broken_toml_has_a_place() {
    let text = error("schema = 1\n[cluster\n");
    assert!(text.contains("cluster.toml:2:"), "{text}");
    assert!(edited("name = \"b\"", "name = \"b\"\nname = \"c\"").contains("cluster.toml:16:1"));
}

#[test]
fn a_place_survives_any_text() {
    for text in
        ["", "\u{e9}", "a = \"\u{e9}\u{e9}", "[[", "\n\n\t= 3", "schema = 1 # \u{1f34e} \u{0}"]
    {
        assert!(from_str(text, "x").is_err());
    }
}

#[test]
fn paths_are_resolved_against_the_manifests_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cluster.toml");
    let model = "[[model]]\nname = \"m\"\npath = \"models/m\"\n[[model]]\nname = \"built-in\"\n\
                 path = \"built-in\"\n";
    std::fs::write(&path, format!("{GOOD}{model}[security]\ncerts_dir = \"/etc/c\"\n")).unwrap();
    let manifest = load(&path).unwrap();
    assert_eq!(manifest.cluster.state_dir, folder.path().join(".ditmesh"));
    assert_eq!(manifest.models[0].path, folder.path().join("models/m"));
    assert_eq!(manifest.models[1].path, Path::new(BUILT_IN));
    assert_eq!(manifest.security.certs_dir.as_deref(), Some(Path::new("/etc/c")));
}

#[test]
fn unreadable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("no.toml");
    assert!(load(&absent).unwrap_err().to_string().contains("no.toml"));
    assert!(load(folder.path()).is_err());
    let large = folder.path().join("large.toml");
    std::fs::write(&large, vec![b'#'; MANIFEST_BYTES_MAX as usize + 1]).unwrap();
    assert!(load(&large).unwrap_err().to_string().contains("bytes are no manifest"));
}

proptest::proptest! {
    /// Whatever is typed: a manifest or an error with a place, never a panic.
    #[test]
    fn any_edit_of_a_manifest_is_answered(
        at in 0..GOOD.len(),
        cut in 0usize..40,
        insert in "[\\PC\n\t\\[\\]{}=\"0-9]{0,12}",
    ) {
        let end = (at + cut).min(GOOD.len());
        let text = format!("{}{insert}{}", &GOOD[..at], &GOOD[end..]);
        if let Err(error) = from_str(&text, "cluster.toml") {
            let shown = error.to_string();
            proptest::prop_assert!(shown.contains("cluster.toml:"), "{shown}");
        }
    }
}

#[test]
fn what_travels_in_fewer_bytes_is_written_for_all_axes_or_axis_by_axis() {
    let wire = |lines: &str| {
        let text = GOOD.replace("degrees = {", &format!("{lines}\ndegrees = {{"));
        from_str(&text, "x").map(|manifest| manifest.groups[0].wire)
    };
    assert_eq!(wire("").unwrap(), Wire::default());
    let all = wire("wire_dtype = \"bf16\"").unwrap();
    assert_eq!((all.cfg, all.pipefusion), (WireDtype::Bf16, WireDtype::Bf16));
    let some = wire(
        "wire_dtype = { ulysses = \"int8\", pipefusion = \"f16\" }\nwire_residual = true\n\
         wire_refresh_every = 4",
    );
    let some = some.unwrap();
    assert_eq!((some.ulysses, some.pipefusion), (WireDtype::Int8, WireDtype::F16));
    assert_eq!((some.ring, some.residual, some.refresh_every), (WireDtype::F32, true, 4));
    for (lines, part) in [
        ("wire_dtype = \"int4\"", "int8"),
        ("wire_dtype = { data = \"int8\" }", "data"),
        ("wire_residual = 1", "true or false"),
        ("wire_residual = true", "saves nothing"),
    ] {
        let error = wire(lines).unwrap_err().to_string();
        assert!(error.contains(part), "{lines}: {error}");
    }
}
