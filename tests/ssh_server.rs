//! A real sshd of a test's own: on loopback, on a free port, with keys of its own.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cluster_harness::wait_until;

/// Hosts that it answers as.
pub(crate) const HOSTS: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

/// The server, ended with the test.
pub(crate) struct SshServer {
    folder: TempDir,
    child: Child,
    port: u16,
}

impl SshServer {
    /// Starts it; `None`, with the reason on stderr, where there is none and none is required.
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = find("sshd") else {
            let required = std::env::var_os("DITMESH_TEST_SSH").is_some();
            assert!(!required, "no sshd: install openssh-server");
            eprintln!("skipped: no sshd on this host (Debian: apt-get install openssh-server)");
            return None;
        };
        if nix::unistd::geteuid().is_root() {
            // Where it separates privileges; made by the service that is not started here.
            std::fs::create_dir_all("/run/sshd").unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for key in ["host_key", "user_key", "stranger_key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(key));
            assert!(keygen.status().unwrap().success());
        }
        std::fs::copy(at("user_key.pub"), at("authorized_keys")).unwrap();
        let port = free_tcp_port();
        let listen: String = HOSTS.iter().map(|host| format!("ListenAddress {host}\n")).collect();
        let config = format!(
            "Port {port}\n{listen}HostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
             PermitRootLogin prohibit-password\nMaxStartups 100\n",
            at("host_key").display(),
            at("authorized_keys").display()
        );
        std::fs::write(at("sshd_config"), config).unwrap();
        let host_key = std::fs::read_to_string(at("host_key.pub")).unwrap();
        let mut known = String::new();
        for host in HOSTS {
            write!(known, "[{host}]:{port} {host_key}").unwrap();
        }
        std::fs::write(at("known_hosts"), known).unwrap();
        std::fs::write(at("no_hosts"), "").unwrap();
        let log = std::fs::File::create(at("sshd.log")).unwrap();
        let mut command = Command::new(program);
        command.args(["-D", "-e", "-f"]).arg(at("sshd_config"));
        let child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Self { folder, child, port };
        wait_until("sshd listens", || {
            HOSTS.iter().all(|host| std::net::TcpStream::connect((*host, port)).is_ok())
        });
        Some(server)
    }

    /// Where its files are; every process that ssh starts for it names this.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a configuration for ssh: a port, a key of the server's folder, known hosts.
    pub(crate) fn client(&self, port: Option<u16>, key: &str, known: &str) -> PathBuf {
        let at = |name: &str| self.folder().join(name).display().to_string();
        let path = self.folder().join(format!("ssh_config-{key}-{known}-{}", port.is_some()));
        let text = format!(
            "Host *\nPort {}\nIdentityFile {}\nIdentitiesOnly yes\nIdentityAgent none\n\
             UserKnownHostsFile {}\nGlobalKnownHostsFile none\n",
            port.unwrap_or(self.port),
            at(key),
            at(known)
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        // Its sessions end with their clients.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A TCP port that nobody listens to right now.
pub(crate) fn free_tcp_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder: PathBuf| folder.join(program)).find(|path| path.is_file())
}
