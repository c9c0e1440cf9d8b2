//! A disk that is full where the picture should go: the command says so, the cluster has lost
//! nothing, and what was there stays.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli_process::ditmesh;
use crate::cluster_harness::{Cluster, Settings, short_request};
use crate::cluster_weights::own_mounts;

/// What a script did.
struct Said {
    code: Option<i32>,
    /// Files that are on the full disk afterwards.
    left: Vec<String>,
    errors: String,
}

/// Runs `ditmesh` with the folder `full` on a disk that has no room.
fn with_full_disk(mounts: &str, folder: &Path, args: &[&str]) -> Said {
    let script = "mount -t tmpfs -o size=4k none full && head -c 4096 /dev/zero > full/old.png\n\
                  \"$0\" \"$@\" > /dev/null; code=$?; ls -A full; exit $code";
    let mut command = Command::new("unshare");
    command.args([mounts, "sh", "-c", script, env!("CARGO_BIN_EXE_ditmesh")]).args(args);
    let output = command.current_dir(folder).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said {
        code: output.status.code(),
        left: text(output.stdout).lines().map(str::to_owned).collect(),
        errors: text(output.stderr),
    }
}

#[test]
fn a_full_disk_is_said_and_costs_nothing_but_the_picture() {
    let Some(mounts) = own_mounts() else { return };
    let cluster = Cluster::up(Settings::default());
    std::fs::create_dir(cluster.folder().join("full")).unwrap();
    let draw = ["generate", "--cluster", "cluster.toml", "-p", "a red apple", "--steps", "2"];
    // A new picture, one in the place of an old one, and the report of one that is saved elsewhere.
    let nowhere: [(&[&str], &str); 3] = [
        (&["-o", "full/new.png"], "full/new.png"),
        (&["-o", "full/old.png"], "full/old.png"),
        (&["-o", "saved.png", "--report", "full/report.json"], "full/report.json"),
    ];
    for (more, file) in nowhere {
        let said = with_full_disk(mounts, cluster.folder(), &[&draw[..], more].concat());
        assert_eq!(said.code, Some(1), "{}", said.errors);
        let expected = format!("error: cannot write {file}: No space left on device");
        assert_eq!(said.errors.matches("error: ").count(), 1, "{}", said.errors);
        assert!(said.errors.contains(&expected), "{}", said.errors);
        assert_eq!(said.left, ["old.png"], "something half-written stays");
    }
    assert!(cluster.folder().join("saved.png").exists(), "the picture has room");
    let status = cluster.status();
    assert_eq!((status.running, status.queued), (0, 0), "{status:?}");
    cluster.client().generate(short_request()).blocking_finish().unwrap();
}

/// What is no file (a pipe, a device) is not replaced by one.
#[test]
fn a_pipe_is_no_place_for_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.png");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["generate", "-p", "a red apple", "-o", "pipe.png"];
    ditmesh(folder.path(), &args).refused(2, &["pipe.png", "is not a file"]);
    assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
}
