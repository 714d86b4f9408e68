//! A client that speaks frames, for what no driver would send.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::endpoint::Endpoint;
use super::{PATIENCE, within};

/// Protocol 3.0.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Protocol 3.2.
pub const PROTOCOL_3_2: u32 = (3 << 16) | 2;
/// The code of an SSLRequest.
pub const SSL_REQUEST: u32 = (1234 << 16) | 5679;
/// The code of a GSSENCRequest.
pub const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;
/// The code of a CancelRequest.
pub const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;

/// One message from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub tag: char,
    /// What follows the length.
    pub body: Bytes,
}

impl Frame {
    /// The columns of a DataRow, as text.
    pub fn columns(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, 'D', "not a DataRow: {self:?}");
        let mut body = self.body.clone();
        (0..body.get_u16())
            .map(|_| {
                let length = usize::try_from(body.get_i32()).ok()?;
                Some(String::from_utf8(body.split_to(length).to_vec()).unwrap())
            })
            .collect()
    }

    /// One field of an ErrorResponse or NoticeResponse: `C` is the SQLSTATE, `M` the message.
    pub fn field(&self, field: char) -> String {
        assert!(matches!(self.tag, 'E' | 'N'), "neither error nor notice: {self:?}");
        let field = field as u8;
        let found = self.body.split(|byte| *byte == 0).find(|text| text.first() == Some(&field));
        found.map(|text| String::from_utf8_lossy(&text[1..]).into_owned()).unwrap_or_default()
    }
}

/// A connection on which frames are sent and read by hand.
pub struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
    /// Process id from BackendKeyData.
    pub pid: u32,
    /// Secret from BackendKeyData.
    pub secret: Bytes,
    /// ParameterStatus, in order of arrival.
    pub parameters: Vec<(String, String)>,
}

impl Raw {
    /// Connects the socket and sends nothing.
    pub async fn connect(port: u16) -> Raw {
        let stream = within(PATIENCE, "a connection", TcpStream::connect(("127.0.0.1", port))).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream, buffer: BytesMut::new(), pid: 0, secret: Bytes::new(), parameters: Vec::new() }
    }

    /// Connects and logs in with protocol 3.0.
    pub async fn login(endpoint: &Endpoint, app: &str) -> Raw {
        let mut raw = Raw::connect(endpoint.port).await;
        raw.startup(
            PROTOCOL_3_0,
            &[("user", &endpoint.user), ("database", &endpoint.database), ("application_name", app)],
        )
        .await;
        let frames = raw.until_ready().await;
        raw.learn(&frames);
        raw
    }

    /// Takes the parameters and the cancel key from what a login answered.
    pub fn learn(&mut self, frames: &[Frame]) {
        for frame in frames {
            match frame.tag {
                'S' => {
                    let mut texts = frame.body.split(|byte| *byte == 0);
                    let mut text = || String::from_utf8_lossy(texts.next().unwrap()).into_owned();
                    self.parameters.push((text(), text()));
                }
                'K' => {
                    let mut body = frame.body.clone();
                    self.pid = body.get_u32();
                    self.secret = body;
                }
                'R' | 'Z' | 'N' | 'v' => {}
                _ => panic!("not an answer to a startup packet: {frame:?} {}", describe(frame)),
            }
        }
    }

    /// Sends a startup packet.
    pub async fn startup(&mut self, version: u32, parameters: &[(&str, &str)]) {
        let mut body = BytesMut::new();
        body.put_u32(version);
        for (key, value) in parameters {
            body.put_slice(key.as_bytes());
            body.put_u8(0);
            body.put_slice(value.as_bytes());
            body.put_u8(0);
        }
        body.put_u8(0);
        self.send_untagged(&body).await;
    }

    /// Sends a length and a body: the form of first packets.
    pub async fn send_untagged(&mut self, body: &[u8]) {
        let mut packet = BytesMut::new();
        packet.put_u32(u32::try_from(body.len() + 4).unwrap());
        packet.put_slice(body);
        self.send(&packet).await;
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        within(PATIENCE, "room to send", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends bytes; a closed connection is no matter.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = within(PATIENCE, "room to send", self.stream.write_all(bytes)).await;
    }

    /// Sends this again and again until nothing more is taken, for want of somebody who reads.
    pub async fn send_until_full(&mut self, bytes: &[u8]) {
        let blocked = std::time::Duration::from_millis(500);
        while tokio::time::timeout(blocked, self.stream.write_all(bytes)).await.is_ok_and(|sent| sent.is_ok())
        {
        }
    }

    /// Closes this side of the socket; the other may still send.
    pub async fn shut_write(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Sends a simple query and reads up to ReadyForQuery.
    pub async fn query(&mut self, sql: &str) -> Vec<Frame> {
        self.send(&query(sql)).await;
        self.until_ready().await
    }

    /// Runs a simple query and returns the first column of the first row.
    pub async fn one(&mut self, sql: &str) -> String {
        let frames = self.query(sql).await;
        let row = frames.iter().find(|frame| frame.tag == 'D');
        row.unwrap_or_else(|| panic!("{sql}: no row in {}", describe_all(&frames))).columns()[0]
            .clone()
            .unwrap_or_else(|| "NULL".to_owned())
    }

    /// The next frame; `None` when the connection has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() > length {
                    let tag = self.buffer.get_u8() as char;
                    self.buffer.advance(4);
                    return Some(Frame { tag, body: self.buffer.split_to(length - 4).freeze() });
                }
                self.buffer.reserve(length + 1 - self.buffer.len());
            }
            let read = within(PATIENCE, "a frame", self.stream.read_buf(&mut self.buffer)).await;
            if !read.is_ok_and(|read| read > 0) {
                return None;
            }
        }
    }

    /// The next frame, which must be of this type.
    pub async fn expect(&mut self, tag: char) -> Frame {
        let frame = self.frame().await.unwrap_or_else(|| panic!("the connection ended; {tag} was expected"));
        assert_eq!(frame.tag, tag, "{}", describe(&frame));
        frame
    }

    /// One bare byte: the answer to an SSLRequest.
    pub async fn byte(&mut self) -> char {
        within(PATIENCE, "a byte", self.stream.read_u8()).await.unwrap() as char
    }

    /// Frames up to and with the next ReadyForQuery.
    pub async fn until_ready(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let Some(frame) = self.frame().await else {
                panic!("the connection ended before ReadyForQuery, after {}", describe_all(&frames));
            };
            let last = frame.tag == 'Z';
            frames.push(frame);
            if last {
                return frames;
            }
        }
    }

    /// Type, length and hash of each frame up to and with the next ReadyForQuery. No body is kept, however
    /// long it is.
    pub async fn digests_until_ready(&mut self) -> Vec<(char, usize, String)> {
        let mut digests = Vec::new();
        loop {
            while self.buffer.len() < 5 {
                self.read_some().await;
            }
            let tag = self.buffer.get_u8() as char;
            let length = self.buffer.get_u32() as usize - 4;
            let (mut missing, mut hash) = (length, Sha256::new());
            while missing > 0 {
                if self.buffer.is_empty() {
                    self.read_some().await;
                }
                let piece = self.buffer.split_to(missing.min(self.buffer.len()));
                hash.update(&piece);
                missing -= piece.len();
            }
            digests.push((tag, length, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()));
            if tag == 'Z' {
                return digests;
            }
        }
    }

    async fn read_some(&mut self) {
        self.buffer.reserve(1 << 16);
        let read = within(PATIENCE, "a frame", self.stream.read_buf(&mut self.buffer)).await;
        assert!(read.is_ok_and(|read| read > 0), "the connection ended within a reply");
    }

    /// Frames up to the end of the connection.
    pub async fn until_closed(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            frames.push(frame);
        }
        frames
    }

    /// Waits for the end of the connection for as long as the caller's own limit is.
    pub async fn until_closed_patiently(&mut self) {
        while self.stream.read_buf(&mut self.buffer).await.is_ok_and(|read| read > 0) {}
    }

    /// Reads up to the end of the connection, which must be told with a FATAL as its last frame.
    pub async fn fatal(&mut self) -> Frame {
        let frames = self.until_closed().await;
        let last = frames.last().cloned().unwrap_or_else(|| panic!("the connection ended without a word"));
        assert!(
            last.tag == 'E' && last.field('V') == "FATAL",
            "not ended by a FATAL: {}",
            describe_all(&frames)
        );
        last
    }

    /// Drops the socket without a goodbye.
    pub fn kill(self) {
        drop(self.stream);
    }

    /// Drops the socket in a way that the other side learns at once, whatever was sent before.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Sends Terminate and waits for the end.
    pub async fn close(mut self) {
        self.try_send(&terminate()).await;
        self.until_closed().await;
    }
}

