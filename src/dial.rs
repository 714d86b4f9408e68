//! Opens server connections with a switch in them. Floor 3.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deadpool_postgres::Connect;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::switch::{HomeEnd, Io, Login, Switch};

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the server is and how to get in.
#[derive(Clone)]
pub struct Target {
    /// Hosts, role, password, database, timeouts. Its TLS mode is not looked at.
    pub postgres: Config,
    /// Whether and how to speak TLS.
    pub tls: Tls,
    /// Passwords of roles that `postgres` has none for.
    pub passwords: Arc<Passwords>,
}

/// Passwords by role, as they are now: a connection that is opened later uses what they are then.
#[derive(Default)]
pub struct Passwords(RwLock<HashMap<String, String>>);

impl Passwords {
    /// Puts these in the place of all others.
    pub fn set(&self, passwords: HashMap<String, String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = passwords;
    }

    fn of(&self, role: &str) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(role).cloned()
    }
}

/// TLS to the server.
#[derive(Clone)]
pub enum Tls {
    /// Never.
    Disable,
    /// If the server can.
    Prefer(MakeRustlsConnect),
    /// Always.
    Require(MakeRustlsConnect),
}

/// One address of one host.
#[derive(Clone, Debug)]
pub enum Address {
    /// A TCP address, with the name TLS is to check.
    Tcp(SocketAddr, Option<String>),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A connection just opened.
pub struct Dialled {
    /// The SQL side.
    pub client: Client,
    /// The task that drives it.
    pub task: JoinHandle<()>,
    /// The switch under it.
    pub switch: Switch,
    /// What the server said at login.
    pub login: Login,
    /// Where a cancel request goes.
    pub address: Address,
}

impl Target {
    /// How long TCP, TLS and login may take for one address if the configuration does not say.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

    /// The same server for another database and role. The password goes along only for its own role; for
    /// others one is looked for in `passwords` whenever a connection is opened.
    pub fn for_login(&self, database: &str, user: &str) -> Self {
        let mut postgres = self.postgres.clone();
        if self.postgres.get_user() != Some(user) {
            // A Config cannot forget its password, so the rest is carried over without it.
            postgres = without_password(&self.postgres);
        }
        postgres.user(user).dbname(database).application_name("pgleash");
        Self { postgres, tls: self.tls.clone(), passwords: Arc::clone(&self.passwords) }
    }

    /// Tries the hosts in their order until one lets us in and fits `target_session_attrs`.
    ///
    /// `on_end` is dropped when the connection is over, however it ends; if there is none, with the
    /// last attempt.
    ///
    /// # Errors
    /// The last host's. A server that answered and refused is not followed by the next address.
    pub async fn dial<G: Send + Sync + 'static>(&self, on_end: G) -> Result<Dialled, tokio_postgres::Error> {
        // Each attempt has a share; ours keeps the end of an attempt that failed from being the end.
        let guard = Arc::new(on_end);
        let mut last = None;
        for address in self.addresses().await {
            let limit = self.postgres.get_connect_timeout().copied().unwrap_or(Self::CONNECT_TIMEOUT);
            match tokio::time::timeout(limit, self.dial_one(&address, &guard)).await {
                Ok(Ok(dialled)) => return Ok(dialled),
                Ok(Err(error)) if error.as_db_error().is_some() => return Err(error),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {
                    last = Some(io_error(io::ErrorKind::TimedOut, "no answer within connect_timeout").await)
                }
            }
        }
        match last {
            Some(error) => Err(error),
            None => {
                Err(io_error(io::ErrorKind::NotFound, "no host of the upstream url has an address").await)
            }
        }
    }

