//! A disk that is full where the picture should go: the command says so, the cluster has lost
//! nothing, and what was there stays.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};

use ditmesh::{GenerateError, GenerateRequest};
use ditmesh_actors::launcher::record::RunFolder;

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

/// The disk of the coordinator's journal is full: a request is not accepted and says so, whatever
/// was accepted goes on, and others are taken once there is room.
#[test]
fn a_request_that_the_journal_has_no_room_for_is_not_accepted() {
    let Some(mounts) = own_mounts() else { return };
    let cluster = Cluster::new(Settings::default());
    let journal = RunFolder::of(&cluster.manifest).path().join("coordinator");
    std::fs::create_dir_all(&journal).unwrap();
    let script = "mount -t tmpfs -o size=256k none \"$1\" && exec \"$0\" up --detach";
    let mut up = Command::new("unshare");
    up.args([mounts, "sh", "-c", script, env!("CARGO_BIN_EXE_ditmesh")]).arg(&journal);
    let up = up.current_dir(cluster.folder()).stdin(Stdio::null()).output().unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let (client, agent) = (cluster.client(), cluster.status().nodes[0].process);
    client.generate(short_request()).blocking_finish().unwrap();
    // The disk as that process sees it.
    let seen = format!("/proc/{agent}/root{}", journal.canonicalize().unwrap().display());
    let ballast = Path::new(&seen).join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).expect_err("it is full");
    // More than what is left of the journal's last page.
    let large = GenerateRequest { prompt: "a red apple".repeat(1000), ..short_request() };
    let refused = client.generate(large).blocking_finish().map(drop).unwrap_err();
    let GenerateError::NotAccepted(cause) = &refused else { panic!("{refused:?}") };
    assert!(cause.contains("journal") && cause.contains("No space left"), "{cause}");
    assert_eq!((cluster.status().queued, cluster.status().running), (0, 0));
    std::fs::remove_file(ballast).unwrap();
    client.generate(short_request()).blocking_finish().unwrap();
    assert_eq!(cluster.status().nodes[0].process, agent, "the same coordinator");
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
