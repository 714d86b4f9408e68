//! Who is let in: certificates, users, and the proof of a password.

pub(crate) mod query;
pub(crate) mod users_file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use pgleash_core::{Credential, Event, Sink};
use pgleash_wire::scram::Verifier;

use crate::config::{AuthMethod, Config, ListenerMode};
use crate::process::Hub;
use crate::proxy::auth::query::{Known, Lookup, Unanswered};
use crate::proxy::auth::users_file::Users;
use crate::tls::listener::{Certificates, Shown};
use crate::upstream::connector::{Passwords, Target};

/// How often it is looked whether a file has changed.
const LOOK: Duration = Duration::from_secs(2);

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A Unix socket.
    Socket,
    /// TCP, from this machine.
    Near,
    /// TCP, from another machine.
    Far,
}

/// Everything that clients are let in by, as it is now.
pub(crate) struct Credentials {
    method: AuthMethod,
    mode: ListenerMode,
    certificates: Option<Certificates>,
    file: Option<PathBuf>,
    users: RwLock<Users>,
    lookup: Option<Lookup>,
    passwords: Arc<Passwords>,
    /// Of this process; what users who are not there look like is made of it.
    secret: [u8; 32],
    seen: Mutex<HashMap<PathBuf, Option<Stamp>>>,
}

/// What changes about a file when it is written or replaced.
type Stamp = (Option<SystemTime>, u64);

impl Credentials {
    /// Reads the files. Takes a millisecond for each password in them.
    ///
    /// # Errors
    /// Which file is of no use, and why.
    pub(crate) fn load(config: &Config, target: &Target) -> Result<Self, String> {
        let secret: [u8; 32] = rand::random();
        let certificates = config.tls.files().map(Certificates::load).transpose();
        let credentials = Self {
            method: config.auth.method,
            mode: config.tls.mode,
            certificates: certificates.map_err(|error| error.to_string())?,
            file: config.auth.users.clone(),
            users: RwLock::default(),
            lookup: config.auth.query.clone().map(|sql| Lookup::new(sql, target)),
            passwords: Arc::clone(&target.passwords),
            secret,
            seen: Mutex::default(),
        };
        // Before they are read: what changes meanwhile is read again.
        credentials.changed();
        credentials.read_users()?;
        Ok(credentials)
    }

    /// Reads all files again. What does not work leaves in place what was there before. Takes a while: not for
    /// the data path.
    pub(crate) fn reload(&self, sink: &dyn Sink) {
        if let Some(certificates) = &self.certificates {
            let reloaded = certificates.reload().map(|()| certificates.files().cert.display().to_string());
            tell(sink, Credential::Certificate, reloaded.map_err(|error| error.to_string()));
        }
        if self.file.is_some() {
            let reloaded = self.read_users().map(|users| format!("{users} users"));
            tell(sink, Credential::Users, reloaded);
        }
    }

    /// `auth.query` is put to another server from now on.
    pub(crate) fn retarget(&self, target: &Target) {
        if let Some(lookup) = &self.lookup {
            lookup.retarget(target);
        }
    }

    /// What a client from there is shown, if it asks for TLS.
    pub(crate) fn shown_to(&self, origin: Origin) -> Option<Shown> {
        let certificates = self.certificates.as_ref().filter(|_| origin != Origin::Socket)?;
        Some(certificates.shown())
    }

    /// Whether a client from there has to speak TLS.
    pub(crate) fn demands_tls(&self, origin: Origin) -> bool {
        match self.mode {
            ListenerMode::Allow => false,
            ListenerMode::Auto => origin == Origin::Far,
            ListenerMode::Require => origin != Origin::Socket,
        }
    }

    /// Whether clients have to prove that they know their password.
    pub(crate) fn demands_password(&self) -> bool {
        self.method == AuthMethod::Scram
    }

    /// What a client's proof is checked against, and why it must fail if it must. The server is asked for every
    /// user, so that those of the file cannot be told from others by the time that it takes.
    ///
    /// # Errors
    /// The server cannot be asked, and the file does not know the user.
    pub(crate) async fn verifier(
        &self,
        user: &str,
        sink: &Arc<dyn Sink>,
    ) -> Result<(Verifier, &'static str), Unanswered> {
        let answer = match &self.lookup {
            Some(lookup) => lookup.ask(user, sink).await,
            None => Ok(Known::Nobody),
        };
        let users = self.users.read();
        if let Some(user) = users.get(user) {
            return Ok((user.verifier.clone(), "wrong password"));
        }
        drop(users);
        let nobody = || Verifier::nobody(&self.secret, user);
        Ok(match answer? {
            Known::Verifier(verifier) => (verifier, "wrong password"),
            Known::NoVerifier => (nobody(), "the user has no SCRAM verifier"),
            Known::Nobody => (nobody(), "no such user"),
        })
    }

    /// A proof has failed.
    pub(crate) fn doubt(&self, user: &str) {
        if let Some(lookup) = &self.lookup {
            lookup.doubt(user);
        }
    }

    fn read_users(&self) -> Result<usize, String> {
        let Some(path) = &self.file else { return Ok(0) };
        let users = Users::load(path, &self.secret).map_err(|error| error.to_string())?;
        self.passwords.set(users.passwords());
        let count = users.len();
        *self.users.write() = users;
        Ok(count)
    }

    /// Whether a file is another than at the last look.
    fn changed(&self) -> bool {
        let mut seen = self.seen.lock();
        let certificates = self.certificates.iter().flat_map(|certificates| certificates.files().paths());
        let paths = certificates.chain(self.file.as_deref());
        paths.fold(false, |changed, path| {
            let now = stamp(path);
            seen.insert(path.to_owned(), now) != Some(now) || changed
        })
    }
}

/// Reads files again when they change, for ever. Cancel safe: what has begun to be read is read to its end.
pub(crate) async fn follow(hub: &Arc<Hub>) {
    if hub.credentials.certificates.is_none() && hub.credentials.file.is_none() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        let hub = Arc::clone(hub);
        let looking = tokio::task::spawn_blocking(move || {
            if hub.credentials.changed() {
                hub.credentials.reload(&*hub.sink);
            }
        });
        // It does not panic, and if it did, the next look is as good.
        let _ = looking.await;
    }
}

fn tell(sink: &dyn Sink, what: Credential, reloaded: Result<String, String>) {
    sink.emit(match reloaded {
        Ok(detail) => Event::CredentialsReloaded { what, detail },
        Err(detail) => Event::CredentialsKept { what, detail },
    });
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.modified().ok(), file.len()))
}
