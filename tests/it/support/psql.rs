//! psql, the client that people know.

use tokio::process::Command;

use super::server::binaries;
use super::{Database, PATIENCE, within};

/// A psql that is about to connect.
pub struct Psql {
    command: Command,
}

impl Psql {
    /// To this port of 127.0.0.1, with a connection string's options such as `sslmode=require`.
    pub fn to(database: &Database, port: u16, user: &str, options: &str) -> Psql {
        let mut command = Command::new(binaries().join("psql"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--dbname"]);
        command.arg(format!(
            "host=127.0.0.1 port={port} user={user} dbname={} connect_timeout=20 sslcert=/nowhere/me.crt \
             sslrootcert=/nowhere/root.crt {options}",
            database.name
        ));
        command.kill_on_drop(true);
        Psql { command }
    }

    /// With this password.
    pub fn password(mut self, password: &str) -> Psql {
        self.command.env("PGPASSWORD", password);
        self
    }

    /// What it prints, or what it complains of.
    pub async fn ask(mut self, sql: &str) -> Result<String, String> {
        self.command.arg("--command").arg(sql);
        let output = within(PATIENCE, "psql", self.command.output()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }
}
