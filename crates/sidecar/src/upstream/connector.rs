//! Opens server connections with a switch in them.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Connect;
use parking_lot::RwLock;
use rand::seq::SliceRandom;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::net::stream::Io;
use crate::upstream::error::io_error;
use crate::upstream::wire_lease::{HomeEnd, Login, WireLease};

pub(crate) use crate::upstream::address::{Address, Security, prepare_socket};
pub(crate) use crate::upstream::error::pool_gone;
pub(crate) use crate::upstream::error::{describe, is_unreachable, may_pass};
pub(crate) use crate::upstream::outage::{Outage, Outlook};
pub(crate) use crate::upstream::session_attrs::SessionAttrs;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the server is and how to get in.
#[derive(Clone)]
pub(crate) struct Target {
    /// Hosts, role, password, database, timeouts. Its TLS mode is not looked at.
    pub postgres: Config,
    /// Whether and how to speak TLS.
    pub tls: Tls,
    /// Which of the hosts will do.
    pub attrs: SessionAttrs,
    /// Whether the server can be reached: shared by all who dial it.
    pub outage: Arc<Outage>,
    /// Passwords of roles that `postgres` has none for.
    pub passwords: Arc<Passwords>,
}

/// Passwords by role, as they are now: a connection that is opened later uses what they are then.
#[derive(Default)]
pub(crate) struct Passwords(RwLock<HashMap<String, String>>);

impl Passwords {
    /// Puts these in the place of all others.
    pub(crate) fn set(&self, passwords: HashMap<String, String>) {
        *self.0.write() = passwords;
    }

    fn of(&self, role: &str) -> Option<String> {
        self.0.read().get(role).cloned()
    }
}

/// TLS to the server.
#[derive(Clone)]
pub(crate) enum Tls {
    /// Never.
    Disable,
    /// If the server can.
    Prefer(MakeRustlsConnect),
    /// Always.
    Require(MakeRustlsConnect),
}

/// A connection just opened.
pub(crate) struct Dialled {
    /// The SQL side.
    pub client: Client,
    /// The task that drives it.
    pub task: JoinHandle<()>,
    /// The switch under it.
    pub wire_lease: WireLease,
    /// What the server said at login.
    pub login: Login,
    /// Where a cancel request goes.
    pub address: Address,
    /// How it is encrypted, if it is.
    pub security: Option<Security>,
}

impl Target {
    /// How long TCP, TLS and login may take for one address if the configuration does not say.
    const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

    /// The same server for another database and role. The password goes along only for its own role; for
    /// others one is looked for in `passwords` whenever a connection is opened.
    pub(crate) fn for_login(&self, database: &str, user: &str) -> Self {
        let mut postgres = self.postgres.clone();
        if self.postgres.get_user() != Some(user) {
            // A Config cannot forget its password, so the rest is carried over without it.
            postgres = without_password(&self.postgres);
        }
        postgres.user(user).dbname(database);
        let (attrs, outage) = (self.attrs, Arc::clone(&self.outage));
        Self { postgres, tls: self.tls.clone(), attrs, outage, passwords: Arc::clone(&self.passwords) }
    }

