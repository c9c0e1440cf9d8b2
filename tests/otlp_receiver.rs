//! The smallest OpenTelemetry collector: takes OTLP over HTTP on loopback and keeps the spans.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// A span and the process it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) span: Span,
    pub(crate) process: i64,
    pub(crate) role: String,
}

impl Received {
    /// A number among its attributes.
    pub(crate) fn number(&self, key: &str) -> Option<i64> {
        number(&self.span.attributes, key)
    }
}

/// What came so far.
#[derive(Default)]
struct Kept {
    spans: Vec<Received>,
    headers: Vec<String>,
}

/// A collector that listens for as long as the test runs.
pub(crate) struct Receiver {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let kept = Arc::new(Mutex::new(Kept::default()));
        let keeper = kept.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let keeper = keeper.clone();
                std::thread::spawn(move || serve(stream.unwrap(), &keeper));
            }
        });
        Self { address, kept }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn spans(&self) -> Vec<Received> {
        self.kept.lock().unwrap().spans.clone()
    }

    /// Whether some request had this header line.
    pub(crate) fn had_header(&self, line: &str) -> bool {
        self.kept.lock().unwrap().headers.iter().any(|header| header.eq_ignore_ascii_case(line))
    }
}

/// Answers requests until the client goes.
fn serve(stream: TcpStream, kept: &Mutex<Kept>) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some((headers, body)) = request(&mut reader) {
        let spans = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let mut kept = kept.lock().unwrap();
        kept.headers.extend(headers);
        for resource in spans.resource_spans {
            let of = resource.resource.unwrap().attributes;
            let process = number(&of, "process.pid").unwrap();
            let role = word(&of, "ditmesh.role").unwrap();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let received = spans.map(|span| Received { span, process, role: role.clone() });
            kept.spans.extend(received);
        }
        drop(kept);
        if writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

/// Header lines and body of the next request.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(Vec<String>, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    assert_eq!(lines[0], "POST /v1/traces HTTP/1.1");
    let length = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).ok()?;
    Some((lines, body))
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

fn number(attributes: &[KeyValue], key: &str) -> Option<i64> {
    match value(attributes, key)? {
        Value::IntValue(number) => Some(*number),
        _ => None,
    }
}

fn word(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        Value::StringValue(word) => Some(word.clone()),
        _ => None,
    }
}