    /// As [`Target::dial`], but a login with a password, which costs thousands of hashes, is computed on
    /// a thread beside the data path. A dropped call closes the connection once it is open.
    ///
    /// # Errors
    /// As [`Target::dial`].
    pub async fn dial_aside<G: Send + Sync + 'static>(
        &self,
        on_end: G,
    ) -> Result<Dialled, tokio_postgres::Error> {
        if self.login().get_password().is_none() {
            return self.dial(on_end).await;
        }
        let target = self.clone();
        let runtime = tokio::runtime::Handle::current();
        match tokio::task::spawn_blocking(move || runtime.block_on(target.dial(on_end))).await {
            Ok(dialled) => dialled,
            Err(error) => Err(io_error(io::ErrorKind::Interrupted, &error.to_string()).await),
        }
    }

    /// With the password, if there is one.
    fn login(&self) -> Config {
        let mut config = self.postgres.clone();
        if config.get_password().is_none()
            && let Some(password) = config.get_user().and_then(|role| self.passwords.of(role))
        {
            config.password(password);
        }
        config
    }

    async fn dial_one<G: Send + Sync + 'static>(
        &self,
        address: &Address,
        guard: &Arc<G>,
    ) -> Result<Dialled, tokio_postgres::Error> {
        match &self.tls {
            Tls::Disable => self.log_in(address, None, guard).await,
            // As libpq: TLS is not spoken over a Unix socket, whatever the mode.
            Tls::Prefer(_) | Tls::Require(_) if matches!(address, Address::Unix(_)) => {
                self.log_in(address, None, guard).await
            }
            Tls::Require(make) => self.log_in(address, Some(make), guard).await,
            Tls::Prefer(make) => match self.log_in(address, Some(make), guard).await {
                // As libpq: a server that cannot is asked again in the clear.
                Err(error) if error.as_db_error().is_none() && error.to_string().contains("TLS") => {
                    self.log_in(address, None, guard).await
                }
                done => done,
            },
        }
    }

    async fn log_in<G: Send + Sync + 'static>(
        &self,
        address: &Address,
        tls: Option<&MakeRustlsConnect>,
        guard: &Arc<G>,
    ) -> Result<Dialled, tokio_postgres::Error> {
        let io = match address.open().await {
            Ok(io) => io,
            Err(error) => return Err(io_error(error.kind(), &error.to_string()).await),
        };
        let switch = Switch::new();
        let mut config = self.login();
        let (client, task) = match tls {
            None => {
                config.ssl_mode(SslMode::Disable);
                let home = switch.attach(io, tokio_postgres::tls::ChannelBinding::none());
                let (client, connection) = config.connect_raw(home, NoTls).await?;
                (client, drive(connection, Arc::clone(guard)))
            }
            Some(make) => {
                config.ssl_mode(SslMode::Require);
                let name = address.tls_name();
                let connector = match MakeTlsConnect::<Io>::make_tls_connect(&mut make.clone(), &name) {
                    Ok(connector) => SwitchTls { inner: connector, switch: switch.clone() },
                    Err(never) => match never {},
                };
                let (client, connection) = config.connect_raw(io, connector).await?;
                (client, drive(connection, Arc::clone(guard)))
            }
        };
        let Some(login) = switch.take_login() else {
            return Err(io_error(
                io::ErrorKind::InvalidData,
                "the server's login ended without ReadyForQuery",
            )
            .await);
        };
        let dialled = Dialled { client, task, switch, login, address: address.clone() };
        self.check_attributes(&dialled).await?;
        Ok(dialled)
    }

    async fn check_attributes(&self, dialled: &Dialled) -> Result<(), tokio_postgres::Error> {
        let wants_read_only = match self.postgres.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => false,
            TargetSessionAttrs::ReadOnly => true,
            _ => return Ok(()),
        };
        let rows = dialled.client.simple_query("SHOW transaction_read_only").await?;
        let read_only = rows.iter().any(
            |row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("on")),
        );
        if read_only == wants_read_only {
            return Ok(());
        }
        dialled.task.abort();
        Err(io_error(io::ErrorKind::PermissionDenied, "the server does not fit target_session_attrs").await)
    }

    /// Every address of every host, in order. A name that does not resolve has none.
    async fn addresses(&self) -> Vec<Address> {
        let ports = self.postgres.get_ports();
        let mut addresses = Vec::new();
        for (index, host) in self.postgres.get_hosts().iter().enumerate() {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) if !self.postgres.get_hostaddrs().is_empty() => {
                    let fixed = self.postgres.get_hostaddrs().get(index);
                    addresses.extend(fixed.map(|ip| Address::Tcp((*ip, port).into(), Some(name.clone()))));
                }
                Host::Tcp(name) => {
                    let found = tokio::net::lookup_host((name.as_str(), port)).await;
                    addresses
                        .extend(found.into_iter().flatten().map(|at| Address::Tcp(at, Some(name.clone()))));
                }
                Host::Unix(directory) => {
                    addresses.push(Address::Unix(directory.join(format!(".s.PGSQL.{port}"))));
                }
            }
        }
        addresses
    }
}

