//! The two ends, seen from the process that measures.
//!
//! Owns the child processes. Invariants: every wait has a deadline; dropping the pair ends both.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use ditmesh_transport::heap::heap_tunables;

use super::end::{Answer, Done, Order, Settings, Start};
use super::subject::Subject;
use super::wire::{Act, Run};

/// Longest time for ssh to connect, and between looks whether the host still answers.
const SSH_CONNECT_MAX: Duration = Duration::from_secs(15);
const SSH_ALIVE: Duration = Duration::from_secs(5);

/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(400);

/// Where one end runs.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) ip: IpAddr,
    pub(super) core: Option<usize>,
    pub(super) at: At,
}

/// On which host, as far as that is another one.
#[derive(Clone, Debug)]
pub(super) enum At {
    /// This one.
    Here,
    /// A network namespace of this one.
    Namespace(String),
    /// Another one, by the user's own ssh.
    Remote(Remote),
}

/// How a host is reached.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    /// What ssh is told to connect to.
    pub(super) host: String,
    pub(super) config: Option<PathBuf>,
    /// Hosts that ssh does not know are accepted.
    pub(super) accept_new: bool,
    /// The program there.
    pub(super) program: PathBuf,
}

impl Remote {
    /// A program of ours there; it ends with its stdin.
    fn command(&self) -> Command {
        let mut command = Command::new("ssh");
        if let Some(config) = &self.config {
            command.arg("-F").arg(config);
        }
        let known = if self.accept_new { "accept-new" } else { "yes" };
        for option in [
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={}", SSH_CONNECT_MAX.as_secs()),
            format!("ServerAliveInterval={}", SSH_ALIVE.as_secs()),
            format!("StrictHostKeyChecking={known}"),
        ] {
            command.arg("-o").arg(option);
        }
        command.arg("--").arg(&self.host).arg("env");
        if let Some((name, value)) = heap_tunables() {
            command.arg(quoted(&format!("{name}={value}")));
        }
        command.arg(quoted(&self.program.display().to_string()));
        command
    }
}

/// Both ends.
pub(super) struct Pair {
    ends: [EndProcess; 2],
}

struct EndProcess {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

/// What both saw of the same runs.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) first: Done,
    pub(super) cpu_s: f64,
    pub(super) switches: u64,
}

/// A word as it is to reach a program through the shell that ssh hands it to.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

impl Pair {
    /// Starts both; `identities` has the certificates of `n0` and `n1`.
    pub(super) fn start(
        places: &[Place; 2],
        settings: Option<Settings>,
        identities: &Path,
    ) -> Result<Self, String> {
        let [first, second] = places;
        let first = EndProcess::start(0, first, settings, identities)?;
        let second = EndProcess::start(1, second, settings, identities)?;
        Ok(Self { ends: [first, second] })
    }

    /// Connects the ends in one way.
    pub(super) fn join(&mut self, subject: Subject) -> Result<(), String> {
        let mut addresses = Vec::new();
        for answer in self.both([&Order::Bind(subject), &Order::Bind(subject)])? {
            match answer {
                Answer::Bound(address) => addresses.push(address),
                other => return Err(format!("{other:?}")),
            }
        }
        let [first, second]: [String; 2] = addresses.try_into().map_err(|_| "two addresses")?;
        self.both([&Order::Join(subject, second), &Order::Join(subject, first)]).map(drop)
    }

    /// Runs `runs` (as of the first end) at both, all at once.
    pub(super) fn run(&mut self, runs: &[Run]) -> Result<Measured, String> {
        let of_second = runs.iter().map(|run| Run { first: !run.first, ..*run }).collect();
        let answers = self.both([&Order::Run(runs.to_vec()), &Order::Run(of_second)])?;
        let mut done = answers.into_iter().map(|answer| match answer {
            Answer::Ran(done) => Ok(done),
            other => Err(format!("{other:?}")),
        });
        let first = done.next().ok_or("no answer")??;
        let second = done.next().ok_or("no answer")??;
        let (cpu_s, switches) = (first.cpu_s + second.cpu_s, first.switches + second.switches);
        Ok(Measured { first, cpu_s, switches })
    }

    /// One run of one subject.
    pub(super) fn measure(
        &mut self,
        subject: Subject,
        act: Act,
        bytes: usize,
        count: u64,
    ) -> Result<Measured, String> {
        self.run(&[Run { subject, act, first: true, bytes, count, every_ms: 0 }])
    }

    fn both(&mut self, orders: [&Order; 2]) -> Result<Vec<Answer>, String> {
        for (end, order) in self.ends.iter_mut().zip(orders) {
            end.tell(order)?;
        }
        let answers: Vec<_> = self.ends.iter_mut().map(|end| end.hear()).collect();
        answers.into_iter().collect()
    }
}

impl EndProcess {
    fn start(
        rank: u8,
        place: &Place,
        settings: Option<Settings>,
        identities: &Path,
    ) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = match &place.at {
            At::Here => Command::new(program),
            At::Namespace(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            At::Remote(remote) => remote.command(),
        };
        command.envs(heap_tunables());
        let started = command.arg("bench-end").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = started.map_err(|error| format!("cannot start an end: {error}"))?;
        let (Some(orders), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("an end has no stdin or stdout".into());
        };
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut end = Self { process, orders, answers };
        let Place { ip, core, .. } = *place;
        let identity = identity(identities, rank)?;
        end.write(&Start { rank, core, ip, settings: settings.unwrap_or_default(), identity })?;
        Ok(end)
    }

    fn tell(&mut self, order: &Order) -> Result<(), String> {
        self.write(order)
    }

    fn write(&mut self, what: &impl serde::Serialize) -> Result<(), String> {
        let line = serde_json::to_string(what).map_err(|error| error.to_string())?;
        writeln!(self.orders, "{line}").map_err(|error| format!("an end is gone: {error}"))
    }

    fn hear(&mut self) -> Result<Answer, String> {
        let line = self.answers.recv_timeout(ANSWER_MAX).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                format!("an end did not answer within {} s", ANSWER_MAX.as_secs())
            }
            RecvTimeoutError::Disconnected => "an end is gone; its stderr says why".to_owned(),
        })?;
        match serde_json::from_str(&line).map_err(|error| format!("{line:?}: {error}"))? {
            Answer::Failed(cause) => Err(cause),
            answer => Ok(answer),
        }
    }
}

/// The files of one end, by their names.
fn identity(folder: &Path, rank: u8) -> Result<BTreeMap<String, String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into());
        if name == "ca.pem" || name.starts_with(&format!("node-n{rank}.")) {
            files.insert(name, std::fs::read_to_string(&path).map_err(failed)?);
        }
    }
    Ok(files)
}

impl Drop for EndProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_passes_the_shell_of_another_host() {
        for word in ["/opt/my programs/ditmesh", "it's $HOME; `id` \"x\""] {
            let line = format!("printf %s {}", quoted(word));
            let output = Command::new("sh").args(["-c", &line]).output();
            let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            assert_eq!(said.ok().as_deref(), Some(word));
        }
    }
}
