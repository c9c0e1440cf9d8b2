//! The other side of the comparison: `torch_block.py --serve` as a child process.
#![allow(unreachable_pub)]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// A running server; it ends when this is dropped, because its input does.
pub struct TorchServer {
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    child: Child,
    about: Value,
}

impl TorchServer {
    /// Starts the script with the interpreter that `TORCH_PYTHON` names, else `python3`.
    pub fn start() -> Result<Self, Box<dyn Error>> {
        let python = std::env::var("TORCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/torch_block.py");
        let mut child = Command::new(&python)
            .args([script, "--serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {python}: {error}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().ok_or("no output of the script")?);
        let mut server = Self { input, output, child, about: Value::Null };
        server.about = server.line()?;
        Ok(server)
    }

    /// Version, threads and instruction set.
    pub fn about(&self) -> &Value {
        &self.about
    }

    /// Mean seconds of `repeat` runs: of the clock, and of the thread on the processor.
    pub fn seconds(
        &mut self,
        case: &str,
        mode: &str,
        repeat: usize,
    ) -> Result<[f64; 2], Box<dyn Error>> {
        let request = json!({"case": case, "mode": mode, "repeat": repeat});
        let input = self.input.as_mut().ok_or("the script has ended")?;
        writeln!(input, "{request}")?;
        input.flush()?;
        let answer = self.line()?;
        let mean = |key: &str| match answer[key].as_array() {
            Some(times) if !times.is_empty() => {
                Ok(times.iter().filter_map(Value::as_f64).sum::<f64>() / times.len() as f64)
            }
            _ => Err(format!("the script answered {answer}")),
        };
        Ok([mean("seconds")?, mean("cpu_seconds")?])
    }

    fn line(&mut self) -> Result<Value, Box<dyn Error>> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the script ended; is torch installed for TORCH_PYTHON?".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for TorchServer {
    fn drop(&mut self) {
        drop(self.input.take());
        // Its exit status says nothing about the measurements.
        drop(self.child.wait());
    }
}