impl Address {
    async fn open(&self) -> io::Result<Io> {
        match self {
            Address::Tcp(address, _) => {
                let stream = TcpStream::connect(address).await?;
                prepare_socket(&stream)?;
                Ok(Io::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(Io::Unix),
        }
    }

    fn tls_name(&self) -> String {
        match self {
            Address::Tcp(_, Some(name)) => name.clone(),
            Address::Tcp(address, None) => address.ip().to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Sends a cancel request and waits until the server has closed the connection: the signal has
    /// been sent by then ("Canceling Requests in Progress").
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn cancel(&self, backend_pid: i32, key: &[u8]) -> io::Result<()> {
        let mut packet = ((12 + key.len()) as u32).to_be_bytes().to_vec();
        packet.extend(80_877_102_u32.to_be_bytes());
        packet.extend(backend_pid.to_be_bytes());
        packet.extend(key);
        let mut io = self.open().await?;
        io.write_all(&packet).await?;
        io.flush().await?;
        let mut rest = [0; 64];
        while !matches!(io.read(&mut rest).await, Ok(0) | Err(_)) {}
        Ok(())
    }
}

/// No delay, and keepalives that find a half-open peer within about a minute.
///
/// # Errors
/// The system refuses an option.
pub fn prepare_socket(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Whether this says that there is no server to talk to: not a server that refused, and not a login
/// that cannot be tried, as one without a password.
pub fn is_unreachable(error: &tokio_postgres::Error) -> bool {
    let text = error.to_string();
    error.as_db_error().is_none() && !is_credentials(&text)
}

/// tokio-postgres shows the kind of an error in its text only.
fn is_credentials(text: &str) -> bool {
    text.starts_with("invalid configuration") || text.starts_with("authentication error")
}

fn drive<S, T, G>(connection: Connection<S, T>, guard: Arc<G>) -> JoinHandle<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    G: Send + Sync + 'static,
{
    tokio::spawn(async move {
        let _guard = guard;
        // Its error is told by whoever used the connection, or by the guard's end if nobody did.
        drop(connection.await);
    })
}

/// tokio-postgres makes its I/O errors itself; this gets one out of it with our words in it.
async fn io_error(kind: io::ErrorKind, what: &str) -> tokio_postgres::Error {
    let broken = Broken(kind, what.to_owned());
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    match config.connect_raw(broken, NoTls).await {
        Err(error) => error,
        Ok(_) => unreachable!("a stream that always fails cannot log in"),
    }
}

/// A stream that fails with the given words.
struct Broken(io::ErrorKind, String);

impl Broken {
    fn error(&self) -> io::Error {
        io::Error::new(self.0, self.1.clone())
    }
}

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(self.error()))
    }
}

impl AsyncWrite for Broken {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::task::Poll::Ready(Err(self.error()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(self.error()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

/// Puts the TLS stream on the switch, so that what is lent is plain protocol bytes.
struct SwitchTls<T> {
    inner: T,
    switch: Switch,
}

impl<T> TlsConnect<Io> for SwitchTls<T>
where
    T: TlsConnect<Io>,
    T::Stream: TlsStream + Unpin + Send + 'static,
    T::Future: Send + 'static,
{
    type Stream = HomeEnd;
    type Error = T::Error;
    type Future = BoxFuture<'static, Result<HomeEnd, T::Error>>;

    fn connect(self, stream: Io) -> Self::Future {
        let connecting = self.inner.connect(stream);
        Box::pin(async move {
            let stream = connecting.await?;
            let binding = stream.channel_binding();
            Ok(self.switch.attach(Io::Tls(Box::new(stream)), binding))
        })
    }
}

fn without_password(config: &Config) -> Config {
    let mut bare = Config::new();
    for host in config.get_hosts() {
        match host {
            Host::Tcp(name) => bare.host(name),
            Host::Unix(path) => bare.host_path(path),
        };
    }
    for address in config.get_hostaddrs() {
        bare.hostaddr(*address);
    }
    for port in config.get_ports() {
        bare.port(*port);
    }
    if let Some(options) = config.get_options() {
        bare.options(options);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        bare.connect_timeout(*timeout);
    }
    bare.target_session_attrs(config.get_target_session_attrs());
    bare.channel_binding(config.get_channel_binding());
    bare.ssl_negotiation(config.get_ssl_negotiation());
    bare
}

/// Makes an `on_open` call for each connection that deadpool opens.
pub struct Dialer<F> {
    /// Opens one connection and registers it.
    pub open: F,
}

impl<F> Connect for Dialer<F>
where
    F: Fn() -> BoxFuture<'static, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + Sync,
{
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        (self.open)()
    }
}
