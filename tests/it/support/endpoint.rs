//! Where a client connects to, and a client of tokio-postgres that is connected there.

use std::ops::Deref;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, Notification, SimpleQueryMessage};

use super::raw::Raw;
use super::{PATIENCE, within};

/// An address that speaks Postgres on 127.0.0.1, and as whom to log in there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// TCP port.
    pub port: u16,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
}

impl Endpoint {
    /// Logs in under an application name.
    pub async fn connect(&self, app: &str) -> Session {
        self.try_connect(app)
            .await
            .unwrap_or_else(|error| panic!("{app} cannot connect to {self:?}: {error:?}"))
    }

    /// Logs in, or tells why not.
    pub async fn try_connect(&self, app: &str) -> Result<Session, Error> {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user(&self.user).dbname(&self.database);
        config.application_name(app).connect_timeout(PATIENCE);
        let (client, mut connection) = config.connect(NoTls).await?;
        let (sender, messages) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut stream = stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = stream.next().await {
                let _ = sender.send(message);
            }
        });
        Ok(Session { client, messages, task })
    }

    /// Logs in with the raw client.
    pub async fn raw(&self, app: &str) -> Raw {
        Raw::login(self, app).await
    }

    /// The same place as another role.
    pub fn user(&self, user: &str) -> Endpoint {
        Endpoint { user: user.to_owned(), ..self.clone() }
    }
}

/// A connected tokio-postgres client.
pub struct Session {
    client: Client,
    messages: mpsc::UnboundedReceiver<AsyncMessage>,
    task: JoinHandle<()>,
}

impl Session {
    /// Runs simple-protocol SQL and returns the first column of the first row.
    pub async fn one(&self, sql: &str) -> String {
        self.try_one(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// As [`Session::one`], or the error.
    pub async fn try_one(&self, sql: &str) -> Result<String, Error> {
        let messages = within(PATIENCE, sql, self.client.simple_query(sql)).await?;
        let mut rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        });
        Ok(rows.next().unwrap_or_else(|| panic!("{sql}: no row")))
    }

    /// Process id of the backend that served this statement.
    pub async fn backend_pid(&self) -> i32 {
        self.one("SELECT pg_backend_pid()").await.parse().unwrap()
    }

    /// The next notification.
    pub async fn notification(&mut self) -> Notification {
        loop {
            match within(PATIENCE, "a notification", self.messages.recv()).await {
                Some(AsyncMessage::Notification(notification)) => return notification,
                Some(_) => {}
                None => panic!("the connection ended while a notification was awaited"),
            }
        }
    }

    /// The message of the next notice.
    pub async fn notice(&mut self) -> String {
        loop {
            match within(PATIENCE, "a notice", self.messages.recv()).await {
                Some(AsyncMessage::Notice(notice)) => return notice.message().to_owned(),
                Some(_) => {}
                None => panic!("the connection ended while a notice was awaited"),
            }
        }
    }

    /// Says goodbye and waits until the socket is closed.
    pub async fn close(self) {
        drop(self.client);
        within(PATIENCE, "the connection to end", self.task).await.unwrap();
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The SQLSTATE of an error, `-` if it is not from a server.
pub fn sqlstate(error: &Error) -> &str {
    error.code().map_or("-", SqlState::code)
}