    /// Tries the hosts, in their order or in any with `load_balance_hosts=random`, until one lets us in and
    /// fits `target_session_attrs`. Each address has `connect_timeout` for itself.
    ///
    /// `on_end` is dropped when the connection is over, however it ends; if there is none, with the
    /// last attempt.
    ///
    /// # Errors
    /// The last host's. A server that answered and refused is not followed by the next address, unless it
    /// refused because it starts or stops.
    pub(crate) async fn dial<G: Send + Sync + 'static>(
        &self,
        on_end: G,
    ) -> Result<Dialled, tokio_postgres::Error> {
        // Each attempt has a share; ours keeps the end of an attempt that failed from being the end.
        let guard = Arc::new(on_end);
        let addresses = self.addresses().await;
        let mut last = None;
        for attrs in self.attrs.passes() {
            for address in &addresses {
                match self.dial_within(address, *attrs, &guard).await {
                    Ok(dialled) => return Ok(dialled),
                    Err(error) if error.as_db_error().is_some() && !is_unreachable(&error) => {
                        return Err(error);
                    }
                    Err(error) => last = Some(error),
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

    /// Opens a connection to the host that is at this address, whatever it fits.
    ///
    /// # Errors
    /// As [`Target::dial`].
    pub(crate) async fn dial_at(&self, address: &Address) -> Result<Dialled, tokio_postgres::Error> {
        self.dial_within(address, SessionAttrs::Any, &Arc::new(())).await
    }

    /// As [`Target::dial`], but a login with a password, which costs thousands of hashes, is computed on
    /// a thread beside the data path. A dropped call closes the connection once it is open.
    ///
    /// # Errors
    /// As [`Target::dial`].
    pub(crate) async fn dial_aside<G: Send + Sync + 'static>(
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

    fn connect_timeout(&self) -> Duration {
        self.postgres.get_connect_timeout().copied().unwrap_or(Self::CONNECT_TIMEOUT)
    }

    async fn dial_within<G: Send + Sync + 'static>(
        &self,
        address: &Address,
        attrs: SessionAttrs,
        guard: &Arc<G>,
    ) -> Result<Dialled, tokio_postgres::Error> {
        let dialling = async {
            let dialled = self.dial_one(address, guard).await?;
            if attrs.fits(&dialled.client).await? {
                return Ok(dialled);
            }
            dialled.task.abort();
            let what = "the server does not fit target_session_attrs";
            Err(io_error(io::ErrorKind::PermissionDenied, what).await)
        };
        match tokio::time::timeout(self.connect_timeout(), dialling).await {
            Ok(done) => done,
            Err(_) => Err(io_error(io::ErrorKind::TimedOut, "no answer within connect_timeout").await),
        }
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
        let io = match address.open(self.postgres.get_tcp_user_timeout().copied()).await {
            Ok(io) => io,
            Err(error) => return Err(io_error(error.kind(), &error.to_string()).await),
        };
        let wire_lease = WireLease::new();
        let mut config = self.login();
        let (client, task) = match tls {
            None => {
                config.ssl_mode(SslMode::Disable);
                let home = wire_lease.attach(io, tokio_postgres::tls::ChannelBinding::none());
                let (client, connection) = config.connect_raw(home, NoTls).await?;
                (client, drive(connection, Arc::clone(guard)))
            }
            Some(make) => {
                config.ssl_mode(SslMode::Require);
                let name = address.tls_name();
                let connector = match MakeTlsConnect::<Io>::make_tls_connect(&mut make.clone(), &name) {
                    Ok(connector) => SwitchTls { inner: connector, wire_lease: wire_lease.clone() },
                    Err(never) => match never {},
                };
                let (client, connection) = config.connect_raw(io, connector).await?;
                (client, drive(connection, Arc::clone(guard)))
            }
        };
        let Some(login) = wire_lease.take_login() else {
            return Err(io_error(
                io::ErrorKind::InvalidData,
                "the server's login ended without ReadyForQuery",
            )
            .await);
        };
        let security =
            tls.map(|make| Security { make: make.clone(), negotiation: self.postgres.get_ssl_negotiation() });
        Ok(Dialled { client, task, wire_lease, login, address: address.clone(), security })
    }

    /// Every address of every host. A name that does not resolve in time has none.
    async fn addresses(&self) -> Vec<Address> {
        let ports = self.postgres.get_ports();
        let mut hosts: Vec<_> = self.postgres.get_hosts().iter().enumerate().collect();
        let random = self.postgres.get_load_balance_hosts() == LoadBalanceHosts::Random;
        if random {
            hosts.shuffle(&mut rand::rng());
        }
        let mut addresses = Vec::new();
        for (index, host) in hosts {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            let mut of_host: Vec<Address> = match host {
                Host::Tcp(name) if !self.postgres.get_hostaddrs().is_empty() => {
                    let fixed = self.postgres.get_hostaddrs().get(index);
                    fixed.map(|ip| Address::Tcp((*ip, port).into(), Some(name.clone()))).into_iter().collect()
                }
                Host::Tcp(name) => {
                    let asking = tokio::net::lookup_host((name.as_str(), port));
                    let found = tokio::time::timeout(self.connect_timeout(), asking).await;
                    let found = found.into_iter().flatten().flatten();
                    found.map(|at| Address::Tcp(at, Some(name.clone()))).collect()
                }
                Host::Unix(directory) => vec![Address::Unix(directory.join(format!(".s.PGSQL.{port}")))],
            };
            if random {
                of_host.shuffle(&mut rand::rng());
            }
            addresses.append(&mut of_host);
        }
        addresses
    }
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

/// Puts the TLS stream on the switch, so that what is lent is plain protocol bytes.
struct SwitchTls<T> {
    inner: T,
    wire_lease: WireLease,
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
            Ok(self.wire_lease.attach(Io::Tls(Box::new(stream)), binding))
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
    bare.load_balance_hosts(config.get_load_balance_hosts());
    if let Some(timeout) = config.get_tcp_user_timeout() {
        bare.tcp_user_timeout(*timeout);
    }
    bare.channel_binding(config.get_channel_binding());
    bare.ssl_negotiation(config.get_ssl_negotiation());
    bare
}

/// Makes an `on_open` call for each connection that deadpool opens.
pub(crate) struct Dialer<F> {
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
