//! Asks a running pgleash how it is: for containers without a shell, where no curl is at hand.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long connecting, sending and each read may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most that is read of an answer, bytes.
const ANSWER_MAX: u64 = 8192;

/// What to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// `/healthz`: does the watchdog watch?
    Alive,
    /// `/readyz`: should clients be sent here?
    Ready,
}

impl Question {
    const fn path(self) -> &'static str {
        match self {
            Question::Alive => "/healthz",
            Question::Ready => "/readyz",
        }
    }
}

/// Asks the pgleash that serves `admin`, and returns what it said. Blocks for a few seconds at most.
///
/// # Errors
/// It could not be asked, or answered with anything but 200; the text says which, and what it answered.
pub(crate) fn ask(admin: SocketAddr, question: Question) -> Result<String, String> {
    if admin.port() == 0 {
        return Err("admin has port 0, so its port is not known here: give admin a fixed port".into());
    }
    let address = reachable(admin);
    let answer = fetch(address, question.path())
        .map_err(|error| format!("{address}{} cannot be asked: {error}", question.path()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split_whitespace().nth(1).unwrap_or("no status");
    if head.starts_with("HTTP/1.") && status == "200" {
        return Ok(body.trim().to_owned());
    }
    Err(format!("{address}{} answered {status}: {}", question.path(), body.trim()))
}

/// An address that listens everywhere is reached on loopback.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port())
}

fn fetch(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Serves one request with `answer`, and gives back the address and the request line.
    fn one_answer(answer: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).lines().next().unwrap().to_owned()
        });
        (address, server)
    }

    #[test]
    fn a_healthy_answer_is_passed_on() {
        let (address, server) = one_answer("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n");
        assert_eq!(ask(address, Question::Alive), Ok("ok".into()));
        assert_eq!(server.join().unwrap(), "GET /healthz HTTP/1.1");
    }

    #[test]
    fn an_unready_answer_is_an_error_with_its_reason() {
        let (address, server) =
            one_answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\ndraining");
        assert_eq!(ask(address, Question::Ready), Err(format!("{address}/readyz answered 503: draining")));
        assert_eq!(server.join().unwrap(), "GET /readyz HTTP/1.1");
    }

    #[test]
    fn something_that_is_not_http_is_an_error() {
        let (address, server) = one_answer("200 200 what");
        assert!(ask(address, Question::Alive).is_err());
        server.join().unwrap();
    }

    #[test]
    fn nobody_there_is_an_error() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = ask(address, Question::Alive).unwrap_err();
        assert!(error.contains("cannot be asked"), "{error}");
    }

    #[test]
    fn an_address_that_listens_everywhere_is_asked_on_loopback() {
        assert_eq!(reachable(([0, 0, 0, 0], 9632).into()), ([127, 0, 0, 1], 9632).into());
        assert!(ask(([127, 0, 0, 1], 0).into(), Question::Alive).is_err());
    }
}
