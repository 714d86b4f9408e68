//! A listener on the way to a server: lets connections through, turns them away, and counts them.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What happens to a connection that comes.
#[derive(Clone, Debug)]
pub enum Manner {
    /// It goes on to the server at this port.
    Pass(u16),
    /// It is closed at once.
    Close,
    /// Its first packet is answered with these bytes, and it is closed.
    Say(Vec<u8>),
}

#[derive(Debug)]
struct State {
    manner: Manner,
    first_packets: Vec<u32>,
}

/// The listener; gone when it is dropped.
pub struct Tap {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Tap {
    /// Listens on a free port.
    pub async fn new(manner: Manner) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { manner, first_packets: Vec::new() }));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Tap { port, state, task }
    }

    /// From now on.
    pub fn turn(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// The code of the first packet of each connection so far; 0 for one that was closed unread.
    pub fn first_packets(&self) -> Vec<u32> {
        self.state.lock().unwrap().first_packets.clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An ErrorResponse that ends a login.
pub fn fatal(code: &str, message: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
    super::raw::message(b'E', body.as_bytes())
}

async fn serve(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let manner = state.lock().unwrap().manner.clone();
    let note = |code| state.lock().unwrap().first_packets.push(code);
    if let Manner::Close = manner {
        return note(0);
    }
    let mut head = [0; 8];
    if client.read_exact(&mut head).await.is_err() {
        return note(0);
    }
    note(u32::from_be_bytes(head[4..].try_into().unwrap()));
    match manner {
        Manner::Close => {}
        Manner::Say(bytes) => drop(client.write_all(&bytes).await),
        Manner::Pass(port) => {
            let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            if server.write_all(&head).await.is_ok() {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        }
    }
}