/// A message: type, length, body.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A simple query.
pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &text(sql))
}

/// Parse without parameter types.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[text(name), text(sql), vec![0, 0]].concat())
}

/// Bind of the unnamed portal with text parameters.
pub fn bind(statement: &str, parameters: &[&str]) -> Vec<u8> {
    let mut body = [text(""), text(statement), vec![0, 0]].concat();
    body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).unwrap().to_be_bytes());
        body.extend(parameter.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// Execute of the unnamed portal, up to `rows` rows; 0 is all.
pub fn execute(rows: u32) -> Vec<u8> {
    message(b'E', &[text(""), rows.to_be_bytes().to_vec()].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// Flush.
pub fn flush() -> Vec<u8> {
    message(b'H', &[])
}

/// Terminate.
pub fn terminate() -> Vec<u8> {
    message(b'X', &[])
}

/// CopyData.
pub fn copy_data(data: &str) -> Vec<u8> {
    message(b'd', data.as_bytes())
}

/// CopyDone.
pub fn copy_done() -> Vec<u8> {
    message(b'c', &[])
}

/// CopyFail.
pub fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &text(reason))
}

/// FunctionCall with text arguments and a text result.
pub fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend(u16::try_from(arguments.len()).unwrap().to_be_bytes());
    for argument in arguments {
        body.extend(u32::try_from(argument.len()).unwrap().to_be_bytes());
        body.extend(argument.as_bytes());
    }
    body.extend([0, 0]);
    message(b'F', &body)
}

/// The types of frames as one word: `1 2 D C Z` is written `12DCZ`.
pub fn tags(frames: &[Frame]) -> String {
    frames.iter().map(|frame| frame.tag).collect()
}

/// All columns of all rows.
pub fn rows(frames: &[Frame]) -> Vec<Vec<Option<String>>> {
    frames.iter().filter(|frame| frame.tag == 'D').map(Frame::columns).collect()
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// One frame, for those who read why a test failed.
pub fn describe(frame: &Frame) -> String {
    match frame.tag {
        'E' | 'N' => format!("{} {} {}: {}", frame.tag, frame.field('V'), frame.field('C'), frame.field('M')),
        tag => format!("{tag} ({} bytes)", frame.body.len()),
    }
}

fn describe_all(frames: &[Frame]) -> String {
    frames.iter().map(describe).collect::<Vec<_>>().join(", ")
}
