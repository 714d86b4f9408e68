//! Clients that come in by a Unix socket.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::server::binaries;
use crate::support::{Database, Leash, Mode, PATIENCE, Server, finish, in_both_modes, within};

in_both_modes! {
    psql_is_served_by_a_unix_socket,
}

/// A directory for the socket, whose path is short enough for one.
struct Door {
    directory: TempDir,
}

impl Door {
    fn new() -> Door {
        Door { directory: tempfile::Builder::new().prefix("pgleash-test-").tempdir().unwrap() }
    }

    /// Where clients that are told this directory and port 6432 look.
    fn path(&self) -> PathBuf {
        self.directory.path().join(".s.PGSQL.6432")
    }

    async fn leash(&self, database: &Database, mode: Mode) -> Leash {
        Leash::on(database).mode(mode).set("listen", self.path().display()).start().await
    }

    /// What psql prints.
    async fn psql(&self, database: &Database, sql: &str) -> String {
        let mut command = tokio::process::Command::new(binaries().join("psql"));
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--username=app", "--port=6432"]);
        command.arg(format!("--dbname={}", database.name)).arg("--command").arg(sql);
        command.arg("--host").arg(self.directory.path()).kill_on_drop(true);
        let output = within(PATIENCE, "psql", command.output()).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

async fn psql_is_served_by_a_unix_socket(mode: Mode) {
    let (database, door) = (Server::shared().database().await, Door::new());
    let mut leash = door.leash(&database, mode).await;
    let started = leash.event("started", |_| true).await;
    assert_eq!(started["listen"], door.path().to_str().unwrap());
    let answer = door.psql(&database, "BEGIN; SELECT current_user, 6 * 7; COMMIT").await;
    assert_eq!(answer.lines().nth(1), Some("app|42"), "{answer}");
    finish(leash, &database).await;
    assert!(!door.path().exists(), "it is removed at the end");
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_replaced() {
    let (database, door) = (Server::shared().database().await, Door::new());
    drop(UnixListener::bind(door.path()).unwrap());
    assert!(is_socket(&door.path()), "left over from a process that died");
    let leash = door.leash(&database, Mode::Transaction).await;
    assert_eq!(door.psql(&database, "SELECT 1").await, "1");
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_path_that_is_in_use_is_left_alone() {
    let (database, door) = (Server::shared().database().await, Door::new());
    let leash = door.leash(&database, Mode::Transaction).await;
    let second = Leash::on(&database).set("listen", door.path().display());
    let (code, said) = second.run().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(door.path().to_str().unwrap()) && said.contains("in use"), "{said}");
    assert_eq!(door.psql(&database, "SELECT 'still here'").await, "still here");
    finish(leash, &database).await;

    fs::write(door.path(), "not a socket").unwrap();
    let (code, said) = Leash::upstream("postgres://app@127.0.0.1:1/app", "app")
        .set("listen", door.path().display())
        .run()
        .await;
    assert_eq!(code, 1, "{said}");
    assert_eq!(fs::read_to_string(door.path()).unwrap(), "not a socket");
}
