//! A blocking HTTP client that shows bytes as they come, because the tests are about bytes.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

pub(crate) const JSON: &str = "application/json";
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub(crate) const PROTOBUF_WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// An answer whose body is read on demand.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    reader: BufReader<TcpStream>,
    /// Bytes left of the chunk, or of the body when it has a length.
    left: usize,
    is_chunked: bool,
    is_done: bool,
}

pub(crate) fn get(address: SocketAddr, path: &str, accept: &str) -> Answer {
    request(address, "GET", path, &[("Accept", accept)], b"").unwrap()
}

/// Sends a request with headers and body, and reads the head of the answer.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        head.extend([name, ": ", value, "\r\n"]);
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let first = line(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut headers = BTreeMap::new();
    loop {
        let text = line(&mut reader)?;
        let Some((name, value)) = text.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map(|l| l.parse().unwrap());
    let is_chunked = headers.contains_key("transfer-encoding");
    let left = length.unwrap_or(0);
    Ok(Answer { status, headers, reader, left, is_chunked, is_done: !is_chunked && left == 0 })
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if reader.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_done {
            return Ok(0);
        }
        if self.is_chunked && self.left == 0 {
            let size = line(&mut self.reader)?;
            self.left = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
            if self.left == 0 {
                self.is_done = true;
                return Ok(0);
            }
        }
        let wanted = buffer.len().min(self.left);
        let count = self.reader.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        if self.left == 0 && self.is_chunked {
            line(&mut self.reader)?;
        }
        self.is_done = self.left == 0 && !self.is_chunked;
        Ok(count)
    }
}

impl Answer {
    /// The whole body.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn json(self) -> Value {
        serde_json::from_slice(&self.bytes()).unwrap()
    }

    /// Exactly so many bytes of a stream.
    pub(crate) fn take_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The next event of a JSON watch: its type, the object's name and the object. `None` at the proper end.
    pub(crate) fn event(&mut self) -> Option<(String, String, Value)> {
        let mut text = Vec::new();
        loop {
            let mut byte = [0];
            match self.read(&mut byte).unwrap() {
                0 if text.is_empty() => return None,
                0 => panic!("the watch ended within an event"),
                _ if byte == *b"\n" => break,
                _ => text.push(byte[0]),
            }
        }
        let mut event: Value = serde_json::from_slice(&text).unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Some((event["type"].as_str().unwrap().to_owned(), name, event["object"].take()))
    }

    /// Whether nothing comes for a while.
    pub(crate) fn is_silent(&mut self, time: Duration) -> bool {
        self.reader.get_ref().set_read_timeout(Some(time)).unwrap();
        let result = self.read(&mut [0]);
        self.reader.get_ref().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        result.is_err_and(|e| matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}
