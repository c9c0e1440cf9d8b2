//! Rules of the house that a compiler does not check: the direction of dependencies, where `unsafe`
//! may stand, how files begin and how long they get.

use std::path::{Path, PathBuf};

/// Lines of a source file, its tests apart.
const FILE_LINES_MAX: usize = 600;

/// Where `unsafe` may stand: kernels, the mapping of weight files, memory for packets, UCX.
const UNSAFE_ALLOWED: [&str; 6] = [
    "model/src/kernels/",
    "model/src/cuda/",
    "model/src/checkpoint/mapping.rs",
    "transport/src/stack/slots.rs",
    "transport/src/ucx/",
    "transport/ucx-sys/src/",
];

/// Made by a program and read by nobody.
const GENERATED: [&str; 1] = ["transport/ucx-sys/src/bindings.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, as paths from the root.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!files.is_empty(), "{folder} has no sources");
    files
}

fn all_sources() -> impl Iterator<Item = (String, String)> {
    let folders = ["src", "actors/src", "model/src", "transport/src", "transport/ucx-sys/src"];
    let written = |(name, _): &(String, String)| !GENERATED.contains(&name.as_str());
    folders.into_iter().flat_map(sources).filter(written)
}

#[test]
fn layers_depend_downwards_only() {
    let forbidden: [(&str, &[&str]); 2] = [
        ("model", &["tokio", "quinn", "ractor", "ditmesh_transport", "ditmesh_actors"]),
        ("transport", &["candle_core", "ractor", "ditmesh_model", "ditmesh_actors"]),
    ];
    for (layer, names) in forbidden {
        let manifest = std::fs::read_to_string(root().join(layer).join("Cargo.toml")).unwrap();
        for name in names {
            let package = name.replace('_', "-");
            let depends = manifest.lines().any(|line| line.starts_with(&package));
            assert!(!depends, "{layer}/Cargo.toml depends on {package}");
            for (file, text) in sources(&format!("{layer}/src")) {
                let mention = format!("{name}::");
                assert!(!text.contains(&mention), "{file} uses {name}");
            }
        }
    }
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    for (file, text) in all_sources() {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            if line.starts_with("//") || !line.contains("unsafe {") {
                continue;
            }
            let allowed = UNSAFE_ALLOWED.iter().any(|place| file.starts_with(place));
            assert!(allowed, "{file}:{} is unsafe outside {UNSAFE_ALLOWED:?}", number + 1);
            let before = &lines[number.saturating_sub(8)..=number];
            let reason = before.iter().any(|line| line.contains("SAFETY"));
            assert!(reason, "{file}:{} is unsafe without a SAFETY reason", number + 1);
        }
    }
}

#[test]
fn files_say_what_they_own_and_are_read_in_one_sitting() {
    for (file, text) in all_sources() {
        assert!(text.starts_with("//!"), "{file} does not open with what it owns");
        assert!(!file.ends_with("/mod.rs"), "{file}: name it after its module");
        let lines = text.split("\nmod tests {").next().unwrap_or_default().lines().count();
        let is_test = file.ends_with("tests.rs") || file.contains("/tests/");
        assert!(is_test || lines <= FILE_LINES_MAX, "{file} has {lines} lines");
    }
}
