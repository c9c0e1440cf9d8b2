//! What can go wrong between here and a process on another host, and what to do about it.
//!
//! `ssh` tells in words only; they are read here, and nowhere else.

use std::io;

use serde::{Deserialize, Serialize};

/// In which way an agent could not be started over ssh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SshFault {
    /// There is no `ssh` on this host.
    NoClient,
    /// The name is unknown, or nobody answers there.
    Unreachable,
    /// The host's key is not known, or is another one.
    HostKey,
    /// The host does not let this user in.
    Refused,
    /// The program is not on the host, or cannot be run there.
    NoProgram,
    /// The connection was lost.
    Lost,
    /// Something else.
    Other,
}

impl SshFault {
    /// The fault behind what `ssh` printed.
    pub(super) fn of_words(words: &str) -> Self {
        let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        if says(&["Host key verification failed", "host key is known", "HOST IDENTIFICATION"]) {
            Self::HostKey
        } else if says(&["Permission denied", "Too many authentication failures"]) {
            Self::Refused
        } else if says(&[
            "Could not resolve",
            "Connection refused",
            "timed out",
            "No route to host",
            "is unreachable",
            "Connection reset",
        ]) {
            Self::Unreachable
        } else {
            Self::Other
        }
    }

    /// The fault behind an error of the library.
    pub(super) fn of(error: &openssh::Error) -> Self {
        match error {
            openssh::Error::Connect(io) | openssh::Error::Ssh(io)
                if io.kind() == io::ErrorKind::NotFound =>
            {
                Self::NoClient
            }
            openssh::Error::Remote(io) if io.kind() == io::ErrorKind::NotFound => Self::NoProgram,
            openssh::Error::Disconnected | openssh::Error::RemoteProcessTerminated => Self::Lost,
            other => Self::of_words(&words(other)),
        }
    }

    /// What to do.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Self::NoClient => "install the OpenSSH client",
            Self::Unreachable => {
                "check the node's address, that its sshd runs, and what ~/.ssh/config says of it"
            }
            Self::HostKey => {
                "connect once with ssh and check its key, or write ssh_host_keys = \"accept-new\" \
                 under [launcher]"
            }
            Self::Refused => {
                "there is nobody to type a password: put a key that it accepts into ssh-agent or \
                 ~/.ssh"
            }
            Self::NoProgram => {
                "install the same build of ditmesh there, or write its path as program under \
                 [launcher]"
            }
            Self::Lost | Self::Other => "try the same with ssh by hand",
        }
    }
}

impl std::fmt::Display for SshFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoClient => "there is no ssh on this host",
            Self::Unreachable => "the host cannot be reached by ssh",
            Self::HostKey => "the host's key is not the known one",
            Self::Refused => "the host does not let this user in",
            Self::NoProgram => "the program cannot be run there",
            Self::Lost => "the ssh connection was lost",
            Self::Other => "ssh failed",
        })
    }
}

/// An error and its causes, on one line.
pub(super) fn words(error: &openssh::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.to_string().trim().replace(['\r', '\n'], " ");
        text = format!("{text}: {words}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_prints_is_read() {
        let table = [
            ("me@h: Permission denied (publickey,password).", SshFault::Refused),
            ("Received disconnect: Too many authentication failures", SshFault::Refused),
            ("Host key verification failed.", SshFault::HostKey),
            ("No ED25519 host key is known for h and you have requested", SshFault::HostKey),
            ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", SshFault::HostKey),
            ("Could not resolve hostname h: Name or service not known", SshFault::Unreachable),
            ("connect to host h port 22: Connection refused", SshFault::Unreachable),
            ("connect to host h port 22: Connection timed out", SshFault::Unreachable),
            ("connect to host h port 22: No route to host", SshFault::Unreachable),
            ("something new", SshFault::Other),
        ];
        for (words, fault) in table {
            assert_eq!(SshFault::of_words(words), fault, "{words}");
        }
    }
}
